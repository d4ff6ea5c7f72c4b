"""Triton kernels of the head loss: both products stop at the number of scored rows.

    compact   index = rows t with w_t ≠ 0, count                           one program
    logits    e = exp(z − top_tile), top_tile, Σ e     of each tile of     z = h Wᵀ
    finish    loss, dz = w (e · exp(top_tile − lse) − onehot)              in place of e
    product   dhidden = dz W, the V of it split over programs              fp32 partial sums
    scatter   dhidden[index] = Σ partial sums

The number of scored rows never leaves the device: every kernel reads `count` and a program with
no row of its own ends at once. Logits are never rounded: e is formed from the fp32 accumulator
relative to the largest other logit of its row in its tile, so it fits any dtype. It is rounded
when it is stored, and again as dz. The target is left out of every sum, so softmax − 1 is
−(sum of the others) / total and keeps its precision for a token that the model is almost sure of.
"""

from __future__ import annotations

import triton
import triton.language as tl

from liftcore.kernels.blocks_triton import add_product, corner_of, load_tile, store_tile


@triton.jit
def cap_parts(x, cap):
    """cap · tanh(x / cap) and its derivative 1 − tanh²(x / cap), without cancellation."""
    u = tl.exp(-2.0 * tl.abs(x) / cap)
    t = (1.0 - u) / (1.0 + u)
    return tl.where(x < 0, -cap * t, cap * t), 4.0 * u / ((1.0 + u) * (1.0 + u))


@triton.jit
def log1p(x):
    """log(1 + x) for x ≥ 0, by its series where 1 + x would round x away."""
    return tl.where(x < 0.015625, x * (1.0 - x * (0.5 - x * (1.0 / 3 - x * 0.25))), tl.log(1.0 + x))


@triton.jit
def row_terms(top, others, z_target):
    """nll, exp(top − lse) and 1 − softmax[target] from top = max and others = Σ exp(z − top).

    Both run over the classes other than the target.
    """
    peak = tl.maximum(top, z_target)
    scale = tl.exp(top - peak)
    rest = others * scale
    e_target = tl.exp(z_target - peak)
    total = rest + e_target
    sure = e_target > 0.5
    ratio = rest / tl.where(sure, e_target, 1.0)
    nll = tl.where(sure, log1p(ratio), tl.log(total) - (z_target - peak))
    return nll, scale / total, rest / total


@triton.jit
def compact_kernel(w, rows, index, count, entries, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    """index[: count] = the rows (of the list `rows`, or all with not ROWS) whose w is not 0."""
    done = 0
    for start in tl.range(0, entries, BLOCK):
        i = start + tl.arange(0, BLOCK)
        row = i
        if ROWS:
            row = tl.load(rows + i, mask=i < entries, other=0).to(tl.int32)
        # −1 fills a list up.
        inside = (i < entries) & (row >= 0)
        scored = (tl.load(w + row, mask=inside, other=0.0) != 0.0).to(tl.int32)
        place = done + tl.cumsum(scored, 0) - scored
        tl.store(index + place, row, mask=scored != 0)
        done += tl.sum(scored, 0)
    tl.store(count, done)


@triton.jit
def logits_kernel(
    h, weight, labels, index, count, e, tops, sums,
    start, most, V, K, scale, cap, stride_h, stride_w, stride_e, tiles_v,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, GROUP: tl.constexpr,
    CAP: tl.constexpr, KEEP: tl.constexpr, TMA: tl.constexpr,
):  # fmt: skip
    """e [m, V], and for each tile of a row tops = max z and sums = Σ e, [m, tiles_v]."""
    live = tl.minimum(tl.load(count) - start, most)
    tiles = tl.cdiv(tl.maximum(live, 0), BM) * tl.cdiv(V, BN)
    for tile in tl.range(tl.program_id(0), tiles, tl.num_programs(0)):
        m, n = corner_of(tile, live, V, BM, BN, GROUP)
        z = tl.zeros((BM, BN), tl.float32)
        z = add_product(
            z, h, weight, m, n, live, V, K, stride_h, stride_w, BM, BN, BK, True, TMA
        )  # fmt: skip
        z = z * scale
        row = m + tl.arange(0, BM)
        col = n + tl.arange(0, BN)
        inside = row < live
        token = tl.load(index + start + row, mask=inside, other=0)
        label = tl.load(labels + token, mask=inside, other=-1).to(tl.int32)
        is_target = label[:, None] == col[None, :]
        slope = 1.0
        if CAP:
            z, slope = cap_parts(z, cap)
        z = tl.where(is_target | (col >= V)[None, :], float("-inf"), z)
        # Finite where the target is alone in the tile: exp(−inf − top) must be 0.
        top = tl.maximum(tl.max(z, 1), -1e30)
        z = tl.exp(z - top[:, None])
        at = row.to(tl.int64) * tiles_v + n // BN
        tl.store(tops + at, top, mask=inside)
        tl.store(sums + at, tl.sum(z, 1), mask=inside)
        if KEEP:
            store_tile(e, z * slope, m, n, live, V, stride_e, BM, BN, TMA)


@triton.jit
def finish_kernel(
    e, tops, sums, h, weight, labels, w, index, count, loss,
    start, V, K, scale, cap, stride_e, stride_h, stride_w, tiles_v,
    BN: tl.constexpr, BK: tl.constexpr, TILES: tl.constexpr, CAP: tl.constexpr, KEEP: tl.constexpr,
):  # fmt: skip
    """loss[token] of one row, and e turned into dz = w · scale · slope · (softmax − onehot)."""
    row = tl.program_id(0)
    if start + row < tl.load(count):
        tile = tl.arange(0, TILES)
        at = row.to(tl.int64) * tiles_v + tile
        top = tl.full((TILES,), -1e30, tl.float32)
        total = tl.zeros((TILES,), tl.float32)
        for t in tl.range(0, tiles_v, TILES):
            new = tl.load(tops + at + t, mask=tile < tiles_v - t, other=-1e30)
            peak = tl.maximum(top, new)
            part = tl.load(sums + at + t, mask=tile < tiles_v - t, other=0.0)
            total = total * tl.exp(top - peak) + part * tl.exp(new - peak)
            top = peak
        peak = tl.max(top, 0)
        total = tl.sum(total * tl.exp(top - peak), 0)
        token = tl.load(index + start + row)
        factor = tl.load(w + token) * scale
        label = tl.load(labels + token)
        known = (label >= 0) & (label < V)
        feature = tl.arange(0, BK)
        x = h + row.to(tl.int64) * stride_h + feature
        y = weight + label * stride_w + feature
        target = tl.zeros((BK,), tl.float32)
        for k in tl.range(0, K, BK):
            inside = (feature < K - k) & known
            a = tl.load(x + k, mask=inside, other=0.0).to(tl.float32)
            target += a * tl.load(y + k, mask=inside, other=0.0).to(tl.float32)
        # NaN, so that a label outside of the vocabulary is seen.
        target = tl.where(known, tl.sum(target, 0) * scale, float("nan"))
        slope = 1.0
        if CAP:
            target, slope = cap_parts(target, cap)
        nll, share, others = row_terms(peak, total, target)
        tl.store(loss + token, tl.load(w + token) * nll)
        if KEEP:
            at_target = (-factor * slope * others).to(e.dtype.element_ty)
            col = tile[:, None] * BN + tl.arange(0, BN)[None, :]
            line = e + row.to(tl.int64) * stride_e
            for t in tl.range(0, tiles_v, TILES):
                new = tl.load(tops + at + t, mask=tile < tiles_v - t, other=-1e30)
                to = line + t * BN + col
                inside = col < V - t * BN
                value = tl.load(to, mask=inside, other=0.0).to(tl.float32)
                value = value * (factor * share * tl.exp(new - peak))[:, None]
                value = value.to(e.dtype.element_ty)
                is_target = col == label - t * BN
                tl.store(to, tl.where(is_target, at_target, value), mask=inside)


@triton.jit
def count_splits(tiles, rows, capacity, SMS: tl.constexpr, MOST: tl.constexpr):
    """How many programs share the V of one tile, so that the last wave is as full as can be."""
    best = 1
    for s in tl.static_range(2, MOST + 1):
        # Time is waves / splits; a larger number of splits must be worth 5 %.
        better = 100 * tl.cdiv(tiles * s, SMS) * best < 95 * tl.cdiv(tiles * best, SMS) * s
        best = tl.where(better & (rows * s <= capacity), s, best)
    return best


@triton.jit
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
            a = load_tile(dz, m, v, live, V, stride_dz, BM, BK, TMA)
            b = load_tile(weight, v, n, V, K, stride_w, BK, BN, TMA)
            acc = tl.dot(a, b, acc, input_precision="ieee")
        row = (split * rows + m).to(tl.int64) + tl.arange(0, BM)
        col = n + tl.arange(0, BN)
        tl.store(part + row[:, None] * K + col[None, :], acc, mask=(col < K)[None, :])


@triton.jit
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
