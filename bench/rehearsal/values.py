"""What the host reads of the stand-in's tensors: no results, but what lets a program go on."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

# What the host reads: small, not 0, and exact in 16 bits.
NUMBER = 2.0**-20
# What is true nowhere, as the host is told, and what keeps or turns that round.
NOWHERE, KEPT, TURNED = ("isnan", "isinf", "ne"), ("any", "all"), ("bitwise_not", "logical_not")
BOTH = ("bitwise_and", "logical_and")


def tensors_of(values: Iterable[Any]) -> Iterator[Tensor]:
    """Those among an op's arguments or results, and in lists of them."""
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from tensors_of(value)


def is_nowhere(func: Any, read: list[Tensor]) -> bool:
    """Whether a mask that an op makes is true nowhere: no number is infinite or wrong."""
    name, before = func.overloadpacket.__name__, [getattr(t, "_nowhere", False) for t in read]
    first = before[:1] == [True]
    known = name in NOWHERE or (first and name in KEPT) or (not first and name in TURNED)
    return known or (name in BOTH and any(before))


def number_of(tensor: Tensor, dtype: torch.dtype) -> float | int | bool:
    if dtype == torch.bool:
        return not getattr(tensor, "_nowhere", False)
    return NUMBER if dtype.is_floating_point else 1
