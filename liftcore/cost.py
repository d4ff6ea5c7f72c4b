"""estimate: seconds, peak memory and FLOPs of a run, before it starts."""

from __future__ import annotations

import copy
import gc
import math
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import nn

from liftcore import model as models
from liftcore import report
from liftcore.adapter import alone_with
from liftcore.answer import greedy
from liftcore.config import LiftConfig
from liftcore.device_memory import peak_bytes, reset_peak
from liftcore.errors import UsageError
from liftcore.layers import base, depth, document_init
from liftcore.layers.depth import Layers
from liftcore.layers.inputs import inputs
from liftcore.layers.linear import features
from liftcore.layers.lora import Adapter, linear_layers, own_adapter_after
from liftcore.pretrained import dtype_keyword, from_config
from liftcore.training.length import for_length
from liftcore.training.loop import make_runner, prepared
from liftcore.training.progress import ProgressLine
from liftcore.training.source import count, segments_alone

WARM_UP, TIMED = 2, 6
# Segments on which fitting A to the document is timed.
FITTED = 4


@dataclass(frozen=True)
class Estimate:
    seconds: float  # fitting A to the document, training and the recall report
    peak_bytes: int  # of the process on a CPU, allocated on a GPU
    flops: float  # needed floating-point operations of the training
    steps: int
    token_passes: int
    tokens_per_second: float


def estimate(
    model_or_config: Any,
    tokens: int,
    config: LiftConfig | None = None,
    *,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
    progress: bool = True,
) -> Estimate:
    """What absorbing `tokens` tokens would cost, from a few steps on this machine.

    With a model its own steps are timed. With a transformers configuration shallow models of
    random weights are (one and two layers), and the depth is extrapolated: no download, and
    little memory. The document's tokens are random; cost does not depend on them. Progress goes to
    stderr, as absorb's does. Raises UsageError for objectives other than segments, whose samples
    are not known beforehand.
    """
    config = for_length(config or LiftConfig(), tokens)
    if config.objectives != ("segments",):
        raise UsageError("estimate knows the cost of the objective segments alone")
    if isinstance(model_or_config, nn.Module):
        with alone_with(model_or_config):
            cost = _cost(model_or_config, tokens, config, progress)
    else:
        device = torch.device(device or models.default_device())
        keyword = dtype_keyword(dtype or models.default_dtype(device))

        def shallow(number: int, layers: Layers) -> np.ndarray:
            model = from_config(shallow_config(model_or_config, number), **keyword)
            try:
                return _cost(
                    model.to(device).eval(), tokens, config.replace(layers=layers), progress
                )
            finally:
                del model
                gc.collect()

        layers = model_or_config.get_text_config().num_hidden_layers
        trained = depth.among(layers, config.layers)
        # One more layer that is trained, one below those, and one above them.
        more = {None: len(trained) - 1, (1, 1): trained[0], (0, 0): layers - 1 - trained[-1]}
        cost = one = shallow(1, None)
        for which, times in more.items():
            if times:
                # A noisy machine must not make a layer free or negative.
                cost = cost + times * np.maximum(shallow(2, which) - one, 0.0)
    step_seconds, report_seconds, fitting, peak, flops = cost
    steps, passes = count(tokens, config)
    return Estimate(
        seconds=float(step_seconds * passes + report_seconds + fitting),
        peak_bytes=int(peak),
        flops=float(passes * flops),
        steps=steps,
        token_passes=passes,
        tokens_per_second=float(1 / step_seconds),
    )


def _cost(model: nn.Module, tokens: int, config: LiftConfig, progress: bool) -> np.ndarray:
    """calibrate(), and the needed operations of a token-pass, float64 [5]."""
    with ProgressLine(enabled=progress) as line:
        cost = calibrate(model, tokens, config, tell=line.count)
    span, numbers = min(tokens, config.segment_length), depth.numbers(model, config.layers)
    flops = needed_flops(
        model,
        span,
        config.rank,
        numbers=numbers,
        exclude=config.exclude_modules,
        train_a=config.train_a,
    )
    return np.append(cost, flops)


def shallow_config(base_config: Any, layers: int) -> Any:
    """A copy of a transformers configuration, cut to its first layers."""
    shallow = copy.deepcopy(base_config)
    text = shallow.get_text_config()
    text.num_hidden_layers = layers
    if getattr(text, "layer_types", None):
        text.layer_types = text.layer_types[:layers]
    return shallow


def calibrate(
    model: nn.Module,
    tokens: int,
    config: LiftConfig,
    *,
    warm_up: int = WARM_UP,
    timed: int = TIMED,
    prompt: int = report.PROMPT,
    tell: Callable[[str, int, int], None] = lambda what, done, of: None,
) -> np.ndarray:
    """[seconds a token-pass, seconds of the report, seconds of fitting A to the document, peak
    bytes], float64 [4], measured on `timed` steps and a report whose prompts have `prompt` tokens.
    The model is left as it was. The model's own words are taken as known."""
    with own_adapter_after(model), base.quantised(model, config) as before:
        return _measured(model, tokens, config, warm_up, timed, prompt, tell) - np.array(
            # What stood in the place of FP8 layers is gone in a run.
            [0, 0, 0, sum(w.nbytes for layer in before.values() for w in layer.parameters())]
        )


def _measured(
    model: nn.Module,
    tokens: int,
    config: LiftConfig,
    warm_up: int,
    timed: int,
    prompt: int,
    tell: Callable[[str, int, int], None],
) -> np.ndarray:
    """calibrate() of the model as it stands."""
    device = next(model.parameters()).device
    vocabulary = models.head(model).weight.shape[0]
    reset_peak(device)
    text = np.random.default_rng(0).integers(0, vocabulary, size=tokens)
    seconds, passes = 0.0, 0
    with own_adapter_after(model):
        adapter = Adapter.of(model, config)
        fitting = _fitting(adapter, text, config) if config.adapter_init == "document" else 0.0
        adapter.install()
        source = segments_alone(text, config, [])
        with prepared(adapter, source.length):
            runner = make_runner(adapter, source)
            for step in islice(source.steps(), warm_up + timed):
                start = _now(device)
                runner.run(step)
                # A run of few steps has nothing to warm up with.
                if step.number == warm_up:
                    seconds, passes = 0.0, 0
                seconds += _now(device) - start
                passes += step.tokens
                tell("measuring this machine: step", step.number + 1, warm_up + timed)
            del runner
        prompts = torch.zeros(report.places(tokens), prompt, dtype=torch.int64, device=device)
        with adapter.folded():
            marks = [_now(device)]
            for new in (1, 4):
                greedy(model, prompts, new)
                marks.append(_now(device))
    first, four = marks[1] - marks[0], marks[2] - marks[1]
    reporting = first + max(0.0, four - first) / 3 * (report.NEW - 1)
    return np.array([seconds / passes, reporting, fitting, peak_bytes(device)])


def _fitting(adapter: Adapter, text: np.ndarray, config: LiftConfig) -> float:
    """Seconds of document_init.begin() for tokens int64 [L], from one on the first segments."""
    device, size = adapter.values.device, config.segment_length
    rows = [text[at : at + size] for at in range(0, min(len(text), FITTED * size), size)]
    known = document_init.own_words(adapter, rows[:1], config.init_damping)
    marks = [_now(device)]
    for run in (
        lambda: inputs(adapter, rows),
        lambda: document_init.begin(adapter, rows, known),
    ):
        run()
        marks.append(_now(device))
    forward, whole = marks[1] - marks[0], marks[2] - marks[1]
    return max(0.0, whole - forward) + forward * len(text) / sum(map(len, rows))


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def needed_flops(
    model: nn.Module,
    span: int,
    rank: int,
    scored: float = 1.0,
    *,
    numbers: Collection[int] | None = None,
    exclude: Collection[str] = (),
    train_a: bool = True,
) -> float:
    """Needed operations of one token-pass in a segment of `span` tokens: 4 a base weight
    (forward, dx), 6 a LoRA weight (forward, dx, dA or dB), 4 a head weight for the share of the
    tokens that is scored; attention counted as causal. Below the first of the layers `numbers`
    only the forward counts, and a frozen A has no dA; `exclude` as targets() has it. `model`
    carries no adapter."""
    every, trained = linear_layers(model), linear_layers(model, numbers, exclude).values()
    first, lists = min(numbers, default=0) if numbers else 0, depth.list_path(model)
    below = {f"{lists}.{number}." for number in range(first)}
    base = sum(
        math.prod(features(m)) * (2 if any(path.startswith(b) for b in below) else 4)
        for path, m in every.items()
    )
    of_a, of_b = (rank * sum(features(m)[side] for m in trained) for side in (0, 1))
    lora = (6.0 if train_a else 4.0) * of_a + 6.0 * of_b
    lm = models.causal_lm(model)
    head = lm.get_output_embeddings().weight.numel()
    text = lm.config.get_text_config()
    width = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    # Forward 4·S·H·D a token halved by causality, backward 2.5 times that (flash attention).
    times = 3.5 * text.num_hidden_layers - 2.5 * first
    attention = times * 2 * span * text.num_attention_heads * width
    return base + lora + 4.0 * scored * head + attention
