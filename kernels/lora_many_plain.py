"""The LoRA linears of many adapters in one batch in plain PyTorch: the path of a CPU.

The products with the frozen weights run once over all rows, and a loop over the adapters adds the
low-rank tails of their own rows. The formulas are those of lora_plain.py.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from liftcore.kernels.lora_plain import PLAIN, write_ds


def stack(matrices: Sequence[Tensor]) -> Tensor:
    """The matrices [E, R_i, K] as one [E, ΣR, K]; a view where each adapter's lie one behind the
    other in one buffer already."""
    first, total = matrices[0], 0
    end, buffer = first.data_ptr(), first.untyped_storage().data_ptr()
    for m in matrices:
        width = m.shape[2]
        here = m.data_ptr() == end and m.untyped_storage().data_ptr() == buffer
        if type(m) not in PLAIN or not here or m.stride() != (first.stride(0), width, 1):
            return torch.cat(list(matrices), dim=1)
        total += m.shape[1]
        end += m.shape[1] * width * m.element_size()
    return first.as_strided((len(first), total, first.shape[2]), first.stride())


def own_rows(owners: Tensor, rows: int) -> list[tuple[int, slice]]:
    """(adapter, its rows) of those that have any; waits for a device that is not a CPU."""
    each, spans = rows // max(1, len(owners)), {}
    for i, e in enumerate(owners.tolist()):
        first, _ = spans.get(e, (i, i))
        spans[e] = first, i + 1
    return [(e, slice(first * each, last * each)) for e, (first, last) in spans.items()]


def lora_forward(
    x: Tensor,  # [T, K]
    weights: Sequence[Tensor],  # [N_i, K]
    lora_a: Sequence[Tensor],  # [E, R_i, K]
    lora_b: Sequence[Tensor],  # [E, N_i, R_i]
    scalings: Sequence[float],
    biases: Sequence[Tensor | None],  # [N_i]
    owners: Tensor,  # int32 [n]
) -> list[Tensor]:  # [T, N_i], then [T, ΣR]
    """[y_0, .., S] for x [T, K]."""
    ranks, a = [b.shape[2] for b in lora_b], stack(lora_a)
    s = x.new_empty(x.shape[0], sum(ranks))
    ys = [F.linear(x, w, bias) for w, bias in zip(weights, biases, strict=True)]
    for e, rows in own_rows(owners, len(x)):
        torch.mm(x[rows], a[e].T, out=s[rows])
        for y, b, part, scale in zip(ys, lora_b, s[rows].split(ranks, 1), scalings, strict=True):
            y[rows].addmm_(part, b[e].T, alpha=scale)
    return [*ys, s]


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
    tokens, ranks = dys[0].shape[0], [b.shape[2] for b in lora_b]
    ds = dys[0].new_empty(tokens if weights or x is not None else 0, sum(ranks))
    a = stack(lora_a) if weights else None
    dx = torch.mm(dys[0], weights[0]) if weights else None
    for dy, w in zip(dys[1:], weights[1:], strict=False):
        assert dx is not None
        dx.addmm_(dy, w)
    adapters = len(lora_b[0])
    # Zeros for the adapters that have no rows.
    da = None if x is None else x.new_zeros(adapters, sum(ranks), x.shape[1])
    dbs = [] if s is None else [b.new_zeros(b.shape) for b in lora_b]
    for e, rows in own_rows(owners, tokens):
        if len(ds):
            write_ds(ds[rows], [dy[rows] for dy in dys], [b[e] for b in lora_b], scalings)
        if dx is not None and a is not None:
            dx[rows].addmm_(ds[rows], a[e])
        if da is not None and x is not None:
            torch.mm(ds[rows].T, x[rows], out=da[e])
        if s is not None:
            for dy, db, part, scale in zip(
                dys, dbs, s[rows].split(ranks, 1), scalings, strict=True
            ):
                db[e].addmm_(dy[rows].T, part, beta=0, alpha=scale)
    return [*([] if dx is None else [dx]), *([] if da is None else [da]), *dbs]
