"""The Triton head loss, forward: a chunk of rows at a time, never a wait for the device.

    compact   index = rows t with w_t ≠ 0, count                           one program
    logits    e = exp(z − top_tile), top_tile, Σ e     of each tile of     z = h Wᵀ
    finish    loss, dz = w (e · exp(top_tile − lse) − onehot)              in place of e

The number of scored rows never leaves the device: every kernel reads `count` and a program with
no row of its own ends at once. Logits are never rounded: e is formed from the fp32 accumulator
relative to the largest other logit of its row in its tile, so it fits any dtype. It is rounded
when it is stored, and again as dz. The target is left out of every sum, so softmax − 1 is
−(sum of the others) / total and keeps its precision for a token that the model is almost sure of.
Every chunk up to the last possible row is launched; one behind the last scored row costs its
launches only. What follows from dz is in head_loss_dhidden.py.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from liftcore.kernels.device import architecture, processors
from liftcore.kernels.head_loss import Inputs
from liftcore.kernels.head_loss_dhidden import MAX_SPLITS, product
from liftcore.kernels.tiles import Tile, head_tiles
from liftcore.kernels.tiling import (
    add_product,
    can_use_tma,
    corner_of,
    describe,
    describe_output,
    launch,
    store_tile,
)

# Memory of one chunk of rows: exponentials, statistics and partial sums.
CHUNK_BYTES = 256 * 2**20
PART_BYTES = 16 * 2**20  # partial sums of a few rows may take this much
COMPACT_BLOCK = 1024
FINISH_BLOCK = 4096
TARGET_BLOCK = 1024


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


# What depends on the number of tokens is not specialised: one kernel serves all of them.
@triton.jit(do_not_specialize=["entries"])
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


@triton.jit(do_not_specialize=["start", "most"])
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
            z, h, weight, m, n, live, V, K, stride_h, stride_w, BM, BN, BK, True, TMA, False,
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
            store_tile(e, z * slope, m, n, live, V, stride_e, BM, BN, TMA, False)


@triton.jit(do_not_specialize=["start"])
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


def find_rows(w: Tensor, row_index: Tensor | None) -> tuple[Tensor, Tensor]:
    """The rows of w [T] that are not 0, in order, padded with row 0; and their number [1].

    Only rows of `row_index`, where there is one; −1 in it is no row.
    """
    entries = w.shape[0] if row_index is None else row_index.shape[0]
    index = torch.zeros(entries, dtype=torch.int32, device=w.device)
    count = torch.empty(1, dtype=torch.int32, device=w.device)
    rows = w if row_index is None else row_index.contiguous()
    constexprs = {"ROWS": row_index is not None, "BLOCK": COMPACT_BLOCK}
    launch(compact_kernel, (1,), (w, rows, index, count, entries), constexprs)
    return index, count


def head_loss(given: Inputs) -> tuple[Tensor, Tensor | None, None]:
    """The loss and dhidden: see Inputs. There is no dweight, and there are no soft targets."""
    hidden, weight, labels, w, row_index, softcap, logit_scale, want_hidden, *_ = given
    (t, k), v = hidden.shape, weight.shape[0]
    weight, labels = _rows_contiguous(weight), labels.contiguous()
    loss = torch.zeros(t, dtype=torch.float32, device=hidden.device)
    dhidden = hidden.new_zeros(t, k) if want_hidden else None
    index, count = find_rows(w, row_index)
    entries = index.shape[0] if t else 0
    size = hidden.element_size()
    aligned = not any(n % 16 for n in (weight.data_ptr(), weight.stride(0) * size, k * size))
    tile, product_tile = head_tiles(architecture(hidden.device), size, aligned, softcap is not None)
    tiles_v = triton.cdiv(v, tile.bn)
    width = triton.cdiv(v, 64) * 64  # rows of e start on a 128-byte line whatever V is
    row_bytes = (want_hidden * width + k) * size + 8 * tiles_v + want_hidden * 16 * k
    chunk = max(1, CHUNK_BYTES // row_bytes // tile.bm) * tile.bm
    m = min(chunk, max(1, triton.cdiv(entries, tile.bm)) * tile.bm)
    e = hidden.new_empty(m if want_hidden else 1, width)[:, :v]
    stats = torch.empty(2, m, tiles_v, dtype=torch.float32, device=hidden.device)
    capacity = max(4 * m, min(MAX_SPLITS * m, PART_BYTES // (4 * k))) if want_hidden else 0
    part = torch.empty(capacity, k, dtype=torch.float32, device=hidden.device)
    flags = {"CAP": softcap is not None, "KEEP": want_hidden}
    numbers = (float(logit_scale), float(softcap or 1.0))
    for start in range(0, entries, m):
        h = hidden.index_select(0, index[start : start + m])  # [m, K]
        logits(h, weight, labels, index, count, e, stats, start, numbers, flags, tile)
        launch(
            finish_kernel,
            (h.shape[0],),
            (
                e, *stats, h, weight, labels, w, index, count, loss, start, v, k, *numbers,
                e.stride(0), h.stride(0), weight.stride(0), tiles_v,
            ),
            {"BN": tile.bn, "BK": TARGET_BLOCK, "TILES": max(1, FINISH_BLOCK // tile.bn), **flags},
            warps=8,
        )  # fmt: skip
        if dhidden is not None:
            product(e, weight, part, dhidden, index, count, start, h.shape[0], product_tile)
    return loss, dhidden, None


def logits(
    h: Tensor,  # [m, K]
    weight: Tensor,  # [V, K]
    labels: Tensor,  # [T]
    index: Tensor,  # [M] int32
    count: Tensor,  # [1] int32
    e: Tensor,  # [m, V]
    stats: Tensor,  # [2, m, tiles of V] fp32
    start: int,
    numbers: tuple[float, float],
    flags: dict[str, bool],
    tile: Tile,
) -> None:
    """Writes e and its statistics of the rows h."""
    (m, k), v = h.shape, weight.shape[0]
    tma = can_use_tma(architecture(h.device), h, weight, e)
    strides = (h.stride(0), weight.stride(0), e.stride(0), stats.shape[2])
    matrices = (h, weight, e)
    if tma:
        sides = describe(h, tile.bm, tile.bk), describe(weight, tile.bn, tile.bk)
        matrices = *sides, describe_output(e, tile.bm, tile.bn)
    launch(
        logits_kernel,
        (min(triton.cdiv(m, tile.bm) * triton.cdiv(v, tile.bn), processors(h.device)),),
        (
            *matrices[:2], labels, index, count, matrices[2], *stats,
            start, m, v, k, *numbers, *strides,
        ),
        {**tile.shape, **flags, "TMA": tma},
        tile.warps,
        tile.stages,
    )  # fmt: skip


def _rows_contiguous(x: Tensor) -> Tensor:
    return x if x.stride(1) == 1 else x.contiguous()
