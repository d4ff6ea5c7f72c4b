"""estimate: seconds, peak memory and FLOPs of a run, before it starts."""

from __future__ import annotations

import copy
import gc
import time
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from liftcore import batch, report
from liftcore import model as models
from liftcore.answer import greedy
from liftcore.attention import fast_attention
from liftcore.config import LiftConfig
from liftcore.lora import Adapter, linear_layers, only_adapter_trains
from liftcore.optimizer import MasterAdamW
from liftcore.train import batch_loss
from liftcore.usage import peak_bytes, reset_peak

WARM_UP, TIMED = 2, 6


@dataclass(frozen=True)
class Estimate:
    seconds: float  # training and the recall report
    peak_bytes: int  # of the process on a CPU, allocated on a GPU
    flops: float  # needed floating-point operations of the training
    steps: int
    token_passes: int
    tokens_per_second: float


def estimate(
    model_or_config, tokens: int, config: LiftConfig | None = None, *, device=None, dtype=None
) -> Estimate:
    """What absorbing `tokens` tokens would cost, from a few steps on this machine.

    With a model its own steps are timed. With a transformers configuration two shallow models
    of random weights are (one and two layers), and the depth is extrapolated: no download, and
    little memory. The document's tokens are random; cost does not depend on them.
    """
    config = config or LiftConfig()
    if isinstance(model_or_config, nn.Module):
        model = model_or_config
        cost, layers = _calibrate(model, tokens, config), 1
        flops = _flops(model, tokens, config)  # of one token-pass
    else:
        device = torch.device(device or models.default_device())
        dtype = dtype or models.default_dtype(device)
        one, flops_one = _shallow(model_or_config, 1, tokens, config, device, dtype)
        two, flops_two = _shallow(model_or_config, 2, tokens, config, device, dtype)
        layers = model_or_config.get_text_config().num_hidden_layers
        # A noisy machine must not make the second layer free or negative.
        cost = one + (layers - 1) * np.maximum(two - one, 0.0)
        flops = flops_one + (layers - 1) * (flops_two - flops_one)
    step_seconds, report_seconds, peak = cost
    steps, passes = batch.count(tokens, config)
    return Estimate(
        seconds=float(step_seconds * passes + report_seconds),
        peak_bytes=int(peak),
        flops=float(passes * flops),
        steps=steps,
        token_passes=passes,
        tokens_per_second=float(1 / step_seconds),
    )


def _shallow(base_config, layers: int, tokens: int, config: LiftConfig, device, dtype):
    from transformers import AutoModelForCausalLM

    shallow = copy.deepcopy(base_config)
    text = shallow.get_text_config()
    text.num_hidden_layers = layers
    if getattr(text, "layer_types", None):
        text.layer_types = text.layer_types[:layers]
    model = AutoModelForCausalLM.from_config(shallow, dtype=dtype).to(device).eval()
    cost, flops = _calibrate(model, tokens, config), _flops(model, tokens, config)
    del model
    gc.collect()
    return cost, flops


def _calibrate(model: nn.Module, tokens: int, config: LiftConfig) -> np.ndarray:
    """[seconds a token-pass, seconds of the report, peak bytes] measured on a few steps."""
    device = next(model.parameters()).device
    before = getattr(model, "_liftcore_adapter", None)
    lm_head = models.head(model)
    reset_peak(device)
    adapter = Adapter(model, config.rank, config.lora_alpha)
    adapter.install()
    optimizer = MasterAdamW(adapter, config)
    vocabulary = lm_head.weight.shape[0]
    text = np.random.default_rng(0).integers(0, vocabulary, size=tokens)
    seconds = passes = done = epoch = 0
    try:
        with only_adapter_trains(adapter), fast_attention(model):
            while done < WARM_UP + TIMED:
                segments, steps = batch.plan(tokens, config, epoch)
                for rows in steps[: WARM_UP + TIMED - done]:
                    start = _now(device)
                    step = batch.make(text, segments, rows, ()).to(device)
                    batch_loss(model, lm_head, step, step.weight).backward()
                    optimizer.clip()
                    optimizer.step(0.0)
                    if done >= WARM_UP:
                        seconds, passes = seconds + _now(device) - start, passes + step.tokens
                    done += 1
                epoch += 1
        prompts = torch.zeros(report.PROBES, report.PROMPT, dtype=torch.int64, device=device)
        marks = [_now(device)]
        for new in (1, 4):
            greedy(model, prompts, new)
            marks.append(_now(device))
        first, four = marks[1] - marks[0], marks[2] - marks[1]
        reporting = first + max(0.0, four - first) / 3 * (report.NEW - 1)
        return np.array([seconds / passes, reporting, peak_bytes(device)])
    finally:
        adapter.remove()
        if before is not None:
            before.install()


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def _flops(model: nn.Module, tokens: int, config: LiftConfig) -> float:
    """Needed operations of one token-pass: 4 a base weight (forward, dx), 6 a LoRA weight
    (forward, dx, dA or dB), 4 a head weight; attention counted as causal."""
    layers = linear_layers(model).values()
    base = sum(m.weight.numel() for m in layers)
    lora = sum(config.rank * (m.in_features + m.out_features) for m in layers)
    head = model.get_output_embeddings().weight.numel()
    text = model.config.get_text_config()
    width = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    span = min(tokens, config.segment_length)
    # Forward 4·S·H·D a token halved by causality, backward 2.5 times that (flash attention).
    attention = 3.5 * 2 * span * text.num_attention_heads * width * text.num_hidden_layers
    return 4.0 * base + 6.0 * lora + 4.0 * head + attention
