"""The LoRA linears of many adapters in one batch over the Triton kernels.

The formulas are those of lora_fused.py, and so are the kernels of y, gate/up and dx, which take
each row's own adapter for their tail.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from liftcore.kernels import lora_triton as kernels
from liftcore.kernels.device import on_device
from liftcore.kernels.lora_fused import rows
from liftcore.kernels.lora_many_plain import stack
from liftcore.kernels.lora_many_triton import own_outer, own_rows


def lora_forward(
    x: Tensor,  # [T, K]
    weights: Sequence[Tensor],  # [N_i, K]
    lora_a: Sequence[Tensor],  # [E, R_i, K]
    lora_b: Sequence[Tensor],  # [E, N_i, R_i]
    scalings: Sequence[float],
    biases: Sequence[Tensor | None],  # [N_i]
    owners: Tensor,  # int32 [n]
) -> list[Tensor]:
    """[y_0, .., S] for x [T, K]."""
    x, weights, lora_b = rows(x), [rows(w) for w in weights], [own(b) for b in lora_b]
    with on_device(x):
        s = down(x, lora_a, owners)
        parts = s.split([b.shape[2] for b in lora_b], dim=1)
        out = [
            kernels.chain(
                x.new_empty(x.shape[0], w.shape[0]),
                *(part, b, [(x, w)]),
                scale=scaling,
                bias=bias,
                nt=True,
                owners=owners,
            )
            for w, b, part, scaling, bias in zip(
                weights, lora_b, parts, scalings, biases, strict=True
            )
        ]
    return [*out, s]


def lora_backward(
    dys: Sequence[Tensor],  # [T, N_i]
    x: Tensor | None,  # [T, K]
    s: Tensor | None,  # [T, ΣR]
    weights: Sequence[Tensor],  # [N_i, K]
    lora_a: Sequence[Tensor],  # [E, R_i, K]
    lora_b: Sequence[Tensor],  # [E, N_i, R_i]
    scalings: Sequence[float],
    owners: Tensor,  # int32 [n]
) -> list[Tensor]:
    """[dx] + [dA, all members' rows] + [dB_0, ..], each part only where what it reads is given.

    dx reads weights and lora_a, which may be empty; dA [E, ΣR, K] reads x, and dB reads S.
    """
    dys, weights, lora_b = [rows(m) for m in dys], [rows(w) for w in weights], [*map(own, lora_b)]
    ranks, tokens = [b.shape[2] for b in lora_b], dys[0].shape[0]
    need_ds = bool(weights) or x is not None
    ds, out, db = dys[0].new_empty(tokens if need_ds else 0, sum(ranks)), [], []
    s_parts = [None] * len(dys) if s is None else s.split(ranks, 1)
    members = zip(dys, lora_b, s_parts, ds.split(ranks, 1), scalings, strict=True)
    with on_device(ds):
        for dy, b, s_part, ds_part, scaling in members:
            if need_ds:
                own_rows(ds_part, dy, b, owners, "nn", scaling)
            if s_part is not None:
                db.append(own_outer(b.new_empty(b.shape), dy, s_part, owners, scaling))
        if weights:
            pairs = list(zip(dys, weights, strict=True))
            dx = ds.new_empty(tokens, weights[0].shape[1])
            out.append(kernels.chain(dx, ds, own(stack(lora_a)), pairs, nt=False, owners=owners))
        if x is not None:
            da = ds.new_empty(len(lora_b[0]), ds.shape[1], x.shape[1])
            out.append(own_outer(da, ds, rows(x), owners))
    return out + db


def gate_up_forward(
    x: Tensor,  # [T, K]
    weights: Sequence[Tensor],  # [N, K]
    lora_a: Sequence[Tensor],  # [E, R_i, K]
    lora_b: Sequence[Tensor],  # [E, N, R_i]
    scalings: Sequence[float],
    biases: Sequence[Tensor | None],  # [N]
    gelu: bool,
    keep: bool,
    owners: Tensor,  # int32 [n]
) -> list[Tensor]:
    """[h, gate, up, S]; gate and up are empty without keep."""
    x, weights, lora_b = rows(x), [rows(w) for w in weights], [own(b) for b in lora_b]
    with on_device(x):
        s = down(x, lora_a, owners)
        parts = s.split([b.shape[2] for b in lora_b], dim=1)
        out = kernels.gate_up(
            x, weights, parts, lora_b, scalings, biases, gelu=gelu, keep=keep, owners=owners
        )
    return [*out, s]


def down(x: Tensor, lora_a: Sequence[Tensor], owners: Tensor) -> Tensor:
    """S = x Aᵀ [T, ΣR], each row with the A of its own adapter, for all members at once."""
    a = own(stack(lora_a))
    return own_rows(x.new_empty(x.shape[0], a.shape[1]), x, a, owners, "nt")


def own(matrices: Tensor) -> Tensor:
    """Matrices [E, *, *] with contiguous rows that do not overlap; themselves where they are."""
    if matrices.stride(2) == 1 and matrices.stride(1) >= matrices.shape[2]:
        return matrices
    return matrices.contiguous()
