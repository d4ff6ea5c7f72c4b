"""Takes joint steps: one batch for several documents, and an update of its own for each.

A sample's weights are divided by the normaliser of its document beforehand, so that one backward
gives each adapter the gradient that it has alone. Clip, AdamW and rate are those of the document.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from liftcore.layers.last_layer import WORTH
from liftcore.layers.recompute import recomputed
from liftcore.objectives.sample import OwnedSample, Sample
from liftcore.training.batch import Batch, make, row_losses, shape_of
from liftcore.training.graph import GraphRunner
from liftcore.training.optimizer import DeviceAdamW, MasterAdamW
from liftcore.training.runner import Runner
from liftcore.training.step import Step
from liftcore.training.together import JointStep, Learner


class TogetherRunner(Runner):
    """Takes the joint steps of a TogetherSource eagerly.

    A document whose loss or gradient is no number keeps its adapter, and no other is touched.
    `losses` holds the mean of the documents whose loss is a number, 0 without any.
    """

    def _start(self) -> None:
        self.of_slots: dict[int, tuple[Learner, MasterAdamW | DeviceAdamW]] = {}
        self.loss = self.losses.new_zeros(self.adapter.values.shape[0])  # of the running step

    def _take(self, step: Step) -> None:
        assert isinstance(step, JointStep)
        self._begin(step)
        self.loss.zero_()
        for samples in self.passes(step.samples):
            batch = make(samples, shape_of(samples, WORTH if self.last is not None else 0.0))
            self._add(batch.to(self.losses.device))
        self.mark("backward")
        means = {slot: self._mean(part, self.loss[slot]) for slot, part in step.parts.items()}
        for slot, part in step.parts.items():
            optimizer = self.of_slots[slot][1]
            assert isinstance(optimizer, MasterAdamW)
            if torch.isfinite(optimizer.clip() + means[slot]):
                optimizer.step(part.rate)
            else:
                self.adapter.grads[slot].zero_()
                means[slot] = means[slot] * torch.nan
        self._note(step, means)
        self.mark("optimizer")

    def _begin(self, step: JointStep) -> None:
        """Gives each document that is new in its slot an optimizer."""
        for slot, learner in step.learners.items():
            if slot in self.of_slots and self.of_slots[slot][0] is learner:
                continue
            optimizer = self._optimizer(slot)
            if learner.optimizer is not None:
                optimizer.load_state(learner.optimizer)
                learner.optimizer = None
            self.of_slots[slot] = learner, optimizer

    def _optimizer(self, slot: int) -> MasterAdamW | DeviceAdamW:
        return MasterAdamW(self.adapter.slot(slot), self.config)

    def save_each(self) -> None:
        """Saves the run of each document that is in a slot; LiftError when one cannot be."""
        for slot, (learner, optimizer) in self.of_slots.items():
            if not learner.gone:
                frozen = {} if self.adapter.train_a else {"frozen": self.adapter.frozen[slot]}
                learner.save({**optimizer.state(), **frozen}, self.plan)

    def passes(self, samples: list[Sample]) -> Iterator[list[Sample]]:
        """As Runner's, and in each pass those of one document side by side."""
        for part in super().passes(samples):
            yield sorted(part, key=lambda s: s.slot if isinstance(s, OwnedSample) else 0)

    def _add(self, batch: Batch) -> None:
        """Forward and backward of a pass; the losses of its documents are added to the step's."""
        assert batch.slots is not None and self.adapter.owners is not None
        with (
            self._attention(batch.input_ids.shape[1]),
            recomputed(self.model, self.plan.recompute, self.adapter.first_layer),
            self.adapter.owners.rows(batch.slots),
        ):
            losses = row_losses(self.model, self.head, batch, self.last)
            losses.sum().backward()
        self.loss.index_add_(0, batch.slots, losses.detach())

    def _mean(self, part: Step, loss: Tensor) -> Tensor:
        return loss * (part.normaliser / part.weight)

    def _note(self, step: JointStep, means: dict[int, Tensor]) -> None:
        for slot, learner in step.learners.items():
            learner.note(step.parts[slot], means[slot])
        self.losses[step.number] = torch.stack(list(means.values())).nanmean().nan_to_num()


class TogetherGraphRunner(TogetherRunner, GraphRunner):
    """The same for a GPU, as GraphRunner is; each document's update is a few launches behind the
    graphs. No GPU has run this yet."""

    def _start(self) -> None:
        slots, device = self.adapter.values.shape[0], self.losses.device
        self.numbers = torch.zeros(2, slots, dtype=torch.float32, device=device)
        self.rates, self.to_mean = self.numbers.unbind()
        self.loss = torch.zeros(slots, dtype=torch.float32, device=device)
        self.of_slots = {}
        self._start_graphs()

    def _take(self, step: Step) -> None:
        assert isinstance(step, JointStep)
        self._begin(step)
        numbers = torch.zeros(self.numbers.shape, dtype=torch.float32)
        for slot, part in step.parts.items():
            numbers[:, slot] = torch.tensor([part.rate, part.normaliser / part.weight])
        self._copy(numbers, self.numbers)
        for samples in self.passes(step.samples):
            shape = self.shape(samples)
            self._pass(shape, self._filled(shape, make(samples, shape)))
        self.mark("backward")
        means = {}
        for slot in step.parts:
            # 0, or NaN for a loss that is no number, which then skips the update.
            self.adapter.grads[slot, :1].add_(self.loss[slot] * 0)
            optimizer = self.of_slots[slot][1]
            assert isinstance(optimizer, DeviceAdamW)
            norm = optimizer.update()[0]
            mean = self.loss[slot] * self.to_mean[slot]
            means[slot] = torch.where(torch.isfinite(norm + mean), mean, torch.nan)
        self._note(step, means)
        self.loss.zero_()
        self.mark("optimizer")

    def _optimizer(self, slot: int) -> DeviceAdamW:
        return DeviceAdamW(self.adapter.slot(slot), self.config, self.rates[slot : slot + 1])
