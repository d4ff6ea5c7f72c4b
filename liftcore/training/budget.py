"""A forgetting budget: replay grows while a run forgets too much, and what it ends with forgets no
more than allowed."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from liftcore.layers.lora import Adapter
from liftcore.objectives import Objective, Repeated
from liftcore.objectives.forgetting import Forgetting
from liftcore.training.step import Step

# How often a run is checked, at equal shares of its token-passes.
CHECKS = 6
# The share of replay is multiplied or divided by GROWTH, within [that of the settings, MOST].
GROWTH, LEAST_RISE, MOST = 1.5, 0.05, 0.5


class Budget:
    """Checks a run and keeps a copy of the last adapter within the budget.

    keep     nats that rise() may give
    rise     how far the loss on held-out own words has risen, of the adapter as it stands
    replays  whose share grows while it is above

    Everything depends on the steps alone, so that a run that goes on is checked at the same steps.
    """

    def __init__(
        self,
        adapter: Adapter,
        keep: float,
        rise: Callable[[], float],
        replays: Sequence[Repeated],
    ) -> None:
        self.adapter, self.keep, self.rise, self.replays = adapter, keep, rise, list(replays)
        self.least = [replay.share for replay in self.replays]
        self.best = adapter.values.clone()  # at first the beginning, which has forgotten nothing
        self.best_done = 0.0  # share of the run's token-passes behind which `best` was taken
        self.last = math.nan  # what the last check found
        self.checked, self.checked_step = 0, -1

    @classmethod
    def of(
        cls,
        adapter: Adapter,
        keep: float | None,
        forgetting: Forgetting | None,
        objectives: Sequence[Objective],
    ) -> Budget | None:
        """The budget of a run on these objectives; None where nothing is to be kept, or nothing is
        known of what is forgotten."""
        if keep is None or forgetting is None:
            return None
        return cls(
            adapter, keep, forgetting.rise, [o for o in objectives if isinstance(o, Repeated)]
        )

    def after(self, step: Step) -> None:
        """Checks the run when it is due; the model must be able to generate."""
        at = math.floor(step.done * CHECKS)
        if at <= self.checked:
            return
        self.checked = at
        self._check(step.number, step.done)
        if step.done < 1:  # there is something left to be shared
            self._steer()

    def _check(self, number: int, done: float) -> None:
        self.last, self.checked_step = self.rise(), number
        if self.inside:
            self.best.copy_(self.adapter.values)
            self.best_done = done

    @property
    def inside(self) -> bool:
        """Whether the last check was within the budget."""
        return self.last <= self.keep

    def _steer(self) -> None:
        for replay, least in zip(self.replays, self.least, strict=True):
            if self.inside:
                replay.share = max(least, replay.share / GROWTH)
            else:
                more = max(replay.share * GROWTH, replay.share + LEAST_RISE)
                replay.share = max(least, min(MOST, more))

    @torch.no_grad()
    def finish(self, steps: int) -> str:
        """Gives the adapter its last values within the budget; says which limit ended the run,
        "epochs" or "keep"."""
        if self.checked_step != steps - 1:
            self._check(steps - 1, 1.0)
        if self.inside:
            return "epochs"
        self.adapter.values.copy_(self.best)
        return "keep"

    def state(self) -> dict[str, Tensor]:
        """What restore() needs to go on behind the steps taken so far."""
        shares = [replay.share for replay in self.replays]
        at = np.array([self.checked, self.checked_step], dtype=np.int64)
        numbers = np.array([self.best_done, self.last, *shares], dtype=np.float64)
        return {
            "budget_best": self.best,
            "budget_at": torch.from_numpy(at),
            "budget_float": torch.from_numpy(numbers),
        }

    def restore(self, state: dict[str, Tensor]) -> None:
        """Goes on where state() was taken. Raises ValueError for what state() cannot have given."""
        best, numbers = state["budget_best"], state["budget_float"].tolist()
        if best.shape != self.best.shape or len(numbers) != 2 + len(self.replays):
            raise ValueError("the saved state belongs to another budget")
        self.best.copy_(best)
        self.checked, self.checked_step = state["budget_at"].tolist()
        self.best_done, self.last, *shares = numbers
        for replay, share in zip(self.replays, shares, strict=True):
            if not 0 <= share < 1:
                raise ValueError("the saved state holds a share that no step gives")
            replay.share = share
