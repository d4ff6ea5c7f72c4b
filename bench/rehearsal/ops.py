"""Ops that the stand-in takes into its own hands: what crosses between host and device, and what
liftcore registers, whose code runs as it does on a card."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from bench.rehearsal.values import number_of, tensors_of
from liftcore.kernels import adamw, head_loss, lora_fused, segment_batch

ops = torch.ops.aten
_Base = torch._C.TensorBase


def _item(card: Any, func: Any, args: tuple, kwargs: dict) -> Any:
    if not card.has(args[0]):
        return func(*args, **kwargs)
    card.wait("the host reads a number")
    return number_of(args[0], args[0].dtype)


def _equal(card: Any, func: Any, args: tuple, kwargs: dict) -> Any:
    if not card.has(args[0]) and not card.has(args[1]):
        return func(*args, **kwargs)
    card.look(func, args, list(args), [t for t in args if card.has(t)])
    card.wait("the host compares")
    return args[0].shape == args[1].shape


def _to(card: Any, func: Any, args: tuple, kwargs: dict) -> Any:
    (source,) = args
    there = kwargs.get("device") or _Base.device.__get__(source)
    if there.type == "cpu" and card.has(source):
        if card.capture is not None or not kwargs.get("non_blocking"):
            card.wait("a copy to the host")
        return card.numbers(source, kwargs.get("dtype"))
    if there.type == "meta" and not card.has(source):
        _pageable(card, source, kwargs.get("non_blocking", False))
    card.inside += 1
    try:
        out = func(*args, **kwargs)
    finally:
        card.inside -= 1
    if there.type == "meta":
        card.ran(func, [source] if card.has(source) else [], out)
    return out


def _copy(card: Any, func: Any, args: tuple, kwargs: dict) -> Any:
    target, source = args[:2]
    quick = args[2] if len(args) > 2 else kwargs.get("non_blocking", False)
    if card.has(target) and not card.has(source):
        if source.shape.numel() != 1 or source.ndim:
            _pageable(card, source, quick)
        torch.broadcast_shapes(target.shape, source.shape)
        card.ran(func, [target], target)
        return target
    if card.has(source) and not card.has(target):
        if card.capture is not None or not (quick and card.is_pinned(target)):
            card.wait("a copy to the host")
        return target.fill_(number_of(source, target.dtype))
    card.inside += 1
    try:
        out = func(*args, **kwargs)
    finally:
        card.inside -= 1
    if card.has(target):
        card.ran(func, [target, source], out)
    return out


def _pageable(card: Any, source: Tensor, quick: bool) -> None:
    """A copy from the host: from pinned memory it waits for nothing, but has no place in a graph,
    which would copy again what lies there by then."""
    if card.capture is not None or not (quick and card.is_pinned(source)):
        card.wait("a copy from the host" + ("" if card.is_pinned(source) else "'s pageable memory"))


def _pin(card: Any, func: Any, args: tuple, kwargs: dict) -> Any:
    return card.pin(args[0].clone())


def _rows(card: Any, func: Any, args: tuple, kwargs: dict) -> Any:
    """nonzero: all entries, or none."""
    if not card.has(args[0]):
        return func(*args, **kwargs)
    card.wait("a size that the device knows")
    rows = 0 if getattr(args[0], "_nowhere", False) else args[0].numel()
    out = torch.empty(rows, args[0].ndim, dtype=torch.int64, device="meta")
    card.keep(out)
    return out


def _isin(card: Any, func: Any, args: tuple, kwargs: dict) -> Any:
    """Whose own form for the meta device reads a number."""
    if not card.has(args[0]):
        return func(*args, **kwargs)
    card.look(func, args, list(tensors_of(args)), list(tensors_of(args)))
    out = torch.empty(args[0].shape, dtype=torch.bool, device="meta")
    card.ran(func, list(tensors_of(args)), out)
    return out


def _nothing(card: Any, func: Any, args: tuple, kwargs: dict) -> Any:
    return None


SPECIAL = {
    ops._local_scalar_dense.default: _item,
    ops.equal.default: _equal,
    ops._to_copy.default: _to,
    ops.copy_.default: _copy,
    ops._pin_memory.default: _pin,
    ops.nonzero.default: _rows,
    ops.isin.Tensor_Tensor: _isin,
    ops.record_stream.default: _nothing,
}
OWN = {
    "head_loss": head_loss._head_loss,
    "head_loss_scale": head_loss._head_loss_scale,
    "lora_adamw": adamw._lora_adamw._init_fn,
    "segment_batch": segment_batch._segment_batch._init_fn,
    **{f.__name__: f for f in lora_fused._OPS},
}
