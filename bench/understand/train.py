"""Training for a given time: the same loop and samples as absorb, but the clock ends the run."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from liftcore import model as models
from liftcore.config import LiftConfig
from liftcore.document import Document
from liftcore.layers.lora import Adapter
from liftcore.objectives.build import objectives_of
from liftcore.training.loop import train
from liftcore.training.source import StepSource
from liftcore.training.step import Step


class Timed(StepSource):
    """A source whose run ends after `seconds` of the process's CPU time, counted from the first
    draw.

    The learning rate follows the clock, so that its schedule ends with the run. Epochs follow one
    another as long as there is time.
    """

    def __init__(self, seconds: float, *args: Any, **options: Any):
        super().__init__(*args, share=self.clock, **options)
        self.allowed = seconds
        self.start: float | None = None
        self.by_objective: Counter[str] = Counter()  # token-passes

    def clock(self) -> float:
        """The share of the time that is over."""
        if self.start is None:
            self.start = time.process_time()
        return (time.process_time() - self.start) / self.allowed

    def draw(self) -> Step | None:
        step = super().draw()
        for sample in step.samples if step else ():
            self.by_objective[sample.source] += len(sample)
        return step


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
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    adapter: Adapter,
    document: Document,
    config: LiftConfig,
    sources: Sequence = (),
) -> Trained:
    """Trains the adapter for that time on config.objectives; samples are made before the clock
    starts. The epochs of the settings are a bound that the time never reaches."""
    begun = time.process_time()
    source = Timed(
        seconds,
        objectives_of(model, tokenizer, document, config, sources),
        config,
        models.window(model),
        weights=config.weights,
        prefix=len(models.prefix_ids(tokenizer)),
    )
    while not source.complete:
        for objective in source.objectives:
            objective.poll()
    samples = {o.name: len(o.samples(0)) for o in source.objectives}
    making = time.process_time() - begun
    with closing(source):
        result = train(adapter, source)
        assert source.start is not None
        spent = time.process_time() - source.start
    return Trained(
        round(spent, 2),
        round(making, 2),
        result.steps,
        source.epoch + 1,
        round(result.loss, 4),
        dict(source.by_objective),
        samples,
    )
