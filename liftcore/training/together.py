"""Several documents at once: the steps of their own sources, one of each in a joint step.

A document takes a slot of the adapter, draws its steps from its own source with its own order,
normalisers and rates, and leaves when that ends; the next document takes its place in the very next
joint step. So each of them is trained as it would be alone, and the batch stays full.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from liftcore.config import LiftConfig
from liftcore.errors import LiftError
from liftcore.layers.lora import Adapter
from liftcore.objectives.sample import OwnedSample
from liftcore.training import losses
from liftcore.training.interrupt import unless_asked
from liftcore.training.memory_plan import MemoryPlan
from liftcore.training.source import StepSource
from liftcore.training.step import Step, target_of


class Learner:
    """A document that is trained together with others: its adapter, which has begun, and the source
    of its steps. ended() is called when these are over and the adapter holds what was learnt,
    failed() when it cannot go on; either of them with the model as its owner left it."""

    def __init__(self, adapter: Adapter, source: StepSource) -> None:
        self.adapter, self.source = adapter, source
        self.epochs: list[int] = []  # of the steps taken
        self.tokens: list[int] = []  # of these steps
        self.losses: list[Tensor] = []  # of these steps, fp32 scalars on the device
        self.gone = False  # it has left its slot
        # The state of an optimizer to go on with, of a run that was broken off.
        self.optimizer: dict[str, Tensor] | None = None

    def note(self, step: Step, loss: Tensor) -> None:
        """Takes note of a step that is taken."""
        self.epochs.append(step.epoch)
        self.tokens.append(step.tokens)
        self.losses.append(loss)

    def save(self, runner: dict[str, Tensor], plan: MemoryPlan) -> None:
        """Has its run go on from here after a kill; `runner`: what Runner.state() gives of one
        that trains it alone. Raises LiftError when that cannot be written."""

    def ended(self) -> None:
        raise NotImplementedError

    def failed(self, error: LiftError) -> None:
        raise NotImplementedError

    def check(self) -> None:
        """Raises LiftError for the first step whose loss is no number, and where there is none."""
        losses.check_some(len(self.losses))
        losses.check(torch.stack(self.losses))

    @property
    def lost(self) -> bool:
        """Whether the last loss is no number; not known where a look would wait for the device."""
        last = self.losses[-1:]
        return bool(last) and last[0].device.type == "cpu" and not torch.isfinite(last[0])


@dataclass(frozen=True)
class JointStep(Step):
    """One update of the adapter of each document that is in a slot; the samples are OwnedSamples of
    all of them."""

    parts: dict[int, Step] = field(default_factory=dict)  # slot -> the document's own step
    learners: dict[int, Learner] = field(default_factory=dict)


class TogetherSource(StepSource):
    """Draws joint steps until all documents are over.

    adapter    with a slot for each document at a time
    learners   the documents in the order in which they get a slot. The next one is asked for when a
               slot is free, with the model as its owner left it
    count      how many there are, where it is known

    over   documents that have ended or failed so far
    """

    def __init__(
        self,
        adapter: Adapter,
        learners: Iterator[Learner],
        config: LiftConfig,
        window: int,
        *,
        prefix: int = 0,
        count: int | None = None,
    ) -> None:
        super().__init__([], config, window, prefix=prefix)
        assert adapter.slots is not None
        self.adapter, self.waiting, self.count = adapter, learners, count
        self.places: list[Learner | None] = [None] * adapter.slots
        self.segment, self.over, self.all_known = prefix + config.segment_length, 0, False
        self.over_tokens = 0  # token-passes of the documents that are over

    def fill(self) -> None:
        """Gives each free slot a document, while there are any."""
        for slot in range(len(self.places)):
            self._fill(slot)

    def _fill(self, slot: int) -> Learner | None:
        """The document in a slot, the next one where it is free; None without any."""
        if self.places[slot] is None and not self.all_known:
            # What is broken off here is begun anew by the next run.
            learner = unless_asked(lambda: next(self.waiting, None))
            self.all_known = learner is None
            if learner is not None:
                self.adapter.put(slot, learner.adapter)
                self._place(slot, learner)
        return self.places[slot]

    def _place(self, slot: int, learner: Learner | None) -> None:
        self.places[slot] = learner
        self.objectives = [o for learner in self.active for o in learner.source.objectives]

    @property
    def active(self) -> list[Learner]:
        return [learner for learner in self.places if learner is not None]

    @property
    def seconds(self) -> float:
        return max((learner.source.seconds for learner in self.active), default=0.0)

    @property
    def complete(self) -> bool:
        return all(learner.source.complete for learner in self.active)

    @property
    def length(self) -> int:
        longest = max((learner.source.length for learner in self.active), default=0)
        return max(longest, min(self.window, self.segment))

    @property
    def rows(self) -> int:
        return len(self.places) * max(1, target_of(self.config, 0) // self.config.segment_length)

    @property
    def finished(self) -> bool:
        return self.all_known and not self.active

    @property
    def expected_steps(self) -> int:
        left = sum(learner.source.left() for learner in self.active)
        if self.count is not None and self.over:
            others = max(0, self.count - self.over - len(self.active))
            left += others * self.over_tokens / self.over
        if not self.done_steps:
            return round(left / self.target / len(self.places))
        return self.done_steps + round(left * self.done_steps / self.trained)

    def draw(self) -> Step | None:
        parts, samples = {}, []
        for slot in range(len(self.places)):
            while (learner := self._fill(slot)) is not None:
                step = self._next(slot, learner)
                if step is not None:
                    parts[slot] = step
                    samples += [OwnedSample.of(s, step.normaliser, slot) for s in step.samples]
                if self.places[slot] is learner:
                    break  # else it has left
        if not parts:
            return None
        number, self.done_steps = self.done_steps, self.done_steps + 1
        self.trained += sum(step.tokens for step in parts.values())
        now = {slot: learner for slot, learner in enumerate(self.places) if slot in parts}
        learners = {slot: learner for slot, learner in now.items() if learner is not None}
        return JointStep(samples, number, 0, 1.0, 0.0, 0.0, parts, learners)

    def _next(self, slot: int, learner: Learner) -> Step | None:
        """The document's next step; None where it waits for samples, or has left its slot."""
        try:
            if learner.lost:
                learner.check()
            if self.config.qa_first and not learner.source.complete:
                for objective in learner.source.objectives:
                    objective.poll()
                return None
            step = learner.source.draw()
            if step is not None or not learner.source.finished:
                return step
            learner.check()
        except LiftError as error:
            self._leave(slot, learner)
            learner.failed(error)
            return None
        with torch.no_grad():
            learner.adapter.values.copy_(self.adapter.values[slot])
        self._leave(slot, learner)
        learner.ended()
        return None

    def _leave(self, slot: int, learner: Learner) -> None:
        self._place(slot, None)
        learner.gone = True
        self.over, self.over_tokens = self.over + 1, self.over_tokens + learner.source.trained
        learner.source.close()

    def close(self) -> None:
        for learner in self.active:
            learner.source.close()
