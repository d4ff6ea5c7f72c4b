"""The LoRA linears that share an input, as registered ops over the Triton kernels.

    S_i  = scaling_i x A_iᵀ                           [T, ΣR]   x read once for all members
    y_i  = x W_iᵀ + S_i B_iᵀ (+ bias_i)               [T, N_i]  written once
    dS_i = scaling_i dy_i B_i                         [T, ΣR]
    dx   = Σ_i dy_i W_i + dS [A_0; A_1; ..]           [T, K]    one kernel, written once
    dA   = dSᵀ x                                      [ΣR, K]   its row blocks are the dA_i
    dB_i = dy_iᵀ S_i                                  [N_i, R_i]

gate/up adds h = act(y_0) · y_1 in the same kernel and keeps y_0 and y_1 for the backward. With
`owners` (lora_many.py) A is [E, R, K] and B [E, N, R], and each row takes its own adapter's.
lora_autograd.py calls the functions directly; torch.compile sees the ops of the same name.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from liftcore.kernels import lora_many_plain
from liftcore.kernels import lora_triton as kernels
from liftcore.kernels.device import on_device
from liftcore.kernels.lora_many_triton import own_outer, own_rows
from liftcore.kernels.lora_plain import stack
from liftcore.kernels.lora_split_triton import split_product


def with_low_rank(
    x: Tensor,  # [T, K]
    weight: Tensor,  # [N, K]
    s: Tensor,  # [T, R]
    lora_b: Tensor,  # [N, R]
    bias: Tensor | None,  # [N]
    owners: Tensor | None = None,  # int32 [n]
) -> Tensor:
    """y [T, N] of one member."""
    y, pairs = x.new_empty(x.shape[0], weight.shape[0]), [(x, rows(weight))]
    return kernels.chain(y, s, lora_b, pairs, bias=bias, nt=True, owners=owners)


def input_gradient(
    dys: Sequence[Tensor],  # [T, N_i]
    ds: Tensor,  # [T, ΣR]
    weights: Sequence[Tensor],  # [N_i, K]
    lora_a: Tensor,  # [ΣR, K]
    owners: Tensor | None = None,  # int32 [n]
) -> Tensor:
    """dx [T, K] of all members."""
    dx = ds.new_empty(ds.shape[0], lora_a.shape[-1])
    pairs = list(zip(dys, map(rows, weights), strict=True))
    return kernels.chain(dx, ds, rows(lora_a), pairs, nt=False, owners=owners)


def lora_forward(
    x: Tensor,  # [T, K]
    weights: Sequence[Any],  # [N_i, K]
    lora_a: Sequence[Tensor],  # [R_i, K]
    lora_b: Sequence[Tensor],  # [N_i, R_i]
    scalings: Sequence[float],
    biases: Sequence[Tensor | None],  # [N_i]
    member: Callable[..., Tensor] | None = None,
    owners: Tensor | None = None,  # int32 [n]
) -> list[Tensor]:
    """[y_0, .., S] for x [T, K]; `member` is with_low_rank() for weights of its own kind."""
    x, lora_b = rows(x), [rows(b) for b in lora_b]
    member = member or partial(with_low_rank, owners=owners)
    with on_device(x):
        s = down(x, lora_a, scalings, owners)
        parts = s.split([b.shape[-1] for b in lora_b], dim=1)
        members = zip(weights, parts, lora_b, biases, strict=True)
        out = [member(x, *each) for each in members]
    return [*out, s]


def lora_backward(
    dys: Sequence[Tensor],  # [T, N_i]
    x: Tensor | None,  # [T, K]
    s: Tensor | None,  # [T, ΣR]
    weights: Sequence[Any],  # [N_i, K]
    lora_a: Sequence[Tensor],  # [R_i, K]
    lora_b: Sequence[Tensor],  # [N_i, R_i]
    scalings: Sequence[float],
    base: Callable[..., Tensor] | None = None,
    owners: Tensor | None = None,  # int32 [n]
) -> list[Tensor]:
    """[dx] + [dA, all members' rows] + [dB_0, ..], each part only where what it reads is given.

    dx reads weights and lora_a, which may be empty; dA reads x, and dB reads S. `base` is
    input_gradient() for weights of its own kind.
    """
    dys, lora_b = ([rows(m) for m in ms] for ms in (dys, lora_b))
    ranks, tokens = [b.shape[-1] for b in lora_b], dys[0].shape[0]
    base = base or partial(input_gradient, owners=owners)
    need_ds = bool(weights) or x is not None
    ds, out, db = dys[0].new_empty(tokens if need_ds else 0, sum(ranks)), [], []
    s_parts = [None] * len(dys) if s is None else s.split(ranks, 1)
    members = zip(dys, lora_b, s_parts, ds.split(ranks, 1), scalings, strict=True)
    with on_device(ds):
        for dy, b, s_part, ds_part, scaling in members:
            # Both read dy: the second finds what fits of it in the L2 cache.
            if need_ds:
                narrow(ds_part, dy, b, "nn", owners, scaling)
            if s_part is not None:
                db.append(outer(b.new_empty(b.shape), dy, s_part, owners))
        if weights:
            out.append(base(dys, ds, weights, below(lora_a, owners)))
        if x is not None:
            da = ds.new_empty(*lora_b[0].shape[:-2], ds.shape[1], x.shape[1])
            out.append(outer(da, ds, rows(x), owners))
    return out + db


def gate_up_forward(
    x: Tensor,  # [T, K]
    weights: Sequence[Tensor],  # [N_i, K]
    lora_a: Sequence[Tensor],  # [R_i, K]
    lora_b: Sequence[Tensor],  # [N_i, R_i]
    scalings: Sequence[float],
    biases: Sequence[Tensor | None],  # [N_i]
    gelu: bool,
    keep: bool,
    owners: Tensor | None = None,  # int32 [n]
) -> list[Tensor]:
    """[h, gate, up, S]; gate and up are empty without keep."""
    x, weights, lora_b = rows(x), [rows(w) for w in weights], [rows(b) for b in lora_b]
    with on_device(x):
        s = down(x, lora_a, scalings, owners)
        parts = s.split([b.shape[-1] for b in lora_b], dim=1)
        out = kernels.gate_up(
            x, weights, parts, lora_b, biases, gelu=gelu, keep=keep, owners=owners
        )
    return [*out, s]


def swiglu_backward(dh: Tensor, gate: Tensor, up: Tensor, gelu: bool) -> tuple[Tensor, Tensor]:
    """Gradients of gate and up."""
    with on_device(gate):
        return kernels.swiglu_backward(dh.contiguous(), gate, up, gelu)


def down(
    x: Tensor, lora_a: Sequence[Tensor], scalings: Sequence[float], owners: Tensor | None = None
) -> Tensor:
    """S [T, ΣR], the scaling_i x A_iᵀ side by side: one product where all scalings are one."""
    if len(set(scalings)) == 1:
        a = rows(below(lora_a, owners))
        return narrow(x.new_empty(x.shape[0], a.shape[-2]), x, a, "nt", owners, scalings[0])
    ranks = [a.shape[-2] for a in lora_a]
    s = x.new_empty(x.shape[0], sum(ranks))
    for part, a, scaling in zip(s.split(ranks, 1), lora_a, scalings, strict=True):
        narrow(part, x, rows(a), "nt", owners, scaling)
    return s


def below(lora_a: Sequence[Tensor], owners: Tensor | None) -> Tensor:
    """The A of all members, one below the other: [ΣR, K], or [E, ΣR, K] with owners."""
    return stack(lora_a) if owners is None else lora_many_plain.stack(lora_a)


def narrow(
    out: Tensor, p: Tensor, q: Tensor, layout: str, owners: Tensor | None, scale: float = 1.0
) -> Tensor:
    """out [T, R] = scale · p op(q), with owners of each row's own q; layouts "nt" and "nn"."""
    if owners is None:
        return split_product(out, p, q, layout, scale)
    return own_rows(out, p, q, owners, layout, scale)


def outer(out: Tensor, p: Tensor, q: Tensor, owners: Tensor | None) -> Tensor:
    """out [M, N] = pᵀ q, with owners [E, M, N] over the rows of each adapter."""
    if owners is None:
        return split_product(out, p, q, "tn")
    return own_outer(out, p, q, owners)


def rows(matrix: Tensor) -> Tensor:
    """The matrix, or each of a stack, with contiguous rows that do not overlap; itself where they
    are already."""
    if matrix.stride(-1) == 1 and matrix.stride(-2) >= matrix.shape[-1]:
        return matrix
    return matrix.contiguous()


def _fake_forward(x: Tensor, weights: list[Tensor], lora_a: list[Tensor], *_: Any) -> list[Tensor]:
    rank = sum(a.shape[0] for a in lora_a)
    return [x.new_empty(x.shape[0], n) for n in (*(w.shape[0] for w in weights), rank)]


def _fake_backward(
    dys: list[Tensor], x: Tensor | None, s: Tensor | None, weights: list[Tensor],
    lora_a: list[Tensor], lora_b: list[Tensor], scalings: list[float],
) -> list[Tensor]:  # fmt: skip
    out = [dys[0].new_empty(dys[0].shape[0], w.shape[1]) for w in weights[:1]]
    if x is not None:
        out.append(x.new_empty(sum(b.shape[1] for b in lora_b), x.shape[1]))
    if s is not None:
        out.extend(b.new_empty(b.shape) for b in lora_b)
    return out


def _fake_gate_up(
    x: Tensor, weights: list[Tensor], lora_a: list[Tensor], lora_b: list[Tensor],
    scalings: list[float], biases: list[Tensor | None], gelu: bool, keep: bool,
) -> list[Tensor]:  # fmt: skip
    h, s = _fake_forward(x, weights[:1], lora_a)
    return [h, *(h.new_empty(h.shape if keep else (0, h.shape[1])) for _ in range(2)), s]


def _fake_swiglu(dh: Tensor, gate: Tensor, up: Tensor, gelu: bool) -> tuple[Tensor, Tensor]:
    return gate.new_empty(gate.shape), up.new_empty(up.shape)


_GROUP = "Tensor[] weights, Tensor[] lora_a, Tensor[] lora_b, float[] scalings"
_OPS = {
    lora_forward: (f"(Tensor x, {_GROUP}, Tensor?[] biases) -> Tensor[]", _fake_forward),
    lora_backward: (
        f"(Tensor[] dys, Tensor? x, Tensor? s, {_GROUP}) -> Tensor[]",
        _fake_backward,
    ),
    gate_up_forward: (
        f"(Tensor x, {_GROUP}, Tensor?[] biases, bool gelu, bool keep) -> Tensor[]",
        _fake_gate_up,
    ),
    swiglu_backward: (
        "(Tensor dh, Tensor gate, Tensor up, bool gelu) -> (Tensor, Tensor)",
        _fake_swiglu,
    ),
}
_library = torch.library.Library("liftcore", "FRAGMENT")
for _function, (_schema, _fake) in _OPS.items():
    _library.define(_function.__name__ + _schema, tags=(torch.Tag.pt2_compliant_tag,))
    _library.impl(_function.__name__, _function, "CompositeExplicitAutograd")
    torch.library.register_fake(f"liftcore::{_function.__name__}", _fake, lib=_library)
