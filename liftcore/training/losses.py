"""What the losses of a run say: whether it went well, and how."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from liftcore.errors import LiftError, NothingToLearnError

# Means that a curve of losses has, at most.
CURVE = 200


def check_some(steps: int) -> None:
    """Raises NothingToLearnError for a run that took no step."""
    if not steps:
        raise NothingToLearnError(
            "nothing to learn from: the document is too short, or no sample was made of it"
        )


def check(losses: Tensor, kept: str = "") -> None:
    """Raises LiftError for the first of the steps [n] whose loss is no number; kept: where the run
    goes on from, for the message."""
    failed = torch.nonzero(~torch.isfinite(losses))
    if len(failed):
        raise LiftError(
            f"the loss is no longer a number at step {int(failed[0]) + 1}: try a learning rate 3 "
            f"to 10 times smaller, or a longer warm-up.{kept}"
        )


def told_by(losses: Tensor, epochs: Sequence[int]) -> dict[str, Any]:
    """What a Result says of the losses [n] of steps and the epochs that these were in."""
    losses_of, parts = losses.cpu().numpy(), min(CURVE, len(losses))
    return {
        "loss": float(losses_of[np.array(epochs) == epochs[-1]].mean()),
        "curve": [round(float(part.mean()), 4) for part in np.array_split(losses_of, parts)],
    }
