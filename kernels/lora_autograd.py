"""The LoRA linears in autograd: what is kept for the backward, and which gradients are formed.

    kept          for       bytes                               where a gradient is taken by
    S             dB        T · ΣR · itemsize                   any B
    x             dA        T · K · itemsize                    any A
    W_i, A_i      dx        none: they are parameters           x
    B_i           dS        none                                any
    y_0, y_1      gate/up   2 · T · N · itemsize                any

(S is scaled already where lora_fused.py made it. Under autocast the parameters are cast, and the
copies are kept.) So with a frozen A (LoRA-FA, arXiv 2308.03303) x is not kept and dA not formed. In
the first layer that trains x takes no gradient either: there dB is all. Members of a group may
differ: what one of them takes is formed for all, and the rest is dropped.

Two sets of functions compute the same, lora_plain.py and lora_fused.py, and have the same names; so
do two more for weights in FP8, which the context holds as they are, and the object that stands in
the place of a way where many adapters share a batch (lora_many.py): A is [E, R, K] there, and B
[E, N, R].
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from liftcore.kernels import lora_fp8_plain, lora_plain
from liftcore.kernels.autocast import without_autocast
from liftcore.kernels.fp8 import Fp8Weight, Weight


def functions(way: Any, like: Tensor) -> Any:
    """Where lora_forward and the other three are; for who traces Triton's, the registered ops."""
    if not isinstance(way, str):
        return way
    if way == "plain":
        return lora_plain
    if way == "fp8 plain":
        return lora_fp8_plain
    if way == "fp8 triton":
        from liftcore.kernels import lora_fp8_triton

        return lora_fp8_triton
    from liftcore.kernels import lora_fused

    traced = torch.compiler.is_compiling() or type(like) is not Tensor
    return torch.ops.liftcore if traced else lora_fused


class LoraGroup(torch.autograd.Function):
    """apply(way, x, scalings, *weights, *lora_a, *lora_b, *biases) -> (y_0, ..)."""

    @staticmethod
    def forward(
        ctx: Any, way: Any, x: Tensor, scalings: list[float], *tensors: Tensor | None
    ) -> tuple[Tensor, ...]:
        members = parts_of(tensors, 4)
        *ys, s = functions(way, x).lora_forward(x, *members[:3], scalings, members[3])
        ctx.save_for_backward(*_needed(ctx, x, s, *members[:3]))
        ctx.way, ctx.scalings = way, scalings
        return tuple(ys)

    @staticmethod
    @once_differentiable
    @without_autocast
    def backward(ctx: Any, *dys: Tensor) -> tuple[Tensor | None, ...]:
        return _gradients(ctx, list(dys), *ctx.saved_tensors)


class LoraGateUp(torch.autograd.Function):
    """apply(way, x, scalings, *weights, *lora_a, *lora_b, *biases, gelu, keep) -> act(y_0) · y_1.

    Without keep nothing is written for a backward.
    """

    @staticmethod
    def forward(ctx: Any, way: Any, x: Tensor, scalings: list[float], *rest: Any) -> Tensor:
        *tensors, gelu, keep = rest
        members = parts_of(tensors, 4)
        h, gate, up, s = functions(way, x).gate_up_forward(
            x, *members[:3], scalings, members[3], gelu, keep
        )
        ctx.save_for_backward(gate, up, *_needed(ctx, x, s, *members[:3]))
        ctx.way, ctx.scalings, ctx.gelu = way, scalings, gelu
        return h

    @staticmethod
    @once_differentiable
    @without_autocast
    def backward(ctx: Any, dh: Tensor) -> tuple[Tensor | None, ...]:
        gate, up, *saved = ctx.saved_tensors
        dys = list(functions(ctx.way, dh).swiglu_backward(dh, gate, up, ctx.gelu))
        return (*_gradients(ctx, dys, *saved), None, None)


class LoraBranch(torch.autograd.Function):
    """apply(x, y, A, B, scaling) -> y + scaling (x Aᵀ) Bᵀ: y = base(x) and its dx are another's."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, y: Tensor, lora_a: Tensor, lora_b: Tensor, scaling: float
    ) -> Tensor:
        s = F.linear(x, lora_a)  # [T, R]
        _, _, need_da, need_db, _ = ctx.needs_input_grad
        ctx.save_for_backward(x if need_da else None, s if need_db else None, lora_a, lora_b)
        ctx.scaling = scaling
        return torch.addmm(y, s, lora_b.T, alpha=scaling)  # [T, N]

    @staticmethod
    @once_differentiable
    @without_autocast
    def backward(ctx: Any, dout: Tensor) -> tuple[Tensor | None, ...]:
        x, s, lora_a, lora_b = ctx.saved_tensors
        need_dx, need_dy, need_da, need_db, _ = ctx.needs_input_grad
        dx = da = db = None
        if need_dx or need_da:
            ds = (dout @ lora_b).mul_(ctx.scaling)  # [T, R]
        if need_dx:
            dx = ds @ lora_a
        if need_da:
            da = ds.T @ x
        if need_db:
            db = (dout.T @ s).mul_(ctx.scaling)
        return dx, dout if need_dy else None, da, db, None


def parts_of(tensors: Sequence[Any], count: int) -> list[list[Any]]:
    """The tensors cut into `count` lists of one length."""
    n = len(tensors) // count
    return [list(tensors[i : i + n]) for i in range(0, count * n, n)]


def _wanted(ctx: Any, n: int) -> tuple[bool, tuple[bool, ...], tuple[bool, ...]]:
    """Who takes a gradient: x, each member's A, each member's B."""
    wanted = ctx.needs_input_grad  # of (way, x, scalings, *weights, *lora_a, *lora_b, ..)
    return wanted[1], wanted[3 + n : 3 + 2 * n], wanted[3 + 2 * n : 3 + 3 * n]


def _needed(
    ctx: Any,
    x: Tensor,  # [T, K]
    s: Tensor,  # [T, ΣR]
    weights: list[Weight],
    lora_a: list[Tensor],
    lora_b: list[Tensor],
) -> tuple[Tensor | None, ...]:
    """What the backward reads: (x or None, S or None, *lora_b), and *weights and *lora_a for dx.

    Weights in FP8 are no tensors: the context holds them.
    """
    need_dx, need_da, need_db = _wanted(ctx, len(weights))
    ctx.weights = [w for w in weights if need_dx and isinstance(w, Fp8Weight)]
    of_dx = (*(w for w in weights if isinstance(w, Tensor)), *lora_a) if need_dx else ()
    return x if any(need_da) else None, s if any(need_db) else None, *lora_b, *of_dx


def _gradients(
    ctx: Any, dys: list[Tensor], x: Tensor | None, s: Tensor | None, *tensors: Tensor
) -> tuple[Tensor | None, ...]:
    """Gradients for (way, x, scalings, *weights, *lora_a, *lora_b, *biases)."""
    n = len(dys)
    need_dx, need_da, need_db = _wanted(ctx, n)
    if not need_dx:
        lora_b, weights, lora_a = list(tensors), [], []
    elif ctx.weights:
        (lora_b, lora_a), weights = parts_of(tensors, 2), ctx.weights
    else:
        lora_b, weights, lora_a = parts_of(tensors, 3)
    ops = functions(ctx.way, dys[0])
    out = ops.lora_backward(dys, x, s, weights, lora_a, lora_b, ctx.scalings)
    dx, out = (out[0], out[1:]) if need_dx else (None, out)
    da, db = [None] * n, [None] * n
    if any(need_da):
        rows = out[0].split([b.shape[-1] for b in lora_b], dim=-2)
        da, out = [d if need else None for d, need in zip(rows, need_da, strict=True)], out[1:]
    if any(need_db):
        db = [d if need else None for d, need in zip(out, need_db, strict=True)]
    return (None, dx, None, *[None] * n, *da, *db, *[None] * n)
