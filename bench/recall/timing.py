"""Tokens a second of each setting of the recall benchmark, on a machine that does nothing else.

The sweep runs for hours beside other work, so that its own clock says little.
"""

from __future__ import annotations

import statistics
import time

from bench.recall.documents import Sample
from bench.recall.settings import Setting
from liftcore.layers.lora import Adapter
from liftcore.model import prefix_ids
from liftcore.training.loop import train
from liftcore.training.source import segments_alone


class Stopwatch:
    """Stands where the recall curve stands in training; the first step warms up."""

    def __init__(self, prefix: list[int]):
        self.prefix, self.points, self.started = prefix, [], (0.0, 0.0)
        self.marks: list[tuple[int, float]] = []

    def step(self, passes: int, loss: float) -> None:
        self.marks.append((passes, time.perf_counter()))

    def measure(self, passes: int) -> float:
        return 0.0

    @property
    def rate(self) -> float:
        (first, start), (last, end) = self.marks[0], self.marks[-1]
        return (last - first) / (end - start)


def tokens_per_second(setting: Setting, model, tokenizer, sample: Sample) -> float:
    """The rate of training over one epoch but its first step."""
    watch = Stopwatch(prefix_ids(tokenizer))
    # An epoch of few steps would be mostly the first one.
    epochs = 1 if setting.trainer else 2
    config = setting.config(0).replace(epochs=epochs)
    if setting.trainer:
        from bench.recall.official import train_official

        with train_official(model, sample.tokens, config, watch):
            return watch.rate
    adapter = Adapter(model, config.rank, config.lora_alpha, config.seed)
    adapter.install()
    try:
        train(
            adapter,
            segments_alone(sample.tokens, config, watch.prefix),
            on_step=lambda progress: watch.step(progress.tokens, progress.loss),
        )
    finally:
        adapter.remove()
    return watch.rate


def measure(settings: list[Setting], model, tokenizer, sample: Sample, rounds: int = 3) -> dict:
    """Median, slowest and fastest tokens/s by setting; the settings take turns."""
    found: dict[str, list[float]] = {s.name: [] for s in settings}
    for _ in range(rounds):
        for setting in settings:
            found[setting.name].append(tokens_per_second(setting, model, tokenizer, sample))
    return {
        name: {
            "tokens_per_second": round(statistics.median(rates), 1),
            "slowest": round(min(rates), 1),
            "fastest": round(max(rates), 1),
        }
        for name, rates in found.items()
    }
