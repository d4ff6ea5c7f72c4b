"""Triton kernels of the LoRA tails of many adapters in one batch.

    C[t] = scale · P[t] op(Q[e])    e = owners[t // each], the adapter of row t
                                    "nt" P Qᵀ: S = scaling · x Aᵀ    "nn" P Q: dS = scaling · dy B
    C[e] = P[e]ᵀ Q[e]               over the rows of adapter e: dA = dSᵀ x, dB = dyᵀ S

The rows are sorted by adapter. A tile of rows that holds several of them walks over these and masks
the others' rows, so that an adapter may begin at any row. There are no atomics: the first product
is split over its depth as in lora_split_triton.py, and in the second one program sums all rows of
an adapter, in order. An adapter without rows gets zeros.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from liftcore.kernels.device import architecture, processors
from liftcore.kernels.lora_split_triton import BLOCK, MIN_SPAN, split, sum_kernel
from liftcore.kernels.tiles import ceil_div, pick_split
from liftcore.kernels.tiling import (
    corner_of,
    even,
    launch,
    load_tile,
    rows_aligned,
    store_tile,
    sure,
)


@triton.jit
def add_own_product(
    acc, p, q, owners, each, stride_e, row, col, rows, cols, begin, end, depth,
    stride_p, stride_q,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, NT: tl.constexpr, EVEN: tl.constexpr,
):  # fmt: skip
    """acc + the tile at (row, col) of p op(q[e]) over depth begin to end, e being each row's
    adapter; q[e] lies stride_e elements behind the one before. EVEN of depth, strides and, without
    NT, cols."""
    depth = sure(depth, EVEN)
    stride_e = sure(stride_e, EVEN)
    stride_p = sure(stride_p, EVEN)
    r = row + tl.arange(0, BM)
    mine = tl.load(owners + r // each, mask=r < rows, other=-1)  # [BM]
    first = tl.load(owners + row // each)
    last = tl.load(owners + (min(row + BM, rows) - 1) // each)
    corner = p + tl.cast(row, tl.int64) * stride_p
    for e in tl.range(first, last + 1):
        own = q + tl.cast(e, tl.int64) * stride_e
        for k in tl.range(begin, end, BK):
            c = k + tl.arange(0, BK)
            inside = (mine == e)[:, None] & (c < depth)[None, :]
            offsets = tl.arange(0, BM)[:, None] * stride_p + c[None, :]
            a = tl.load(corner + offsets, mask=inside, other=0.0)  # [BM, BK]
            if NT:
                b = load_tile(own, col, k, cols, depth, stride_q, BN, BK, False, EVEN).T  # [BK, BN]
            else:
                b = load_tile(own, k, col, depth, cols, stride_q, BK, BN, False, EVEN)  # [BK, BN]
            acc = tl.dot(a, b, acc, input_precision="ieee")
    return acc


@triton.jit
def own_rows_kernel(
    c, p, q, owners, each, stride_e, scale, rows, cols, depth, span, stride_c, stride_p, stride_q,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, GROUP: tl.constexpr,
    NT: tl.constexpr,
):  # fmt: skip
    """c[i] [rows, cols] = scale · P op(Q[e]) over depth i·span to (i + 1)·span."""
    m, n = corner_of(tl.program_id(0), rows, cols, BM, BN, GROUP)
    part = tl.program_id(1)
    acc = tl.zeros((BM, BN), tl.float32)
    acc = add_own_product(
        acc, p, q, owners, each, stride_e, m, n, rows, cols, part * span,
        min((part + 1) * span, depth), depth, stride_p, stride_q, BM, BN, BK, NT, False,
    )  # fmt: skip
    c += tl.cast(part, tl.int64) * rows * cols
    store_tile(c, acc * scale, m, n, rows, cols, stride_c, BM, BN, False, False)


@triton.jit
def own_outer_kernel(
    c, p, q, owners, each, stride_e, rows, cols, count, stride_c, stride_p, stride_q,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, GROUP: tl.constexpr,
    COUNT: tl.constexpr,
):  # fmt: skip
    """c[e] [rows, cols] = Pᵀ Q over the rows of adapter e; owners [count]."""
    m, n = corner_of(tl.program_id(0), rows, cols, BM, BN, GROUP)
    e = tl.program_id(1)
    i = tl.arange(0, COUNT)
    owner = tl.load(owners + i, mask=i < count, other=2147483647)
    begin = tl.sum((owner < e).to(tl.int32), 0) * each
    end = tl.sum((owner <= e).to(tl.int32), 0) * each
    acc = tl.zeros((BM, BN), tl.float32)
    for k in tl.range(begin, end, BK):
        a = load_tile(p, k, m, end, rows, stride_p, BK, BM, False, False).T  # [BM, BK]
        b = load_tile(q, k, n, end, cols, stride_q, BK, BN, False, False)  # [BK, BN]
        acc = tl.dot(a, b, acc, input_precision="ieee")
    c += tl.cast(e, tl.int64) * stride_e
    store_tile(c, acc, m, n, rows, cols, stride_c, BM, BN, False, False)


def ownership(owners: Tensor | None, rows: int, *stacks: Tensor) -> list:
    """What a kernel takes of owners [n]: it, the rows of each, the stride of each stack [E, *, *];
    nothing of all without."""
    if owners is None:
        return [None, None, *[None] * len(stacks)]
    return [owners, rows // len(owners), *(stack.stride(0) for stack in stacks)]


def own_rows(
    out: Tensor, p: Tensor, q: Tensor, owners: Tensor, layout: str, scale: float = 1.0
) -> Tensor:
    """out [T, N] = scale · p op(q[e]) with p [T, K], q [E, N, K] for layout "nt", [E, K, N] for
    "nn", and owners int32 [n]: row t belongs to adapter owners[t // (T / n)].

    Matrices have contiguous rows. Returns out.
    """
    (rows, cols), depth = out.shape, p.shape[1]
    arch = architecture(p.device)
    tile = pick_split("down", arch, p.element_size(), rows, cols, rows_aligned(p, q[0]))
    tiles = ceil_div(rows, tile.bm) * ceil_div(cols, tile.bn)
    least = MIN_SPAN if arch else 1
    span, spans = split(depth, tiles, processors(p.device), tile.bk, least)
    parts, stride = out, out.stride(0)
    if spans > 1:
        parts, stride = p.new_empty((spans, rows, cols), dtype=torch.float32), cols
    args = (
        parts, p, q, *ownership(owners, rows, q), scale, rows, cols, depth, span,
        stride, p.stride(0), q.stride(1),
    )  # fmt: skip
    constexprs = dict(**tile.shape, NT=layout == "nt")
    launch(own_rows_kernel, (tiles, spans), args, constexprs, tile.warps, tile.stages)
    if spans > 1:
        size = rows * cols
        args, flags = (out, parts, spans, rows, cols, out.stride(0)), even(cols, out.stride(0))
        launch(sum_kernel, (ceil_div(size, BLOCK),), args, {"BLOCK": BLOCK, "EVEN": flags})
    return out


def own_outer(out: Tensor, p: Tensor, q: Tensor, owners: Tensor) -> Tensor:
    """out [E, M, N] = p[e]ᵀ q[e] over the rows of each adapter, p [T, M], q [T, N], and
    owners as in own_rows. Returns out."""
    adapters, rows, cols = out.shape
    arch = architecture(p.device)
    tile = pick_split("outer", arch, p.element_size(), rows, cols, rows_aligned(p, q))
    tiles = ceil_div(rows, tile.bm) * ceil_div(cols, tile.bn)
    count = len(owners)
    args = (
        out, p, q, *ownership(owners, p.shape[0], out), rows, cols, count,
        out.stride(1), p.stride(0), q.stride(0),
    )  # fmt: skip
    constexprs = dict(**tile.shape, COUNT=triton.next_power_of_2(count))
    launch(own_outer_kernel, (tiles, adapters), args, constexprs, tile.warps, tile.stages)
    return out
