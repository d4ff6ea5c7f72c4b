"""Takes steps: batches, forward, backward, clip, AdamW. On CUDA graph.py replays CUDA graphs."""

from __future__ import annotations

import gc
from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from liftcore.device_memory import out_of_memory
from liftcore.errors import LiftError, first_line
from liftcore.layers.attention import beyond_window, own_attention
from liftcore.layers.determinism import any_algorithm, lacks
from liftcore.layers.last_layer import WORTH, LastLayer
from liftcore.layers.lora import Adapter
from liftcore.layers.recompute import recomputed
from liftcore.model import check_tokens, head
from liftcore.objectives.sample import Sample
from liftcore.training.batch import Batch, batch_loss, make, shape_of
from liftcore.training.memory_plan import MemoryPlan, choose
from liftcore.training.optimizer import DeviceAdamW, MasterAdamW
from liftcore.training.parallel import ALONE, Followed, Ranks
from liftcore.training.source import StepSource
from liftcore.training.step import Step

# Losses are kept for this many steps more than there were, each time that there is no room.
ROOM = 1024


class Runner:
    """Takes the steps of a source eagerly.

    losses [n] fp32, n at least the steps taken: the mean loss of a step's targets, NaN before it
    is done and for a step whose loss or gradient is no number; such a step leaves the adapter as
    it was.

    mark    hears "backward" and "optimizer" when the host has launched these parts of a step
    ranks   the processes that share its rows; each calls run() with the same steps
    """

    def __init__(
        self,
        adapter: Adapter,
        source: StepSource | Followed,
        mark: Callable[[str], None] = lambda part: None,
        ranks: Ranks = ALONE,
    ) -> None:
        self.model, self.adapter, self.config = adapter.model, adapter, source.config
        self.head, self.mark, self.ranks = head(self.model), mark, ranks
        # Samples may be made with the model.
        with as_owned(self.model):
            rows, self.length, partly = source.rows, source.length, source.partly_scored
        self.rows = -(-rows // ranks.size)
        self.plan: MemoryPlan = choose(self.model, adapter, self.rows, self.length)
        if ranks.sharded:
            # Every pass needs all ranks.
            self.plan = min(ranks.gather(self.plan), key=lambda plan: plan.micro_batch)
        last = LastLayer(self.model, self.length) if partly else None
        self.last = last if last is not None and last.works else None
        # What of liftcore's own was left out, and why.
        self.left: list[str] = []
        if last is not None and not last.works:
            self.left.append(f"the last layer runs for all rows: {last.why}")
        self.losses = torch.full(
            (ROOM,), torch.nan, dtype=torch.float32, device=adapter.values.device
        )
        self.not_repeatable = ""
        self._start()

    def _start(self) -> None:
        self.optimizer: MasterAdamW | DeviceAdamW = MasterAdamW(self.adapter, self.config)

    def run(self, step: Step) -> float:
        """Takes a step; the latest loss that is known, on a GPU of a step shortly before it.

        Out of memory, the step is done again in smaller passes; LiftError when even the smallest
        does not fit. Where an op has no deterministic algorithm, it is done without.
        """
        check_tokens(self.model, np.concatenate([sample.ids for sample in step.samples]))
        if step.number >= len(self.losses):
            more = self.losses.new_full((ROOM + step.number - len(self.losses),), torch.nan)
            self.losses = torch.cat([self.losses, more])
        while True:
            try:
                self._take(step)
                return self._latest(step)
            except RuntimeError as error:
                if out_of_memory(error):
                    mend = self._shrink
                elif lacks(error) and not self.not_repeatable:
                    mend = self._allow_any_algorithm
                else:
                    raise
                reason = first_line(error)
            # Outside of the handler: its traceback would keep the activations alive.
            self._undo()
            mend(reason)

    def _take(self, step: Step) -> None:
        loss = torch.zeros((), dtype=torch.float32, device=self.losses.device)
        for samples in self.own_passes(step):
            batch = make(samples, shape_of(samples, WORTH if self.last is not None else 0.0))
            loss += self._backward(batch.to(self.losses.device), step.normaliser)
        self.mark("backward")
        self.ranks.add_up(self.adapter.grads, loss)
        self._update(step, loss * (step.normaliser / step.weight))
        self.mark("optimizer")

    def _backward(self, batch: Batch, normaliser: float | Tensor) -> Tensor:
        """The loss of a pass; its gradient is added to the adapter's."""
        with (
            self._attention(batch.input_ids.shape[1]),
            recomputed(self.model, self.plan.recompute, self.adapter.first_layer),
        ):
            loss = batch_loss(self.model, self.head, batch, normaliser, self.last)
            loss.backward()
        return loss.detach()

    def _attention(self, length: int) -> AbstractContextManager[None]:
        """Within it rows of so many tokens attend rightly, forward and backward."""
        return own_attention(self.model) if beyond_window(self.model, length) else nullcontext()

    def _update(self, step: Step, loss: Tensor) -> None:
        assert isinstance(self.optimizer, MasterAdamW)
        norm = self.optimizer.clip()
        if torch.isfinite(norm + loss):
            self.optimizer.step(step.rate)
            self.losses[step.number] = loss
        else:
            self.adapter.grads.zero_()

    def own_passes(self, step: Step) -> list[list[Sample]]:
        """The passes of this rank's share of a step. Where every pass needs all ranks, each has as
        many: one that counts for nothing stands in for what is missing."""
        shares = [list(self.passes(share)) for share in self.ranks.shares(step.samples)]
        own = shares[self.ranks.rank]
        if self.ranks.sharded:
            missing = max(map(len, shares)) - len(own)
            shortest = min(step.samples, key=len)
            nothing = replace(shortest, weights=np.zeros_like(shortest.weights))
            own += [[nothing]] * missing
        return own

    def passes(self, samples: list[Sample]) -> Iterator[list[Sample]]:
        """The samples of a step in passes of as many tokens as the memory plan allows."""
        most = self.plan.micro_batch * self.length
        part: list[Sample] = []
        for sample in sorted(samples, key=len, reverse=True):
            if part and (len(part) + 1) * len(part[0]) > most:
                yield part
                part = []
            part.append(sample)
        if part:
            yield part

    def _latest(self, step: Step) -> float:
        return float(self.losses[step.number])

    def _undo(self) -> None:
        """Forgets what a step that failed has done."""
        self.adapter.grads.zero_()

    def _allow_any_algorithm(self, reason: str) -> None:
        torch.use_deterministic_algorithms(True, warn_only=True)
        self.not_repeatable = f"; not bit for bit repeatable: {reason}"

    def _shrink(self, reason: str) -> None:
        plan = self.plan.smaller(self.rows)
        if self.ranks.sharded:
            raise LiftError(
                f"out of memory with {self.plan}: a pass of a sharded base cannot be tried again; "
                "take a smaller batch_size or segment_length"
            )
        if plan is None:
            raise LiftError(
                f"out of memory with one segment at once and every layer recomputed: take a "
                f"smaller segment_length ({self.config.segment_length}) or rank "
                f"({self.config.rank}). {reason}"
            )
        self.use(plan)
        gc.collect()
        if self.losses.is_cuda:
            torch.cuda.empty_cache()

    def use(self, plan: MemoryPlan) -> None:
        """Takes the steps that follow as `plan` cuts them."""
        self.plan = plan

    def state(self) -> dict[str, Tensor]:
        """Everything that the steps that follow depend on but the plan, by name."""
        frozen = {} if self.adapter.train_a else {"frozen": self.adapter.frozen}
        return {**self.optimizer.state(), **frozen}

    def load_state(self, state: dict[str, Tensor], losses: Tensor) -> None:
        """Takes back what state() gave, and the losses of the steps until then; ValueError when
        the sizes differ."""
        self.optimizer.load_state(state)
        if not self.adapter.train_a:
            self.adapter.load_frozen(state["frozen"])
        self.losses = self.losses.new_full((ROOM + len(losses),), torch.nan)
        self.losses[: len(losses)] = losses.to(self.losses.device)

    @property
    def how(self) -> str:
        """How the steps run, for people."""
        note, size = self.adapter.targets.note, self.ranks.size
        kind = "with a sharded base" if self.ranks.sharded else "each with the whole base"
        shared = f"{size} processes, {kind}; on this one: " if size > 1 else ""
        plan = f"{shared}{self.plan}{self.not_repeatable}"
        return "; ".join([plan, *filter(None, [note]), *self.left])


@contextmanager
def as_owned(model: nn.Module) -> Generator[None]:
    """Within it the model is as its owner left it, so that it may generate between two steps:
    with the attention that knows caches, and with any algorithm."""
    with any_algorithm(), own_attention(model):
        yield
