"""The output of an accelerated model: its loss, and logits that are formed when they are read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only
from transformers.utils import ModelOutput

from liftcore.kernels.reference import soft_cap
from liftcore.model import Head


class Logits(Tensor):
    """Logits [..., V] without a gradient that take no memory until an op uses them.

    Trainer reads all values of an output before it knows whether it wants more than the loss.
    """

    @staticmethod
    def __new__(cls, x: Tensor, head: Head):
        shape = (*x.shape[:-1], head.weight.shape[0])
        return Tensor._make_wrapper_subclass(cls, shape, dtype=x.dtype, device=x.device)

    def __init__(self, x: Tensor, head: Head):
        self.x, self.head = x, head
        self.formed: Tensor | None = None

    def form(self) -> Tensor:
        if self.formed is None:
            self.formed = form(self.x, self.head)
        return self.formed

    @classmethod
    def __torch_dispatch__(  # ty: ignore[incompatible-method-override]  # torch calls it so
        cls, function: Callable, types: object, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if function is torch.ops.aten._to_copy.default and set(kwargs) == {"dtype"}:
            # Accelerate casts all outputs.
            return cls(args[0].x.to(kwargs["dtype"]), args[0].head)
        args, kwargs = tree_map_only(cls, cls.form, (args, kwargs))
        return function(*args, **kwargs)


def form(x: Tensor, head: Head) -> Tensor:
    """The logits [..., V] of x [..., K], in the dtype of x."""
    z = head.product(x) * head.logit_scale
    return soft_cap(z, head.softcap).to(x.dtype)


@dataclass
class LossOutput(ModelOutput):
    """The loss, and `logits` [..., V] in the dtype that the model gives them.

    In training they are computed when they are first read, by name, with their gradient, and
    the values hold what they are computed from: others copy an output by its values. In
    evaluation without gradients the values hold Logits instead.
    """

    loss: Tensor | None = None
    past_key_values: object | None = None
    hidden_states: tuple | None = None
    attentions: tuple | None = None
    head_input: Tensor | None = None  # [..., K]
    head: Head | None = None

    def __getattr__(self, name: str) -> Tensor:
        if name != "logits":
            raise AttributeError(f"{type(self).__name__} has no {name!r}")
        lazy = super().get("logits")
        if lazy is None:
            assert self.head_input is not None and self.head is not None
            logits = form(self.head_input, self.head)
        else:
            logits = lazy.form()
        self.__dict__["logits"] = logits
        return logits

    def __setitem__(self, key: str, value: object) -> None:
        super().__setitem__(key, value)
        if isinstance(value, Logits):
            del self.__dict__[key]

    def __contains__(self, key: object) -> bool:
        return key == "logits" or super().__contains__(key)

    def get(self, key: Any, default: Any = None) -> Any:
        return self.logits if key == "logits" else super().get(key, default)

    def __getitem__(self, key: Any) -> Any:  # ty: ignore[lost-keyword-for-regular-parameter]
        if key == "logits":
            return self.logits
        if key == "loss" or key == 0:
            return self.loss
        return super().__getitem__(key) if isinstance(key, str) else self.to_tuple()[key]

    def to_tuple(self) -> tuple:
        ours = ("loss", "logits", "head_input", "head")
        rest = (value for key, value in self.items() if key not in ours)
        return (self.loss, self.logits, *rest)
