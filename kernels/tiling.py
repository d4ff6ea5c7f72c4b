"""Tiles in and out, TMA descriptors, and the one door for launches.

A matrix is row-major with any row stride. It comes as a pointer, or (TMA) as a tensor descriptor
whose block is the tile; outside of the matrix a tile reads zero and writes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor


class Launch(NamedTuple):
    """A launch that was recorded and not run."""

    kernel: Any
    grid: Sequence[int]
    args: Sequence[Any]
    constexprs: dict[str, Any]
    warps: int
    stages: int


WHOLE = 128  # columns of the widest tile that is stored at once

# Who takes the launches in place of a GPU; the last one does.
_takers: list[Callable[[Launch], None]] = []


@contextmanager
def recording(take: Callable[[Launch], None]) -> Generator[None]:
    """Within it launches are handed to `take` and do not run."""
    _takers.append(take)
    try:
        yield
    finally:
        _takers.pop()


def launch(
    kernel: Any,
    grid: Sequence[int],
    args: Sequence[Any],
    constexprs: dict[str, Any],
    warps: int = 4,
    stages: int = 3,
) -> None:
    """kernel[grid](*args, **constexprs), or only its record within recording()."""
    if _takers:
        _takers[-1](Launch(kernel, grid, args, constexprs, warps, stages))
    else:
        kernel[grid](*args, **constexprs, num_warps=warps, num_stages=stages)


def rows_aligned(*matrices: Tensor) -> bool:
    """Every row starts at a multiple of 16 bytes, as wide copies and TMA want it."""
    return all(
        m.data_ptr() % 16 == 0 and m.stride(0) * m.element_size() % 16 == 0 for m in matrices
    )


def can_use_tma(arch: int, *matrices: Tensor) -> bool:
    """TMA tiles fit sm_90 and sm_100, elements of at most 2 bytes, rows aligned to 16 bytes.

    The interpreter (arch 0) acts them out, for any element.
    """
    if arch and (not 90 <= arch < 120 or any(m.element_size() > 2 for m in matrices)):
        return False
    return rows_aligned(*matrices)


def describe(matrix: Tensor, rows: int, cols: int) -> TensorDescriptor:
    """A TMA descriptor of matrix [*, *] whose block is [rows, cols]."""
    return TensorDescriptor(matrix, list(matrix.shape), [matrix.stride(0), 1], [rows, cols])


def describe_output(matrix: Tensor, rows: int, cols: int) -> TensorDescriptor:
    """The descriptor through which store_tile writes tiles [rows, cols]: wide ones in halves, which
    take turns in one buffer and leave shared memory for one stage more."""
    return describe(matrix, rows, cols // 2 if cols > WHOLE else cols)


def even(*numbers: int) -> bool:
    """All are multiples of 16: what a kernel whose integers are not specialised is told of them."""
    return not any(n % 16 for n in numbers)


@triton.jit
def sure(n, EVEN: tl.constexpr):
    """n; with EVEN, which says that it is a multiple of 16, so that the compiler knows it too."""
    return n // 16 * 16 if EVEN else n


@triton.jit
def load_tile(
    x, row, col, rows, cols, stride,
    ROWS: tl.constexpr, COLS: tl.constexpr, TMA: tl.constexpr, EVEN: tl.constexpr,
):  # fmt: skip
    """x[row : row + ROWS, col : col + COLS] of x [rows, cols]; EVEN of cols and stride."""
    if TMA:
        return x.load([row, col])
    else:
        cols = sure(cols, EVEN)
        stride = sure(stride, EVEN)
        r = tl.arange(0, ROWS)[:, None]
        c = tl.arange(0, COLS)[None, :]
        # int64 for the corner only: offsets within a tile fit in int32.
        corner = x + tl.cast(row, tl.int64) * stride + col
        inside = (r < rows - row) & (c < cols - col)
        return tl.load(corner + (r * stride + c), mask=inside, other=0.0)


@triton.jit
def store_tile(
    x, value, row, col, rows, cols, stride,
    ROWS: tl.constexpr, COLS: tl.constexpr, TMA: tl.constexpr, EVEN: tl.constexpr,
):  # fmt: skip
    """x[row : row + ROWS, col : col + COLS] = value, rounded to the dtype of x [rows, cols]."""
    if TMA and x.block_shape[1] == COLS:
        x.store([row, col], value.to(x.dtype))
    elif TMA:
        halves = tl.permute(tl.reshape(value.to(x.dtype), (ROWS, 2, COLS // 2)), (0, 2, 1))
        left, right = tl.split(halves)
        x.store([row, col], left)
        x.store([row, col + COLS // 2], right)
    else:
        cols = sure(cols, EVEN)
        stride = sure(stride, EVEN)
        r = tl.arange(0, ROWS)[:, None]
        c = tl.arange(0, COLS)[None, :]
        corner = x + tl.cast(row, tl.int64) * stride + col
        inside = (r < rows - row) & (c < cols - col)
        tl.store(corner + (r * stride + c), value.to(x.dtype.element_ty), mask=inside)


@triton.jit
def add_product(
    acc, x, w, row, col, rows, cols, depth, stride_x, stride_w,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, NT: tl.constexpr, TMA: tl.constexpr,
    EVEN: tl.constexpr,
):  # fmt: skip
    """acc + the tile at (row, col) of x wᵀ (NT, w [cols, depth]) or of x w (w [depth, cols])."""
    for k in tl.range(0, depth, BK):
        a = load_tile(x, row, k, rows, depth, stride_x, BM, BK, TMA, EVEN)  # [BM, BK]
        if NT:
            b = load_tile(w, col, k, cols, depth, stride_w, BN, BK, TMA, EVEN).T  # [BK, BN]
        else:
            b = load_tile(w, k, col, depth, cols, stride_w, BK, BN, TMA, EVEN)  # [BK, BN]
        acc = tl.dot(a, b, acc, input_precision="ieee")
    return acc


@triton.jit
def add_products(
    acc, x0, w0, x1, w1, x2, w2, x3, w3, row, col, depth0, depth1, depth2, depth3,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, NT: tl.constexpr, COUNT: tl.constexpr,
):  # fmt: skip
    """acc + the tile at (row, col) of Σ_i x_i op(w_i), i < COUNT, all of them descriptors: in one
    loop, so that the tensor cores do not wait where one product ends and the next begins."""
    end0 = tl.cdiv(depth0, BK) * BK
    end1 = end0 + tl.cdiv(depth1, BK) * BK
    end2 = end1
    end = end1
    if COUNT > 2:
        end2 = end1 + tl.cdiv(depth2, BK) * BK
        end = end2
    if COUNT > 3:
        end = end2 + tl.cdiv(depth3, BK) * BK
    for at in tl.range(0, end, BK):
        x = x0
        w = w0
        k = at
        if at >= end0:
            x = x1
            w = w1
            k = at - end0
        if COUNT > 2:  # noqa: SIM102 (known when it is compiled)
            if at >= end1:
                x = x2
                w = w2
                k = at - end1
        if COUNT > 3:  # noqa: SIM102
            if at >= end2:
                x = x3
                w = w3
                k = at - end2
        a = x.load([row, k])  # [BM, BK]
        b = w.load([col, k]).T if NT else w.load([k, col])  # [BK, BN]
        acc = tl.dot(a, b, acc, input_precision="ieee")
    return acc


@triton.jit
def load_row(x, col, cols, COLS: tl.constexpr, EVEN: tl.constexpr):
    """x[col : col + COLS] of a vector [cols] as fp32 [1, COLS]; EVEN of cols."""
    cols = sure(cols, EVEN)
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
