"""Triton kernels of the LoRA linears over a frozen W in FP8, for sm_89 and newer.

    quantise    rows of x in FP8 (fp8.py): one program a row, which reads it twice
    fp8_chain   C = P op(Q) + Σ_i X_i W_iᵀ (+ bias)        X, W in FP8, P and Q as C

The products in FP8 come first, each in units of its own scales: between two of them, and behind
the last, the accumulator changes its units by powers of two, which is exact. Then the low-rank
product, in 16 bits, goes into the same accumulator with the full precision of fp32, and C is
written once. sm_90 adds FP8 products with few bits: those of one tile go into fp32 registers.
Its products in FP8 also want both operands along the depth, so the backward reads W's transpose.
lora_fp8_plain.py has the formulas. No GPU has run these kernels.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from liftcore.kernels import lora_fused
from liftcore.kernels.device import architecture, on_device, processors
from liftcore.kernels.fp8 import BIAS, E4M3, HIGHEST, LOWEST, ROUND_UP, Fp8Rows, Fp8Weight
from liftcore.kernels.lora_fused import rows as contiguous_rows
from liftcore.kernels.lora_fused import swiglu_backward
from liftcore.kernels.lora_plain import activated
from liftcore.kernels.tiles import Tile, ceil_div
from liftcore.kernels.tiling import (
    add_product,
    can_use_tma,
    corner_of,
    describe,
    launch,
    load_row,
    load_tile,
    store_tile,
)

__all__ = [
    "gate_up_forward",
    "linear",
    "linear_backward",
    "lora_backward",
    "lora_forward",
    "swiglu_backward",
]

BLOCK = 1024  # elements of a row that a program quantises at once
# By first architecture: the tile (its depth in codes), and the depth of the low-rank product's
# steps. Without TMA a larger one spills. Not measured yet.
TILES = {
    0: (Tile(32, 32, 64, 1, 1, group=2), 32),
    89: (Tile(128, 128, 64, 8, 3), 32),
    90: (Tile(128, 128, 128, 8, 3), 64),
    120: (Tile(128, 128, 64, 8, 3), 32),
}
WITHOUT_TMA = Tile(128, 64, 64, 8, 3), 32
_ROUND_UP, _BIAS = tl.constexpr(ROUND_UP), tl.constexpr(BIAS)
_LOWEST, _HIGHEST = tl.constexpr(LOWEST), tl.constexpr(HIGHEST)


@triton.jit
def power(exponents):
    """2^e as fp32 for int32 e."""
    return ((exponents + 127) << 23).to(tl.float32, bitcast=True)


@triton.jit
def quantise_kernel(codes, exponents, x, cols, stride_codes, stride_x, BLOCK: tl.constexpr):
    """A row of codes and its exponent, of a row of x [*, cols]."""
    row = tl.program_id(0).to(tl.int64)
    i = tl.arange(0, BLOCK)
    largest = tl.zeros((BLOCK,), tl.float32)
    for at in tl.range(0, cols, BLOCK):
        part = tl.load(x + row * stride_x + at + i, mask=i < cols - at, other=0.0)
        largest = tl.maximum(largest, tl.abs(part.to(tl.float32)))
    bits = tl.max(largest, 0).to(tl.int32, bitcast=True)
    exponent = tl.minimum(tl.maximum(((bits + _ROUND_UP) >> 23) - _BIAS, _LOWEST), _HIGHEST)
    for at in tl.range(0, cols, BLOCK):
        part = tl.load(x + row * stride_x + at + i, mask=i < cols - at, other=0.0)
        code = (part.to(tl.float32) * power(-exponent)).to(codes.dtype.element_ty)
        tl.store(codes + row * stride_codes + at + i, code, mask=i < cols - at)
    tl.store(exponents + row, exponent.to(tl.int8))


@triton.jit
def load_exponents(exponents, at, count, SIZE: tl.constexpr):
    """exponents[at : at + SIZE] of a vector [count] as int32."""
    i = at + tl.arange(0, SIZE)
    return tl.load(exponents + i, mask=i < count, other=0).to(tl.int32)


@triton.jit
def add_codes(
    acc, x, w, row, col, rows, cols, depth, stride_x, stride_w,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, TMA: tl.constexpr, PROMOTE: tl.constexpr,
):  # fmt: skip
    """acc + the tile at (row, col) of x wᵀ, of codes x [rows, depth] and w [cols, depth]."""
    for k in tl.range(0, depth, BK):
        a = load_tile(x, row, k, rows, depth, stride_x, BM, BK, TMA, False)  # [BM, BK]
        b = load_tile(w, col, k, cols, depth, stride_w, BN, BK, TMA, False).T  # [BK, BN]
        acc = tl.dot(a, b, acc, max_num_imprecise_acc=PROMOTE)
    return acc


@triton.jit(do_not_specialize=["rows"])
def fp8_chain_kernel(
    c, p, q, x0, w0, x1, w1, x2, w2, xe0, we0, xe1, we1, xe2, we2, bias,
    rows, cols, depth, depth0, depth1, depth2,
    stride_c, stride_p, stride_q, stride_x0, stride_w0, stride_x1, stride_w1, stride_x2, stride_w2,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, GROUP: tl.constexpr, BR: tl.constexpr,
    PAIRS: tl.constexpr, TAIL: tl.constexpr, BIAS: tl.constexpr, NT: tl.constexpr,
    TMA: tl.constexpr, PROMOTE: tl.constexpr,
):  # fmt: skip
    """C [rows, cols] = P op(Q) + Σ_i X_i W_iᵀ (+ bias), i < PAIRS; the first with TAIL."""
    tiles = tl.cdiv(rows, BM) * tl.cdiv(cols, BN)
    for tile in tl.range(tl.program_id(0), tiles, tl.num_programs(0)):
        m, n = corner_of(tile, rows, cols, BM, BN, GROUP)
        acc = tl.zeros((BM, BN), tl.float32)
        acc = add_codes(
            acc, x0, w0, m, n, rows, cols, depth0, stride_x0, stride_w0, BM, BN, BK, TMA, PROMOTE
        )  # fmt: skip
        xe = load_exponents(xe0, m, rows, BM)
        we = load_exponents(we0, n, cols, BN)
        if PAIRS > 1:
            x_next, w_next = load_exponents(xe1, m, rows, BM), load_exponents(we1, n, cols, BN)
            acc = acc * power(xe - x_next)[:, None] * power(we - w_next)[None, :]
            acc = add_codes(
                acc, x1, w1, m, n, rows, cols, depth1, stride_x1, stride_w1,
                BM, BN, BK, TMA, PROMOTE,
            )  # fmt: skip
            xe, we = x_next, w_next
        if PAIRS > 2:
            x_next, w_next = load_exponents(xe2, m, rows, BM), load_exponents(we2, n, cols, BN)
            acc = acc * power(xe - x_next)[:, None] * power(we - w_next)[None, :]
            acc = add_codes(
                acc, x2, w2, m, n, rows, cols, depth2, stride_x2, stride_w2,
                BM, BN, BK, TMA, PROMOTE,
            )  # fmt: skip
            xe, we = x_next, w_next
        acc = acc * power(xe)[:, None] * power(we)[None, :]
        if TAIL:
            acc = add_product(
                acc, p, q, m, n, rows, cols, depth, stride_p, stride_q, BM, BN, BR, NT, TMA, False,
            )  # fmt: skip
        if BIAS:
            acc += load_row(bias, n, cols, BN, False)
        store_tile(c, acc, m, n, rows, cols, stride_c, BM, BN, TMA, False)


def quantise(x: Tensor) -> Fp8Rows:
    """fp8.quantise() of x [T, K]; rows of codes start at multiples of 16 bytes."""
    x = contiguous_rows(x)
    tokens, cols = x.shape
    codes = torch.empty(tokens, -(-cols // 16) * 16, dtype=E4M3, device=x.device)[:, :cols]
    exponents = torch.empty(tokens, dtype=torch.int8, device=x.device)
    args = codes, exponents, x, cols, codes.stride(0), x.stride(0)
    launch(quantise_kernel, (tokens,), args, dict(BLOCK=BLOCK))
    return Fp8Rows(codes, exponents)


def chain(
    out: Tensor,  # [T, N]
    pairs: Sequence[tuple[Fp8Rows, Fp8Rows]],  # [T, K_i] and [N, K_i]
    tail: tuple[Tensor, Tensor] | None = None,  # p [T, R] and q, [N, R] with nt, else [R, N]
    *,
    bias: Tensor | None = None,  # [N]
    nt: bool = True,
) -> Tensor:
    """out = p op(q) + Σ x wᵀ (+ bias) over one to three pairs (x, w); returns out."""
    rows, cols = out.shape
    arch, sms = architecture(out.device), processors(out.device)
    low_rank: list[Tensor] = list(tail or ())
    codes = [side.codes for pair in pairs for side in pair]
    exponents = [side.exponents for pair in pairs for side in pair]
    tma = can_use_tma(arch, out, *codes, *low_rank)
    tile, tail_depth = TILES[max(first for first in TILES if first <= arch)]
    if not tma and 90 <= arch < 120:
        tile, tail_depth = WITHOUT_TMA
    depths = [low_rank[0].shape[1] if tail else None, *(x.codes.shape[1] for x, _ in pairs)]
    strides = [m.stride(0) for m in codes]
    tail_strides = [m.stride(0) for m in low_rank] or [None, None]
    target, operands, tails = out, list(codes), list(low_rank)
    if tma:
        right = (tile.bn, tail_depth) if nt else (tail_depth, tile.bn)
        blocks = (tile.bm, tail_depth), right
        tails = [describe(m, *block) for m, block in zip(low_rank, blocks, strict=False)]
        sides = (tile.bm, tile.bk), (tile.bn, tile.bk)
        operands = [describe(m, *sides[i % 2]) for i, m in enumerate(codes)]
        target = describe(out, tile.bm, tile.bn)
    unused = (None,) * (3 - len(pairs))
    args = [
        target, *(tails or (None, None)), *operands, *unused * 2, *exponents, *unused * 2,
        bias, rows, cols, *depths, *unused,
        out.stride(0), *tail_strides, *strides, *unused * 2,
    ]  # fmt: skip
    constexprs = dict(
        **tile.shape, BR=tail_depth, PAIRS=len(pairs), TAIL=tail is not None,
        BIAS=bias is not None, NT=nt, TMA=tma, PROMOTE=tile.bk if arch == 90 else 0,
    )  # fmt: skip
    tiles = ceil_div(rows, tile.bm) * ceil_div(cols, tile.bn)
    launch(fp8_chain_kernel, (min(tiles, sms),), args, constexprs, tile.warps, tile.stages)
    return out


def lora_forward(
    x: Tensor,  # [T, K]
    weights: Sequence[Fp8Weight],  # [N_i, K]
    *rest,  # lora_a, lora_b, scalings, biases
) -> list[Tensor]:  # [T, N_i], then [T, ΣR]
    """[y_0, .., S] for x [T, K], which is quantised once."""
    with on_device(x):
        codes = quantise(x)

    def member(x, weight, s, lora_b, bias) -> Tensor:
        y = x.new_empty(x.shape[0], weight.shape[0])
        return chain(y, [(codes, weight.forward)], (s, lora_b), bias=bias)

    return lora_fused.lora_forward(x, weights, *rest, member=member)


def gate_up_forward(
    x: Tensor,  # [T, K]
    weights: Sequence[Fp8Weight],  # [N, K]
    *rest,  # lora_a, lora_b, scalings, biases, gelu, keep
) -> list[Tensor]:
    """[h, gate, up, S]; the product with the activation is no part of a kernel here."""
    *members, gelu, _ = rest
    gate, up, s = lora_forward(x, weights, *members)
    return [activated(gate, gelu).mul_(up), gate, up, s]


def lora_backward(*args) -> list[Tensor]:
    """[dx] + [dA, all members' rows] + [dB_0, ..], as lora_fused.lora_backward."""
    return lora_fused.lora_backward(*args, base=_input_gradient)


def _input_gradient(
    dys: Sequence[Tensor],  # [T, N_i]
    ds: Tensor,  # [T, ΣR]
    weights: Sequence[Fp8Weight],  # [N_i, K]
    lora_a: Tensor,  # [ΣR, K]
) -> Tensor:
    pairs = [(quantise(dy), w.transposed()) for dy, w in zip(dys, weights, strict=True)]
    return chain(ds.new_empty(ds.shape[0], lora_a.shape[1]), pairs, (ds, lora_a), nt=False)


def linear(x: Tensor, weight: Fp8Weight, bias: Tensor | None) -> Tensor:
    """Q(x) Q(W)ᵀ (+ bias) [T, N] of x [T, K]."""
    with on_device(x):
        out = x.new_empty(x.shape[0], weight.shape[0])
        return chain(out, [(quantise(x), weight.forward)], bias=bias)


def linear_backward(dy: Tensor, weight: Fp8Weight) -> Tensor:
    """dx [T, K] of linear(), of dy [T, N]."""
    with on_device(dy):
        out = dy.new_empty(dy.shape[0], weight.shape[1])
        return chain(out, [(quantise(dy), weight.transposed())])
