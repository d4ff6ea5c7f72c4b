"""Whose rows a batch has, where the adapters of several documents are trained together."""

from __future__ import annotations

import warnings
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from liftcore.kernels.lora_many import lora_gate_up_many, lora_linear_many, lora_qkv_many


@dataclass
class Owners:
    """The slots of an adapter that the rows of a batch belong to, and the ops for these.

    slots   int32 [B], one for each row of the batch, rising; outside of rows() all are of slot 0
    """

    slots: Tensor

    @classmethod
    def first(cls, device: torch.device) -> Owners:
        """Those of batches whose rows all belong to slot 0."""
        return cls(torch.zeros(1, dtype=torch.int32, device=device))

    @contextmanager
    def rows(self, slots: Tensor) -> Generator[None]:
        """Within it the rows of a batch belong to these slots, in its backward too."""
        before, self.slots = self.slots, slots
        try:
            yield
        finally:
            self.slots = before

    def linear(self, x: Tensor, weight: Any, a: Tensor, b: Tensor, *rest: Any) -> Tensor:
        return lora_linear_many(x, weight, a, b, self.slots, *rest)

    def qkv(self, x: Tensor, weights: Any, a: Any, b: Any, *rest: Any) -> tuple[Tensor, ...]:
        return lora_qkv_many(x, weights, a, b, self.slots, *rest)

    def gate_up(self, x: Tensor, weights: Any, a: Any, b: Any, *rest: Any, **how: Any) -> Tensor:
        return lora_gate_up_many(x, weights, a, b, self.slots, *rest, **how)


@contextmanager
def without_warning() -> Generator[None]:
    """Within it torch does not say that the gradients of a layer lie apart: the matrices of one
    slot lie together instead."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="grad and param do not obey")
        yield
