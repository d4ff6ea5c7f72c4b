"""Triton kernels of the LoRA linear: products with a low-rank tail, and gate/up with SwiGLU.

    chain    C = P op(Q) + Σ_i X_i op(W_i) (+ bias)            op(W) = Wᵀ or W
    gate_up  h = act(g) · u     g = x Wgᵀ + Sg Bgᵀ (+ bias), u = x Wuᵀ + Su Buᵀ (+ bias)
    swiglu   dg = dh · u · act′(g),  du = dh · act(g)                  act = silu or gelu_tanh

S is scaled already, so one accumulator serves the tail and the long products, and C is written
once, never read. Both kernels are persistent (a program takes every n-th tile) and use TMA
descriptors on sm_90 and newer. With `owners` the tail is that of each row's own adapter
(lora_many_triton.py), and the other products do not change.
"""

from __future__ import annotations

from collections.abc import Sequence

import triton
import triton.language as tl
from torch import Tensor

from liftcore.kernels.device import architecture, processors
from liftcore.kernels.lora_many_triton import add_own_product, ownership
from liftcore.kernels.tiles import ceil_div, pick
from liftcore.kernels.tiling import (
    add_product,
    add_products,
    can_use_tma,
    corner_of,
    describe,
    describe_output,
    even,
    gate_argument,
    launch,
    load_row,
    load_tile,
    rows_aligned,
    store_tile,
    sure,
)

BLOCK = 1024  # elements a program of SwiGLU's backward takes


# A kernel is compiled once, whatever the numbers of tokens, the ranks and the strides are. What it
# may count on stands in constants: EVEN of the long products' sizes, EVEN_TAIL of the tail's.
@triton.jit(do_not_specialize=[
    "rows", "cols", "depth", "depth0", "depth1", "depth2", "stride_c", "stride_p", "stride_q",
    "stride_x0", "stride_w0", "stride_x1", "stride_w1", "stride_x2", "stride_w2",
    "each", "stride_e",
])  # fmt: skip
def chain_kernel(
    c, p, q, x0, w0, x1, w1, x2, w2, bias, rows, cols, depth, depth0, depth1, depth2,
    stride_c, stride_p, stride_q, stride_x0, stride_w0, stride_x1, stride_w1, stride_x2, stride_w2,
    owners, each, stride_e,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, GROUP: tl.constexpr,
    PAIRS: tl.constexpr, BIAS: tl.constexpr, NT: tl.constexpr, TMA: tl.constexpr,
    MANY: tl.constexpr, EVEN: tl.constexpr, EVEN_TAIL: tl.constexpr,
):  # fmt: skip
    """C [rows, cols] = P op(Q) + Σ_i X_i op(W_i) (+ bias), i < PAIRS; with MANY each row
    has the Q of its own adapter."""
    tiles = tl.cdiv(rows, BM) * tl.cdiv(cols, BN)
    for tile in tl.range(tl.program_id(0), tiles, tl.num_programs(0)):
        m, n = corner_of(tile, rows, cols, BM, BN, GROUP)
        acc = tl.zeros((BM, BN), tl.float32)
        if TMA and not MANY:
            acc = add_products(
                acc, p, q, x0, w0, x1, w1, x2, w2, m, n, depth, depth0, depth1, depth2,
                BM, BN, BK, NT, PAIRS + 1,
            )  # fmt: skip
        else:
            if MANY:
                acc = add_own_product(
                    acc, p, q, owners, each, stride_e, m, n, rows, cols, 0, depth, depth,
                    stride_p, stride_q, BM, BN, BK, NT, EVEN_TAIL,
                )  # fmt: skip
            else:
                acc = add_product(
                    acc, p, q, m, n, rows, cols, depth, stride_p, stride_q,
                    BM, BN, BK, NT, TMA, EVEN_TAIL,
                )  # fmt: skip
            acc = add_product(
                acc, x0, w0, m, n, rows, cols, depth0, stride_x0, stride_w0,
                BM, BN, BK, NT, TMA, EVEN,
            )  # fmt: skip
            if PAIRS > 1:
                acc = add_product(
                    acc, x1, w1, m, n, rows, cols, depth1, stride_x1, stride_w1,
                    BM, BN, BK, NT, TMA, EVEN,
                )  # fmt: skip
            if PAIRS > 2:
                acc = add_product(
                    acc, x2, w2, m, n, rows, cols, depth2, stride_x2, stride_w2,
                    BM, BN, BK, NT, TMA, EVEN,
                )  # fmt: skip
        if BIAS:
            acc += load_row(bias, n, cols, BN, EVEN)
        store_tile(c, acc, m, n, rows, cols, stride_c, BM, BN, TMA, EVEN)


@triton.jit(do_not_specialize=[
    "rows", "cols", "depth", "rank_g", "rank_u",
    "stride_h", "stride_x", "stride_wg", "stride_wu", "stride_s", "stride_bg", "stride_bu",
    "each", "stride_eg", "stride_eu",
])  # fmt: skip
def gate_up_kernel(
    h, gate, up, x, wg, wu, sg, bg, su, bu, bias_g, bias_u,
    rows, cols, depth, rank_g, rank_u,
    stride_h, stride_x, stride_wg, stride_wu, stride_s, stride_bg, stride_bu,
    owners, each, stride_eg, stride_eu,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, GROUP: tl.constexpr,
    BIAS_G: tl.constexpr, BIAS_U: tl.constexpr, GELU: tl.constexpr, KEEP: tl.constexpr,
    TMA: tl.constexpr, MANY: tl.constexpr, EVEN: tl.constexpr, EVEN_TAIL: tl.constexpr,
):  # fmt: skip
    """h [rows, cols] = act(g) · u, and with KEEP also g and u for the backward."""
    tiles = tl.cdiv(rows, BM) * tl.cdiv(cols, BN)
    for tile in tl.range(tl.program_id(0), tiles, tl.num_programs(0)):
        m, n = corner_of(tile, rows, cols, BM, BN, GROUP)
        g = tl.zeros((BM, BN), tl.float32)
        u = tl.zeros((BM, BN), tl.float32)
        if MANY:
            g = add_own_product(
                g, sg, bg, owners, each, stride_eg, m, n, rows, cols, 0, rank_g, rank_g,
                stride_s, stride_bg, BM, BN, BK, True, EVEN_TAIL,
            )  # fmt: skip
            u = add_own_product(
                u, su, bu, owners, each, stride_eu, m, n, rows, cols, 0, rank_u, rank_u,
                stride_s, stride_bu, BM, BN, BK, True, EVEN_TAIL,
            )  # fmt: skip
        else:
            g = add_product(
                g, sg, bg, m, n, rows, cols, rank_g, stride_s, stride_bg,
                BM, BN, BK, True, TMA, EVEN_TAIL,
            )  # fmt: skip
            u = add_product(
                u, su, bu, m, n, rows, cols, rank_u, stride_s, stride_bu,
                BM, BN, BK, True, TMA, EVEN_TAIL,
            )  # fmt: skip
        for k in tl.range(0, depth, BK):
            a = load_tile(x, m, k, rows, depth, stride_x, BM, BK, TMA, EVEN)  # [BM, BK]
            b = load_tile(wg, n, k, cols, depth, stride_wg, BN, BK, TMA, EVEN)  # [BN, BK]
            g = tl.dot(a, b.T, g, input_precision="ieee")
            b = load_tile(wu, n, k, cols, depth, stride_wu, BN, BK, TMA, EVEN)
            u = tl.dot(a, b.T, u, input_precision="ieee")
        if BIAS_G:
            g += load_row(bias_g, n, cols, BN, EVEN)
        if BIAS_U:
            u += load_row(bias_u, n, cols, BN, EVEN)
        if KEEP:
            store_tile(gate, g, m, n, rows, cols, stride_h, BM, BN, TMA, EVEN)
            store_tile(up, u, m, n, rows, cols, stride_h, BM, BN, TMA, EVEN)
        g = g * tl.sigmoid(gate_argument(g, GELU)) * u
        store_tile(h, g, m, n, rows, cols, stride_h, BM, BN, TMA, EVEN)


def chain(
    out: Tensor,
    p: Tensor,
    q: Tensor,
    pairs: Sequence[tuple[Tensor, Tensor]],
    *,
    bias: Tensor | None = None,
    nt: bool,
    owners: Tensor | None = None,
) -> Tensor:
    """out [T, N] = p op(q) + Σ x op(w) (+ bias) over one to three pairs (x, w).

    Matrices have contiguous rows; op is the transpose when `nt`. With owners int32 [n], which
    divides T, q is [E, *, *] and row t has q[owners[t // (T / n)]]. Returns out.
    """
    rows, cols = out.shape
    many = owners is not None
    arch = architecture(out.device)
    sms = processors(out.device)
    matrices = [m for pair in pairs for m in pair]
    depths = [p.shape[1], *(x.shape[1] for x, _ in pairs)]
    strides = [m.stride(-2) for m in (p, q, *matrices)]
    tail: list = [p, q]
    tma = can_use_tma(arch, out, *matrices, *([] if many else tail))
    # Not of p and q: an odd rank is one step of the loop, and costs a spill outside of the rest.
    aligned = tma or rows_aligned(out, *matrices)
    tile = pick("forward" if nt else "dx", arch, out.element_size(), rows, cols, sms, aligned)
    target = out
    if tma:
        blocks = ((tile.bm, tile.bk), (tile.bn, tile.bk) if nt else (tile.bk, tile.bn))
        matrices = [describe(m, *blocks[i % 2]) for i, m in enumerate(matrices)]
        if not many:  # the tail of many adapters comes through pointers
            tail = [describe(m, *block) for m, block in zip(tail, blocks, strict=True)]
        target = describe_output(out, tile.bm, tile.bn)
    unused = 3 - len(pairs)
    tiles = ceil_div(rows, tile.bm) * ceil_div(cols, tile.bn)
    args = [
        target, *tail, *matrices, *(None, None) * unused, bias,
        rows, cols, *depths, *(None,) * unused,
        out.stride(0), *strides, *(None, None) * unused,
        *ownership(owners, rows, q),
    ]  # fmt: skip
    wide = (*depths[1:], out.stride(0), *strides[2:])
    constexprs = dict(
        **tile.shape, PAIRS=len(pairs), BIAS=bias is not None, NT=nt, TMA=tma, MANY=many,
        EVEN=(tma and bias is None) or even(cols, *(() if tma else wide)),
        EVEN_TAIL=(tma and not many) or even(
            depths[0], *strides[:2], *([q.stride(0)] if many else []), *([] if nt else [cols])
        ),
    )  # fmt: skip
    launch(chain_kernel, (min(tiles, sms),), args, constexprs, tile.warps, tile.stages)
    return out


def gate_up(
    x: Tensor,
    weights: Sequence[Tensor],
    s: Sequence[Tensor],
    lora_b: Sequence[Tensor],
    biases: Sequence[Tensor | None],
    *,
    gelu: bool,
    keep: bool,
    owners: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """h, gate and up [T, N] of x [T, K] and (gate, up) weights; the last two empty without keep.

    s holds the two [T, R] scaled down-projections of x, column slices of one buffer. With owners,
    as in chain, each of lora_b is [E, N, R].
    """
    rows, cols = x.shape[0], weights[0].shape[0]
    many = owners is not None
    h = x.new_empty(rows, cols)
    gate, up = (x.new_empty((rows, cols) if keep else (0, cols)) for _ in range(2))
    arch = architecture(x.device)
    sms = processors(x.device)
    left: list = [x, *s]
    right: list = [*weights, *lora_b]
    strides = [h.stride(0), *(m.stride(-2) for m in (x, *weights, s[0], *lora_b))]
    tma = can_use_tma(arch, h, *([x, *weights] if many else left + right))
    aligned = tma or rows_aligned(h, x, *weights)  # of the long products, as in chain
    tile = pick("gate_up", arch, x.element_size(), rows, cols, sms, aligned)
    out = [h, gate if keep else h, up if keep else h]
    if tma:
        described = 1 if many else 3  # the tail of many adapters comes through pointers
        left[:described] = [describe(m, tile.bm, tile.bk) for m in left[:described]]
        described = 2 if many else 4
        right[:described] = [describe(m, tile.bn, tile.bk) for m in right[:described]]
        out = [describe_output(m, tile.bm, tile.bn) for m in out]
    tiles = ceil_div(rows, tile.bm) * ceil_div(cols, tile.bn)
    args = [
        *out, left[0], *right[:2], left[1], right[2], left[2], right[3], *biases,
        rows, cols, x.shape[1], s[0].shape[1], s[1].shape[1], *strides,
        *ownership(owners, rows, *lora_b),
    ]  # fmt: skip
    wide = (x.shape[1], *strides[:4])
    constexprs = dict(
        **tile.shape, BIAS_G=biases[0] is not None, BIAS_U=biases[1] is not None,
        GELU=gelu, KEEP=keep, TMA=tma, MANY=many,
        EVEN=(tma and not any(b is not None for b in biases)) or even(cols, *(() if tma else wide)),
        EVEN_TAIL=(tma and not many) or even(
            *(b.shape[-1] for b in lora_b), *strides[4:],
            *([b.stride(0) for b in lora_b] if many else []),
        ),
    )  # fmt: skip
    launch(gate_up_kernel, (min(tiles, sms),), args, constexprs, tile.warps, tile.stages)
    return h, gate, up


@triton.jit(do_not_specialize=["rows", "cols"])
def swiglu_backward_kernel(
    dgate, dup, dh, gate, up, rows, cols,
    GELU: tl.constexpr, BLOCK: tl.constexpr, EVEN: tl.constexpr,
):  # fmt: skip
    """dgate = dh · u · (σ + g σ (1 − σ) z′) and dup = dh · g σ with σ = sigmoid(z(g)), each
    [rows, cols] without a gap."""
    size = tl.cast(rows, tl.int64) * sure(cols, EVEN)
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    d = tl.load(dh + i, mask=i < size, other=0.0).to(tl.float32)
    g = tl.load(gate + i, mask=i < size, other=0.0).to(tl.float32)
    u = tl.load(up + i, mask=i < size, other=0.0).to(tl.float32)
    sigma = tl.sigmoid(gate_argument(g, GELU))
    slope = 1.5957691216057308 * (1.0 + 0.134145 * g * g) if GELU else 1.0
    dg = d * u * (sigma + g * sigma * (1.0 - sigma) * slope)
    tl.store(dgate + i, dg.to(dgate.dtype.element_ty), mask=i < size)
    tl.store(dup + i, (d * g * sigma).to(dup.dtype.element_ty), mask=i < size)


def swiglu_backward(dh: Tensor, gate: Tensor, up: Tensor, gelu: bool) -> tuple[Tensor, Tensor]:
    """Gradients of gate and up [T, N] of h = act(gate) · up; all three contiguous."""
    dgate, dup = gate.new_empty(gate.shape), up.new_empty(up.shape)
    args = dgate, dup, dh, gate, up, *gate.shape
    constexprs = dict(GELU=gelu, BLOCK=BLOCK, EVEN=even(gate.shape[1]))
    launch(swiglu_backward_kernel, (ceil_div(gate.numel(), BLOCK),), args, constexprs)
    return dgate, dup
