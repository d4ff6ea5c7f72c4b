"""One step of training after another: batch, forward, backward, clip, AdamW.

EagerSteps makes each batch on the host. On CUDA graph.py keeps the whole step on the device.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import torch
from torch import Tensor, nn

from liftcore import batch
from liftcore.batch import Batch
from liftcore.config import LiftConfig
from liftcore.determinism import lacks
from liftcore.errors import LiftError
from liftcore.kernels.head_loss import linear_cross_entropy
from liftcore.last_layer import WORTH, LastLayer, positions
from liftcore.lora import Adapter
from liftcore.memory_plan import MemoryPlan, choose
from liftcore.model import Head, body, head
from liftcore.optimizer import MasterAdamW, learning_rate
from liftcore.order import Order, order
from liftcore.recompute import recomputed
from liftcore.usage import out_of_memory


def batch_loss(
    model: nn.Module,
    lm_head: Head,
    step: Batch,
    normaliser: float | Tensor,
    last: LastLayer | None = None,
) -> Tensor:
    """Σ weight · loss over the scored rows of a batch / normaliser (LIFT, equation 2), fp32.

    One normaliser for all steps of an epoch keeps the weights of the overlap loss: dividing each
    step by its own sum would undo them. `last` computes the last layer for the scored rows only,
    where they are few.
    """
    chosen = None
    if last is not None and step.most <= WORTH * step.input_ids.shape[1]:
        step, chosen = _scored_rows(step)
    hidden = hidden_states(model, step.input_ids, last, chosen)
    loss = linear_cross_entropy(
        *lm_head.detached().operands(hidden.flatten(0, 1)),
        step.labels.flatten(),
        token_weights=step.weights.flatten(),
        reduction="sum",
        softcap=lm_head.softcap,
        logit_scale=lm_head.logit_scale,
        row_index=step.row_index,
    )
    return loss / normaliser


def hidden_states(
    model: nn.Module, input_ids: Tensor, last: LastLayer | None, chosen: Tensor | None
) -> Tensor:
    """The body's output [B, S, K]; [B, Q, K] for the positions `chosen` [B, Q], by `last`."""
    with nullcontext() if chosen is None else last.rows(chosen):
        return body(model)(input_ids=input_ids, use_cache=False).last_hidden_state


def _scored_rows(step: Batch) -> tuple[SimpleNamespace, Tensor]:
    """The targets of the rows that positions() chooses, and these: int64 [B, most]."""
    chosen = positions(step.weights, step.most)
    return SimpleNamespace(
        input_ids=step.input_ids,
        labels=step.labels.gather(1, chosen),
        weights=step.weights.gather(1, chosen),
        row_index=torch.arange(chosen.numel(), device=chosen.device),
    ), chosen


class EagerSteps:
    """The steps of a run, each computed when it is asked for.

    losses [steps] fp32: the mean loss of a step's targets, NaN before it is done and for a step
    whose loss or gradient is no number; such a step leaves the adapter as it was.
    """

    def __init__(
        self,
        model: nn.Module,
        adapter: Adapter,
        tokens: np.ndarray,
        config: LiftConfig,
        prefix: Sequence[int],
    ):
        self.tokens, self.prefix = tokens, list(prefix)
        self.cut = (-1, None)  # the epoch whose segments are at hand
        found = order(len(tokens), config, prefix)
        size = len(self.prefix) + min(config.segment_length, len(tokens))
        # Only a run that leaves tokens unscored has something to gain.
        partly = len(found) and (found.scored.sum() < WORTH * found.tokens.sum())
        self._prepare(model, adapter, config, found, size, partly)

    def _prepare(self, model, adapter, config, found: Order, size: int, partly: bool) -> None:
        """Makes ready for the steps of `found`, whose rows have at most `size` tokens."""
        self.model, self.adapter, self.config, self.order = model, adapter, config, found
        self.head = head(model)
        self.plan: MemoryPlan = choose(model, adapter, found.most, size)
        last = LastLayer(model, size) if partly else None
        self.last = last if last is not None and last.works else None
        self.in_full = ""
        if last is not None and not last.works:
            self.in_full = f"; the last layer runs for all rows: {last.why}"
        self.losses = torch.full((len(self.order),), torch.nan, device=adapter.values.device)
        self.not_repeatable = ""
        self._start()

    def _start(self) -> None:
        self.optimizer = MasterAdamW(self.adapter, self.config)

    def numbers(self, first: int, stop: Callable[[], bool]) -> Iterable[int]:
        """The numbers of the steps from `first` on; ends early where it would wait and `stop`
        says True."""
        return range(first, len(self.order))

    def run(self, n: int) -> None:
        """Step n. Out of memory, it is done again in smaller passes; LiftError when even the
        smallest does not fit. Where an op has no deterministic algorithm, it is done without."""
        while True:
            try:
                return self._run(n)
            except RuntimeError as error:
                if out_of_memory(error):
                    mend = self._shrink
                elif lacks(error) and not self.not_repeatable:
                    mend = self._allow_any_algorithm
                else:
                    raise
                reason = str(error).split("\n")[0]
            # Outside of the handler: its traceback would keep the activations alive.
            self._undo()
            mend(reason)

    def _run(self, n: int) -> None:
        self.losses[n] = self._update(n, self._backward(n))

    def _backward(self, n: int) -> Tensor:
        """The step's loss; its gradient is in the adapter."""
        order, micro, loss = self.order, self.plan.micro_batch, 0.0
        if self.cut[0] != order.epoch[n]:
            self.cut = order.epoch[n], batch.cut(len(self.tokens), self.config, order.epoch[n])
        rows, normaliser = order.rows(n), float(order.normaliser[n])
        for i in range(0, len(rows), micro):
            part = batch.make(self.tokens, self.cut[1], rows[i : i + micro], self.prefix)
            # A pass that scores nothing has no gradient.
            if part.weight:
                with recomputed(self.model, self.plan.recompute):
                    passed = batch_loss(
                        self.model, self.head, part.to(self.losses.device), normaliser, self.last
                    )
                    passed.backward()
                loss = loss + passed.detach()
        return loss * (normaliser / order.weight[n])

    def _update(self, n: int, loss: Tensor) -> Tensor:
        norm = self.optimizer.clip()
        if not torch.isfinite(norm + loss):
            self.adapter.grads.zero_()
            return loss * torch.nan
        self.optimizer.step(self._rate(n))
        return loss

    def _rate(self, n: int) -> float:
        return learning_rate(self.config, n, len(self.order))

    def _undo(self) -> None:
        """Forgets what a step that failed has done."""
        self.adapter.grads.zero_()

    def _allow_any_algorithm(self, reason: str) -> None:
        torch.use_deterministic_algorithms(True, warn_only=True)
        self.not_repeatable = f"; not bit for bit repeatable: {reason}"

    def _shrink(self, reason: str) -> None:
        plan = self.plan.smaller(self.order.most)
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

    def close(self) -> None:
        """Waits until nothing of the steps runs any more."""

    def latest(self, n: int) -> float:
        """The mean loss of step n, or on a GPU of a step shortly before it; NaN: see losses."""
        return float(self.losses[n])

    def times(self) -> dict[str, float]:
        """What Result says about samples that are made while training runs."""
        return {}

    def state(self) -> dict[str, Tensor]:
        """Everything that the rest of the run depends on but the plan, by name."""
        return {**self.optimizer.state(), "losses": self.losses}

    def load_state(self, state: dict[str, Tensor], step: int) -> None:
        """Takes back what state() gave before step `step`; ValueError when the sizes differ."""
        self.optimizer.load_state(state)
        self.losses.copy_(state["losses"])

    @property
    def how(self) -> str:
        """How the steps run, for people."""
        return f"{self.plan}{self.not_repeatable}{self.in_full}"
