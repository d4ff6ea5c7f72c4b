"""Training for a given time: the same loop and samples as absorb, but the clock ends the run."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

from liftcore import model as models
from liftcore.config import LiftConfig
from liftcore.document import Document
from liftcore.lora import Adapter
from liftcore.objectives.build import objectives_of
from liftcore.objectives.mix import Mix, Step
from liftcore.sample_steps import SampleSteps
from liftcore.train import follow

# What the first step is taken to be of the run.
FIRST = 0.01


class TimedMix(Mix):
    """A mix whose run ends after `seconds` of the process's CPU time, counted from the first draw.

    The learning rate follows the clock, so that its schedule ends with the run. Epochs follow one
    another as long as there is time.
    """

    def __init__(self, seconds: float, *args):
        super().__init__(*args)
        self.allowed, self.spent = seconds, 0.0
        self.start: float | None = None
        self.steps = 0
        self.tokens: Counter[str] = Counter()  # token-passes by objective

    @property
    def finished(self) -> bool:
        return self.spent >= self.allowed

    def draw(self) -> Step | None:
        if self.start is None:
            self.start = time.process_time()
        self.spent = time.process_time() - self.start
        step = None if self.finished else super().draw()
        if step is None:
            return None
        # The share at the step's end: as far again as the steps before it went.
        share = self._share_drawn()
        ahead = share / self.steps if self.steps else FIRST
        self.steps += 1
        for sample in step.samples:
            self.tokens[sample.source] += len(sample)
        return replace(step, before=share, after=min(1.0, share + ahead))

    def _share_drawn(self) -> float:
        return min(1.0, self.spent / self.allowed)


@dataclass(frozen=True)
class Trained:
    """What a run for a given time took. Seconds are CPU time of the process."""

    seconds: float
    making: float  # of the samples: questions that the model asked, the teacher's targets
    steps: int
    epochs: float
    loss: float
    tokens: dict[str, int]  # token-passes by objective
    samples: dict[str, int]  # of one epoch, by objective


def train_for(
    seconds: float,
    model,
    tokenizer,
    adapter: Adapter,
    document: Document,
    config: LiftConfig,
    sources: Sequence = (),
) -> Trained:
    """Trains the adapter for that time on config.objectives; samples are made before the clock
    starts. The epochs of the settings are a bound that the time never reaches."""
    begun = time.process_time()
    mix = TimedMix(
        seconds,
        objectives_of(model, tokenizer, document, config, sources),
        config.weights,
        config,
        models.window(model),
        len(models.prefix_ids(tokenizer)),
    )
    while not mix.done:
        for objective in mix.objectives:
            objective.poll()
    samples = {o.name: len(o.samples(0)) for o in mix.objectives}
    making = time.process_time() - begun
    try:
        result = follow(partial(SampleSteps, model, adapter, mix, config), adapter, mix.window)
        spent = time.process_time() - mix.start
    finally:
        mix.close()
    return Trained(
        round(spent, 2),
        round(making, 2),
        result.steps,
        mix.epoch + 1,
        round(result.loss, 4),
        dict(mix.tokens),
        samples,
    )
