"""Autocast for ops that are autograd Functions: the dtype of autocast in, and none inside.

torch casts the inputs of its own linear one product at a time; a Function whose products follow
each other in place needs one dtype throughout, in its forward and its backward.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def autocasting(x: Tensor) -> bool:
    """Whether autocast is on for the device of x."""
    device = x.device.type
    return device != "meta" and torch.is_autocast_enabled(device)


def cast(t: Tensor, x: Tensor) -> Tensor:
    """t in the dtype of autocast where it is on for the device of x, else as it is.

    fp64 stays: autocast leaves it alone everywhere.
    """
    if not autocasting(x) or t.dtype == torch.float64:
        return t
    return t.to(torch.get_autocast_dtype(x.device.type))


def without_autocast(backward: Callable) -> Callable:
    """A backward whose products run in the dtypes of the forward, whatever is on by then."""

    @functools.wraps(backward)
    def run(ctx: Any, *dys: Tensor) -> Any:
        if not autocasting(dys[0]):
            return backward(ctx, *dys)
        with torch.autocast(dys[0].device.type, enabled=False):
            return backward(ctx, *dys)

    return run
