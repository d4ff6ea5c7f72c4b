"""Triton kernels for the products whose result is small and whose depth is long.

    C = scale · op(P) op(Q)      "nt" P Qᵀ: S = scaling · x Aᵀ      "nn" P Q: dS = scaling · dy B
                                 "tn" Pᵀ Q: dA = dSᵀ x,  dB = dyᵀ S

There are too few tiles for a GPU, so the depth (K, N or T) is split into spans. Each span has
its own fp32 partial result, and a second kernel adds them in order: no atomics, so the same
inputs give the same bits.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from liftcore.kernels.device import architecture, processors
from liftcore.kernels.tiles import ceil_div, pick_split
from liftcore.kernels.tiling import (
    can_use_tma,
    corner_of,
    describe,
    even,
    launch,
    load_tile,
    rows_aligned,
    store_tile,
    sure,
)

# A span shorter than this is not worth a partial result of its own.
MIN_SPAN = 256
BLOCK = 1024  # elements a program of the sum takes


# As in lora_triton.py: compiled once, whatever the tokens, ranks and strides are.
@triton.jit(do_not_specialize=[
    "rows", "cols", "depth", "span", "stride_c", "stride_p", "stride_q"
])  # fmt: skip
def split_kernel(
    c, p, q, scale, rows, cols, depth, span, stride_c, stride_p, stride_q,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, GROUP: tl.constexpr,
    LAYOUT: tl.constexpr, TMA: tl.constexpr,
    EVEN_C: tl.constexpr, EVEN_P: tl.constexpr, EVEN_Q: tl.constexpr,
):  # fmt: skip
    """c[i] [rows, cols] = scale · op(P) op(Q) over depth i·span to (i + 1)·span, BK's multiple."""
    m, n = corner_of(tl.program_id(0), rows, cols, BM, BN, GROUP)
    part = tl.program_id(1)
    span = span // BK * BK
    acc = tl.zeros((BM, BN), tl.float32)
    for k in tl.range(part * span, min((part + 1) * span, depth), BK):
        if LAYOUT == "tn":
            a = load_tile(p, k, m, depth, rows, stride_p, BK, BM, TMA, EVEN_P).T  # [BM, BK]
        else:
            a = load_tile(p, m, k, rows, depth, stride_p, BM, BK, TMA, EVEN_P)  # [BM, BK]
        if LAYOUT == "nt":
            b = load_tile(q, n, k, cols, depth, stride_q, BN, BK, TMA, EVEN_Q).T  # [BK, BN]
        else:
            b = load_tile(q, k, n, depth, cols, stride_q, BK, BN, TMA, EVEN_Q)  # [BK, BN]
        acc = tl.dot(a, b, acc, input_precision="ieee")
    c += tl.cast(part, tl.int64) * rows * sure(cols, EVEN_C)
    store_tile(c, acc * scale, m, n, rows, cols, stride_c, BM, BN, False, EVEN_C)


@triton.jit(do_not_specialize=["count", "rows", "cols", "stride"])
def sum_kernel(
    out, parts, count, rows, cols, stride, BLOCK: tl.constexpr, EVEN: tl.constexpr
):  # fmt: skip
    """out [rows, cols] = the sum of parts [count, rows, cols], first to last."""
    cols = sure(cols, EVEN)
    stride = sure(stride, EVEN)
    size = tl.cast(rows, tl.int64) * cols
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    acc = tl.zeros((BLOCK,), tl.float32)
    for part in tl.range(0, count):
        acc += tl.load(parts + part * size + i, mask=i < size, other=0.0)
    target = out + (i // cols * stride + i % cols)
    tl.store(target, acc.to(out.dtype.element_ty), mask=i < size)


def split_product(out: Tensor, p: Tensor, q: Tensor, layout: str, scale: float = 1.0) -> Tensor:
    """out [M, N] = scale · op(p) op(q); layout "nt", "nn" or "tn" says which are transposed.

    Matrices have contiguous rows. Returns out.
    """
    rows, cols = out.shape
    depth = p.shape[0] if layout == "tn" else p.shape[1]
    arch = architecture(p.device)
    sms = processors(p.device)
    kind = "outer" if layout == "tn" else "down"
    tma = can_use_tma(arch, p, q)
    aligned = tma or rows_aligned(p, q)
    tile = pick_split(kind, arch, p.element_size(), rows, cols, aligned)
    tiles = ceil_div(rows, tile.bm) * ceil_div(cols, tile.bn)
    span, spans = split(depth, tiles, sms, tile.bk, MIN_SPAN if arch else 1)
    parts, stride = out, out.stride(0)
    if spans > 1:
        parts, stride = p.new_empty((spans, rows, cols), dtype=torch.float32), cols
    left, right = p, q
    if tma:
        left = describe(p, *((tile.bk, tile.bm) if layout == "tn" else (tile.bm, tile.bk)))
        right = describe(q, *((tile.bn, tile.bk) if layout == "nt" else (tile.bk, tile.bn)))
    args = (
        parts, left, right, scale, rows, cols, depth, span, stride, p.stride(0), q.stride(0)
    )  # fmt: skip
    inner_p, inner_q = rows if layout == "tn" else depth, depth if layout == "nt" else cols
    constexprs = dict(
        **tile.shape, LAYOUT=layout, TMA=tma, EVEN_C=even(cols, stride),
        EVEN_P=tma or even(inner_p, p.stride(0)), EVEN_Q=tma or even(inner_q, q.stride(0)),
    )  # fmt: skip
    launch(split_kernel, (tiles, spans), args, constexprs, tile.warps, tile.stages)
    if spans > 1:
        size = rows * cols
        args, flags = (out, parts, spans, rows, cols, out.stride(0)), even(cols, out.stride(0))
        launch(sum_kernel, (ceil_div(size, BLOCK),), args, {"BLOCK": BLOCK, "EVEN": flags})
    return out


def split(depth: int, tiles: int, sms: int, step: int, least: int) -> tuple[int, int]:
    """Depth of a span (a multiple of step) and how many spans, so that all processors work."""
    wanted = max(1, min(sms // tiles, depth // least))
    span = ceil_div(ceil_div(depth, wanted), step) * step
    return span, ceil_div(depth, span)
