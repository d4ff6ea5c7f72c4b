"""One case of the recall benchmark: train, and measure recall at several budgets on the way; and
its tokens a second, on a machine that does nothing else.

A sweep runs for hours beside other work, so that its own clock says little.
"""

from __future__ import annotations

import contextlib
import dataclasses
import statistics
import time
from collections.abc import Generator, Sequence

import numpy as np
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from bench.recall import probes
from bench.recall.documents import Sample
from bench.recall.official import train_official
from bench.recall.probes import Curve, Enough, Watch, clocks
from bench.recall.settings import Case, Setting
from liftcore import beginning
from liftcore.config import LiftConfig
from liftcore.layers.base import quantised
from liftcore.layers.lora import Adapter, own_adapter_after
from liftcore.model import prefix_ids
from liftcore.objectives.sample import Sample as TrainedOn
from liftcore.objectives.segments import Segments
from liftcore.questions import own_words
from liftcore.training.log import Progress
from liftcore.training.loop import train
from liftcore.training.source import count, segments_alone

# Free questions cost more than the rest of a measurement: one setting shows what they give.
ASKED = ("jitter/all", "cosine 12 epochs, batch 2, rank 64")


def epochs_for(case: Case, length: int, prefix: list[int]) -> int:
    """Epochs that come closest to the setting's budget of passes, at least one."""
    one = case.setting.config(case.seed)
    if not case.setting.passes:
        return one.epochs
    _, passes = count(length, one, prefix)
    return max(1, round(case.setting.passes * length / passes))


def run(
    case: Case,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    sample: Sample,
    number_of_probes: int,
) -> dict:
    """Trains and measures one case -> a row for the file. The model is left as it was."""
    config = config_of(case, tokenizer, sample)
    # A cosine is judged where it ends.
    at_end = not (case.setting.passes or case.setting.trainer)
    curve = Curve(model, tokenizer, sample, case.seed, number_of_probes, at_end)
    with trained(case.setting, config, model, tokenizer, sample.tokens, curve):
        return _row(case, model, tokenizer, sample, curve, config)


@contextlib.contextmanager
def trained(
    setting: Setting,
    config: LiftConfig,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    tokens: np.ndarray,
    watch: Watch,
) -> Generator[None]:
    """Trains until the epochs are over or `watch` has seen enough; within it the adapter is on
    the model, afterwards the model is as before.

    Fitting the adapter to the document counts as training. What is known of the model's own words
    does not: it is there once a model."""
    if setting.trainer:
        with train_official(model, tokens, config, watch):
            yield
        return
    seen = 0

    def on_step(progress: Progress) -> None:
        nonlocal seen
        seen = progress.tokens
        watch.step(seen, progress.loss)

    with own_adapter_after(model), quantised(model, config):
        adapter = Adapter.of(model, config)
        own = None
        if config.adapter_init == "document":
            own = own_words.rows(model, tokenizer, setting.own or beginning.ROWS)[: setting.own]
            beginning.known(adapter, tokenizer, config, own=own)
        watch.started = clocks()
        beginning.begin(adapter, tokenizer, [tokens], config, own=own)
        adapter.install()
        source = segments_alone(tokens, config, watch.prefix)
        if setting.cuts:
            source.objectives = [InTurns(tokens, config, watch.prefix, setting.cuts)]
        with contextlib.suppress(Enough):
            train(adapter, source, on_step=on_step)
        if not watch.points or watch.points[-1]["passes"] != seen:
            watch.measure(seen)
        yield


class InTurns(Segments):
    """Segments of a few ways of cutting that the epochs take in turns, as a cache of what the
    layers below the adapter give would need them."""

    def __init__(
        self, tokens: np.ndarray, config: LiftConfig, prefix: Sequence[int], cuts: int
    ) -> None:
        super().__init__(tokens, config, prefix)
        self.cuts = cuts

    def samples(self, epoch: int) -> list[TrainedOn]:
        return super().samples(epoch % self.cuts)


def config_of(case: Case, tokenizer: PreTrainedTokenizerBase, sample: Sample) -> LiftConfig:
    epochs = epochs_for(case, len(sample.tokens), prefix_ids(tokenizer))
    return case.setting.config(case.seed).replace(epochs=epochs)


def before(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    sample: Sample,
    number_of_probes: int,
) -> dict:
    """What the model knows without an adapter."""
    prefix = prefix_ids(tokenizer)
    return {
        "recall": round(probes.recall(model, sample, prefix, number_of_probes, 0), 4),
        "facts": probes.facts_completed(model, tokenizer, sample),
        **probes.forgetting(model, tokenizer),
    }


def _row(
    case: Case,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    sample: Sample,
    curve: Curve,
    config: LiftConfig,
) -> dict:
    row = {
        "key": case.key,
        "document": case.document,
        "seed": case.seed,
        "setting": case.setting.name,
        "line": case.setting.line,
        "config": dataclasses.asdict(config),
        "sha256": sample.sha256,
        "tokens": len(sample.tokens),
        "probes": curve.number,
        "curve": curve.points,
        "facts": len(sample.facts),
        "facts_after": probes.facts_completed(model, tokenizer, sample),
        "after": probes.forgetting(model, tokenizer),
    }
    if case.seed == 0 and sample.questions and case.setting.name in ASKED:
        row["questions"] = len(sample.questions[: probes.QUESTIONS])
        row["questions_after"] = probes.questions_answered(model, tokenizer, sample)
    return row


class Stopwatch:
    """Stands where the recall curve stands in training; the first step warms up."""

    def __init__(self, prefix: list[int]):
        self.prefix, self.started = prefix, (0.0, 0.0)
        self.points: list[dict] = []
        self.marks: list[tuple[int, float]] = []

    def step(self, passes: int, loss: float) -> None:
        self.marks.append((passes, time.perf_counter()))

    def measure(self, passes: int) -> float:
        return 0.0

    @property
    def rate(self) -> float:
        (first, start), (last, end) = self.marks[0], self.marks[-1]
        return (last - first) / (end - start)


def tokens_per_second(
    setting: Setting, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, sample: Sample
) -> float:
    """The rate of training over one epoch but its first step."""
    watch = Stopwatch(prefix_ids(tokenizer))
    # An epoch of few steps would be mostly the first one.
    config = setting.config(0).replace(epochs=1 if setting.trainer else 2)
    with trained(setting, config, model, tokenizer, sample.tokens, watch):
        return watch.rate


def timed(
    settings: list[Setting],
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    sample: Sample,
    rounds: int = 3,
) -> dict[str, dict[str, float]]:
    """Median, slowest and fastest tokens/s by setting; the settings take turns."""
    rates_of: dict[str, list[float]] = {s.name: [] for s in settings}
    for _ in range(rounds):
        for setting in settings:
            rates_of[setting.name].append(tokens_per_second(setting, model, tokenizer, sample))
    return {
        name: {
            "tokens_per_second": round(statistics.median(rates), 1),
            "slowest": round(min(rates), 1),
            "fastest": round(max(rates), 1),
        }
        for name, rates in rates_of.items()
    }
