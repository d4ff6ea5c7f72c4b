"""The Triton head loss, backward: the gradient of the rows, as far as they are scored.

    product   dhidden = dz W, the V of it split over programs              fp32 partial sums
    scatter   dhidden[index] = Σ partial sums
    scale     dhidden_t · upstream gradient of the loss of row t

As in head_loss_logits.py the number of scored rows stays on the device.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from liftcore.kernels.device import architecture, processors
from liftcore.kernels.tiles import Tile
from liftcore.kernels.tiling import can_use_tma, corner_of, describe, launch, load_tile

MAX_SPLITS = 12
ROW_BLOCK = 1024


@triton.jit
def count_splits(tiles, rows, capacity, SMS: tl.constexpr, MOST: tl.constexpr):
    """How many programs share the V of one tile, so that the last wave is as full as can be."""
    best = 1
    for s in tl.static_range(2, MOST + 1):
        # Time is waves / splits; a larger number of splits must be worth 5 %.
        better = 100 * tl.cdiv(tiles * s, SMS) * best < 95 * tl.cdiv(tiles * best, SMS) * s
        best = tl.where(better & (rows * s <= capacity), s, best)
    return best


@triton.jit(do_not_specialize=["start", "most", "capacity"])
def product_kernel(
    dz, weight, part, count, start, most, V, K, stride_dz, stride_w, capacity,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, GROUP: tl.constexpr,
    SMS: tl.constexpr, SPLITS: tl.constexpr, TMA: tl.constexpr,
):  # fmt: skip
    """part [splits · rows, K] fp32: dz [m, V] times weight [V, K], a slice of V for each split."""
    live = tl.minimum(tl.load(count) - start, most)
    rows = tl.cdiv(tl.maximum(live, 0), BM) * BM
    tiles = rows // BM * tl.cdiv(K, BN)
    splits = count_splits(tiles, rows, capacity, SMS, SPLITS)
    depth = tl.cdiv(tl.cdiv(V, splits), BK) * BK
    for job in tl.range(tl.program_id(0), tiles * splits, tl.num_programs(0)):
        split = job // tiles
        m, n = corner_of(job % tiles, live, K, BM, BN, GROUP)
        first = split * depth
        acc = tl.zeros((BM, BN), tl.float32)
        for v in tl.range(first, tl.minimum(first + depth, V), BK):
            a = load_tile(dz, m, v, live, V, stride_dz, BM, BK, TMA, False)
            b = load_tile(weight, v, n, V, K, stride_w, BK, BN, TMA, False)
            acc = tl.dot(a, b, acc, input_precision="ieee")
        row = (split * rows + m).to(tl.int64) + tl.arange(0, BM)
        col = n + tl.arange(0, BN)
        tl.store(part + row[:, None] * K + col[None, :], acc, mask=(col < K)[None, :])


@triton.jit(do_not_specialize=["start", "most", "capacity"])
def scatter_kernel(
    part, dhidden, index, count, start, most, K, stride_d, capacity,
    BM: tl.constexpr, BN: tl.constexpr, SMS: tl.constexpr, SPLITS: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """dhidden[index[row]] = the sum of the row's partial sums, in a fixed order."""
    live = tl.minimum(tl.load(count) - start, most)
    row = tl.program_id(0)
    if row < live:
        rows = tl.cdiv(live, BM) * BM
        splits = count_splits(rows // BM * tl.cdiv(K, BN), rows, capacity, SMS, SPLITS)
        col = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
        total = tl.zeros((BLOCK,), tl.float32)
        for split in tl.range(0, splits):
            at = (split * rows + row).to(tl.int64) * K + col
            total += tl.load(part + at, mask=col < K, other=0.0)
        token = tl.load(index + start + row).to(tl.int64)
        to = dhidden + token * stride_d + col
        tl.store(to, total.to(dhidden.dtype.element_ty), mask=col < K)


@triton.jit
def scale_rows_kernel(grad, factor, out, K, BLOCK: tl.constexpr):
    """out[t] = grad[t] · factor[t], multiplied in fp32."""
    row = tl.program_id(0).to(tl.int64)
    f = tl.load(factor + row).to(tl.float32)
    for k in tl.range(0, K, BLOCK):
        col = k + tl.arange(0, BLOCK)
        g = tl.load(grad + row * K + col, mask=col < K, other=0.0).to(tl.float32)
        tl.store(out + row * K + col, (g * f).to(out.dtype.element_ty), mask=col < K)


def scale_rows(grad: Tensor, factor: Tensor) -> Tensor:
    """grad [T, K] with row t multiplied by factor [T], in the dtype of grad."""
    out = torch.empty_like(grad)
    t, k = grad.shape
    if grad.numel():
        args = (grad, factor.contiguous(), out, k)
        launch(scale_rows_kernel, (t,), args, {"BLOCK": _row_block(k)})
    return out


def product(
    dz: Tensor,  # [m, V]
    weight: Tensor,  # [V, K]
    part: Tensor,  # [partial rows, K] fp32
    dhidden: Tensor,  # [T, K]
    index: Tensor,  # [M] int32
    count: Tensor,  # [1] int32
    start: int,
    m: int,
    tile: Tile,
) -> None:
    """dhidden[index] = dz W for the m rows from `start` on, as far as they are scored."""
    v, k = weight.shape
    sms = processors(dz.device)
    tma = can_use_tma(architecture(dz.device), dz, weight)
    split = {"SMS": sms, "SPLITS": MAX_SPLITS}
    strides = (dz.stride(0), weight.stride(0), part.shape[0])
    matrices = (dz, weight)
    if tma:
        matrices = describe(dz, tile.bm, tile.bk), describe(weight, tile.bk, tile.bn)
    launch(
        product_kernel,
        (min(triton.cdiv(m, tile.bm) * triton.cdiv(k, tile.bn) * MAX_SPLITS, sms),),
        (*matrices, part, count, start, m, v, k, *strides),
        {**tile.shape, **split, "TMA": tma},
        tile.warps,
        tile.stages,
    )
    block = _row_block(k)
    launch(
        scatter_kernel,
        (m, triton.cdiv(k, block)),
        (part, dhidden, index, count, start, m, k, dhidden.stride(0), part.shape[0]),
        {"BM": tile.bm, "BN": tile.bn, **split, "BLOCK": block},
    )


def _row_block(k: int) -> int:
    return min(ROW_BLOCK, triton.next_power_of_2(k))
