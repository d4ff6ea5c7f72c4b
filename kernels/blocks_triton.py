"""Device functions that the Triton kernels share: tiles in and out, and their product.

A matrix is row-major with any row stride. It comes as a pointer, or (TMA) as a tensor descriptor
whose block is the tile; outside of the matrix a tile reads zero and writes nothing.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def load_tile(
    x, row, col, rows, cols, stride,
    ROWS: tl.constexpr, COLS: tl.constexpr, TMA: tl.constexpr,
):  # fmt: skip
    """x[row : row + ROWS, col : col + COLS] of x [rows, cols]."""
    if TMA:
        return x.load([row, col])
    else:
        r = tl.arange(0, ROWS)[:, None]
        c = tl.arange(0, COLS)[None, :]
        # int64 for the corner only: offsets within a tile fit in int32.
        corner = x + tl.cast(row, tl.int64) * stride + col
        inside = (r < rows - row) & (c < cols - col)
        return tl.load(corner + (r * stride + c), mask=inside, other=0.0)


@triton.jit
def store_tile(
    x, value, row, col, rows, cols, stride,
    ROWS: tl.constexpr, COLS: tl.constexpr, TMA: tl.constexpr,
):  # fmt: skip
    """x[row : row + ROWS, col : col + COLS] = value, rounded to the dtype of x [rows, cols]."""
    if TMA:
        x.store([row, col], value.to(x.dtype))
    else:
        r = tl.arange(0, ROWS)[:, None]
        c = tl.arange(0, COLS)[None, :]
        corner = x + tl.cast(row, tl.int64) * stride + col
        inside = (r < rows - row) & (c < cols - col)
        tl.store(corner + (r * stride + c), value.to(x.dtype.element_ty), mask=inside)


@triton.jit
def add_product(
    acc, x, w, row, col, rows, cols, depth, stride_x, stride_w,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, NT: tl.constexpr, TMA: tl.constexpr,
):  # fmt: skip
    """acc + the tile at (row, col) of x wᵀ (NT, w [cols, depth]) or of x w (w [depth, cols])."""
    for k in tl.range(0, depth, BK):
        a = load_tile(x, row, k, rows, depth, stride_x, BM, BK, TMA)  # [BM, BK]
        if NT:
            b = load_tile(w, col, k, cols, depth, stride_w, BN, BK, TMA).T  # [BK, BN]
        else:
            b = load_tile(w, k, col, depth, cols, stride_w, BK, BN, TMA)  # [BK, BN]
        acc = tl.dot(a, b, acc, input_precision="ieee")
    return acc


@triton.jit
def load_row(x, col, cols, COLS: tl.constexpr):
    """x[col : col + COLS] of a vector [cols] as fp32 [1, COLS]."""
    c = col + tl.arange(0, COLS)
    return tl.load(x + c, mask=c < cols, other=0.0).to(tl.float32)[None, :]


@triton.jit
def corner_of(tile, rows, cols, BM: tl.constexpr, BN: tl.constexpr, GROUP: tl.constexpr):
    """Row and column where a tile starts; GROUP row tiles run together, for the L2 cache."""
    span = GROUP * tl.cdiv(cols, BN)
    first = tile // span * GROUP
    height = min(tl.cdiv(rows, BM) - first, GROUP)
    return (first + tile % span % height) * BM, tile % span // height * BN


@triton.jit
def gate_argument(g, GELU: tl.constexpr):
    """z with act(g) = g sigmoid(z): g for silu, 2 √(2/π) (g + 0.044715 g³) for gelu_tanh."""
    return 1.5957691216057308 * (g + 0.044715 * g * g * g) if GELU else g
