"""One case of the recall benchmark: train, and measure recall at several budgets on the way."""

from __future__ import annotations

import contextlib
import dataclasses
import time

import torch

from bench.recall import probes
from bench.recall.documents import Sample
from bench.recall.settings import Case
from liftcore.layers.lora import Adapter
from liftcore.model import prefix_ids
from liftcore.training.loop import Progress, train
from liftcore.training.source import count, segments_alone

# Passes over the document after which recall is measured.
BUDGETS = (4, 6, 8, 10, 12, 15, 18, 21, 25, 30, 35, 40)
ENOUGH = 0.95
# Free questions cost more than the rest of a measurement: one setting shows what they give.
ASKED = ("jitter/all", "cosine 12 epochs, batch 2, rank 64")


class Enough(Exception):
    """Recall is high enough: the rest of the run would show nothing."""


class Curve:
    """Recall against token-passes; the clocks stand still while it is measured."""

    def __init__(self, model, tokenizer, sample: Sample, seed: int, number_of_probes: int):
        self.model, self.sample, self.seed = model, sample, seed
        self.prefix, self.number = prefix_ids(tokenizer), number_of_probes
        self.points: list[dict] = []
        self.losses: list[float] = []
        self.budgets = [b * len(sample.tokens) for b in BUDGETS]
        self.paused = (0.0, 0.0)
        self.started = clocks()

    def step(self, passes: int, loss: float) -> None:
        """After a training step; raises Enough when recall has reached 95 %."""
        self.losses.append(loss)
        if not self.budgets or passes < self.budgets[0]:
            return
        self.budgets = [b for b in self.budgets if b > passes]
        if self.measure(passes) >= ENOUGH:
            raise Enough

    def measure(self, passes: int) -> float:
        now = clocks()
        wall, cpu = (n - s - p for n, s, p in zip(now, self.started, self.paused, strict=True))
        recall = probes.recall(self.model, self.sample, self.prefix, self.number, self.seed)
        loss = sum(self.losses) / max(1, len(self.losses))
        self.losses = []
        self.points.append(
            {
                "passes": passes,
                "recall": round(recall, 4),
                "loss": round(loss, 4),
                "seconds": round(wall, 2),
                "cpu_seconds": round(cpu, 2),
            }
        )
        self.paused = tuple(p + n - s for p, n, s in zip(self.paused, clocks(), now, strict=True))
        return recall


def clocks() -> tuple[float, float]:
    """Seconds on the wall and of the processor, when all that was sent to a GPU is done."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter(), time.process_time()


def epochs_for(case: Case, length: int, prefix: list[int]) -> int:
    """Epochs that come closest to the setting's budget of passes, at least one."""
    one = case.setting.config(case.seed)
    if not case.setting.passes:
        return one.epochs
    _, passes = count(length, one, prefix)
    return max(1, round(case.setting.passes * length / passes))


def run(case: Case, model, tokenizer, sample: Sample, number_of_probes: int) -> dict:
    """Trains and measures one case -> a row for the file. The model is left as it was."""
    config = config_of(case, tokenizer, sample)
    curve = Curve(model, tokenizer, sample, case.seed, number_of_probes)
    if case.setting.trainer:
        from bench.recall.official import train_official

        with train_official(model, sample.tokens, config, curve):
            return _row(case, model, tokenizer, sample, curve, config)
    adapter = Adapter(model, config.rank, config.lora_alpha, config.seed)
    adapter.install()
    seen = 0

    def on_step(progress: Progress) -> None:
        nonlocal seen
        seen = progress.tokens
        # A cosine is judged where it ends.
        if case.setting.passes:
            curve.step(progress.tokens, progress.loss)
        else:
            curve.losses = [progress.loss]

    try:
        curve.started = clocks()
        with contextlib.suppress(Enough):
            source = segments_alone(sample.tokens, config, curve.prefix)
            train(adapter, source, on_step=on_step)
        if not curve.points or curve.points[-1]["passes"] != seen:
            curve.measure(seen)
        return _row(case, model, tokenizer, sample, curve, config)
    finally:
        adapter.remove()


def config_of(case: Case, tokenizer, sample: Sample):
    epochs = epochs_for(case, len(sample.tokens), prefix_ids(tokenizer))
    return case.setting.config(case.seed).replace(epochs=epochs)


def before(model, tokenizer, sample: Sample, number_of_probes: int) -> dict:
    """What the model knows without an adapter."""
    prefix = prefix_ids(tokenizer)
    return {
        "recall": round(probes.recall(model, sample, prefix, number_of_probes, 0), 4),
        "facts": probes.facts_completed(model, tokenizer, sample),
        **probes.forgetting(model, tokenizer),
    }


def _row(case: Case, model, tokenizer, sample: Sample, curve: Curve, config) -> dict:
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
