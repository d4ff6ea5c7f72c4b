"""The head loss with its products in cuBLAS: for rows that the host knows, or a trainable head.

    z  = h Wᵀ                      fp32 out of cuBLAS                    [m, V]
    dz = w (softmax(z) − onehot)   written over z in the dtype of h      softmax_kernel
    dhidden[rows] = dz W           cuBLAS
    dW += dzᵀ h                    cuBLAS, in fp32, a slice of V at a time

Logits are fp32, never rounded; they cost 8 instead of 4 bytes of traffic each. cuBLAS takes its
row count from the host: every row of `row_index` is computed, or all rows without one. A chunk of
rows takes at most CHUNK_BYTES; dW takes 4 V K bytes more until it is rounded.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from liftcore.kernels.head_loss import Inputs
from liftcore.kernels.head_loss_logits import cap_parts, log1p, row_terms
from liftcore.kernels.tiling import launch

# Memory of one chunk of rows: logits, the gathered rows and their gradient.
CHUNK_BYTES = 256 * 2**20
DWEIGHT_BYTES = 64 * 2**20
BLOCK = 4096
SOFT_BLOCK = 2048  # the soft targets take registers too
WARPS = 8


@triton.jit
def softmax_kernel(
    z, dz, labels, w, rows, loss, V, scale, cap, stride_z, stride_dz,
    CAP: tl.constexpr, KEEP: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """loss[token] of one row of z [m, V] fp32 (before scale and cap), and dz over z."""
    row = tl.program_id(0).to(tl.int64)
    token = tl.load(rows + row)
    listed = token >= 0  # −1 fills a list up
    label = tl.load(labels + token, mask=listed, other=-1)
    weight = tl.load(w + token, mask=listed, other=0.0)
    z += row * stride_z
    dz += row * stride_dz
    lane = tl.arange(0, BLOCK)
    target = tl.load(z + label, mask=(label >= 0) & (label < V), other=float("nan")) * scale
    slope_target = 1.0
    if CAP:
        target, slope_target = cap_parts(target, cap)
    top = tl.full((BLOCK,), -1e30, tl.float32)
    others = tl.zeros((BLOCK,), tl.float32)
    for v in tl.range(0, V, BLOCK):
        x = tl.load(z + v + lane, mask=lane < V - v, other=0.0) * scale
        if CAP:
            x, slope = cap_parts(x, cap)
        x = tl.where((lane < V - v) & (lane != label - v), x, float("-inf"))
        peak = tl.maximum(top, x)
        others = others * tl.exp(top - peak) + tl.exp(x - peak)
        top = peak
    peak = tl.max(top, 0)
    others = tl.sum(others * tl.exp(top - peak), 0)
    nll, share, rest = row_terms(peak, others, target)
    # A row of padding may have no label: 0 · NaN must stay 0.
    scored = weight != 0.0
    tl.store(loss + token, tl.where(scored, weight * nll, 0.0), mask=scored)
    if KEEP:
        share = weight * scale * share
        at_target = -weight * scale * slope_target * rest
        for v in tl.range(0, V, BLOCK):
            x = tl.load(z + v + lane, mask=lane < V - v, other=0.0) * scale
            slope = 1.0
            if CAP:
                x, slope = cap_parts(x, cap)
            x = tl.where(lane == label - v, at_target, share * slope * tl.exp(x - peak))
            x = tl.where(scored, x, 0.0)
            # dz lies over the first half of z's row: all must have read before one writes.
            tl.debug_barrier()
            tl.store(dz + v + lane, x.to(dz.dtype.element_ty), mask=lane < V - v)


@triton.jit(do_not_specialize=["k"])
def soft_softmax_kernel(
    z, dz, ids, probs, w, rows, loss, V, k, scale, cap, stride_z, stride_dz,
    CAP: tl.constexpr, KEEP: tl.constexpr, BLOCK: tl.constexpr, TARGETS: tl.constexpr,
):  # fmt: skip
    """loss[token] of one row of z [m, V] fp32 (before scale and cap), and dz over z.

    ids and probs [T, k]: probability 0 is no target, and no id stands twice beside it.
    """
    row = tl.program_id(0).to(tl.int64)
    token = tl.load(rows + row).to(tl.int64)
    listed = token >= 0  # −1 fills a list up
    weight = tl.load(w + token, mask=listed, other=0.0)
    scored = weight != 0.0
    z += row * stride_z
    dz += row * stride_dz
    lane = tl.arange(0, BLOCK)
    place = tl.arange(0, TARGETS)
    inside = place < tl.where(scored, k, 0)
    p = tl.load(probs + token * k + place, mask=inside, other=0.0)
    used = p != 0.0
    id = tl.load(ids + token * k + place, mask=used, other=0).to(tl.int64)
    known = used & (id >= 0) & (id < V)
    # NaN, so that an id outside of the vocabulary is seen.
    x_target = tl.load(z + id, mask=known, other=float("nan")) * scale
    slope_target = 1.0
    if CAP:
        x_target, slope_target = cap_parts(x_target, cap)
    x_target = tl.where(used, x_target, float("-inf"))
    # Every thread must have read the targets before one writes.
    tl.debug_barrier()
    tl.store(z + id, tl.full((TARGETS,), float("-inf"), tl.float32), mask=known)
    tl.debug_barrier()

    top = tl.full((BLOCK,), -1e30, tl.float32)
    others = tl.zeros((BLOCK,), tl.float32)
    for v in tl.range(0, V, BLOCK):
        x = tl.load(z + v + lane, mask=lane < V - v, other=float("-inf"))
        counts = x != float("-inf")
        x = x * scale
        if CAP:
            x, slope = cap_parts(x, cap)
        x = tl.where(counts, x, float("-inf"))
        peak = tl.maximum(top, x)
        others = others * tl.exp(top - peak) + tl.exp(x - peak)
        top = peak
    peak = tl.max(top, 0)
    others = tl.sum(others * tl.exp(top - peak), 0)

    highest = tl.maximum(peak, tl.max(x_target, 0))
    others = others * tl.exp(peak - highest)
    e = tl.exp(x_target - highest)
    # Only the likeliest target can hold more than half of the softmax.
    is_first = place == tl.argmax(e, 0)
    e_first = tl.sum(tl.where(is_first, e, 0.0), 0)
    rest = others + tl.sum(tl.where(is_first, 0.0, e), 0)
    total = rest + e_first
    p_rest = tl.sum(tl.where(is_first, 0.0, p), 0)
    mass = p_rest + tl.sum(tl.where(is_first, p, 0.0), 0)
    nll = tl.log(total) - (x_target - highest)
    sure = tl.where(is_first, e_first, 0.0) > 0.5
    nll = tl.where(sure, log1p(rest / tl.where(sure, e_first, 1.0)), nll)
    nll = tl.sum(tl.where(used, p * nll, 0.0), 0)
    tl.store(loss + token, weight * nll, mask=scored)
    if KEEP:
        share = weight * scale * (mass / total) * tl.exp(peak - highest)
        for v in tl.range(0, V, BLOCK):
            x = tl.load(z + v + lane, mask=lane < V - v, other=float("-inf"))
            counts = x != float("-inf")
            x = x * scale
            slope = 1.0
            if CAP:
                x, slope = cap_parts(x, cap)
            x = tl.where(counts, share * slope * tl.exp(x - peak), 0.0)
            x = tl.where(scored, x, 0.0)
            # dz lies over the first half of z's row: all must have read before one writes.
            tl.debug_barrier()
            tl.store(dz + v + lane, x.to(dz.dtype.element_ty), mask=lane < V - v)
        at_target = tl.where(is_first, p_rest - mass * rest / total, mass * e / total - p)
        at_target = weight * scale * slope_target * at_target
        tl.debug_barrier()
        tl.store(dz + id, at_target.to(dz.dtype.element_ty), mask=known)


def head_loss(given: Inputs) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """The loss, dhidden and dweight: see Inputs."""
    hidden, weight, labels, w, row_index, cap, scale, want_hidden, want_weight, _, probs = given
    (t, k), v = hidden.shape, weight.shape[0]
    loss = torch.zeros(t, dtype=torch.float32, device=hidden.device)
    # One row more: the −1 that fills a list up is written there.
    dhidden = hidden.new_zeros(t + 1, k) if want_hidden else None
    dweight = weight.new_zeros(weight.shape, dtype=torch.float32) if want_weight else None
    rows = torch.arange(t, device=hidden.device) if row_index is None else row_index.long()
    targets = (labels.contiguous(), None if probs is None else probs.contiguous())
    for part in rows.split(_chunk(rows.shape[0], v, k, hidden.element_size())):
        _one_chunk(hidden, weight, targets, w, part, cap, scale, loss, dhidden, dweight)
    dhidden = None if dhidden is None else dhidden[:t]
    return loss, dhidden, dweight


def _chunk(rows: int, v: int, k: int, itemsize: int) -> int:
    """Rows of one chunk: within CHUNK_BYTES, a multiple of 64, and all chunks about as large."""
    most = max(64, CHUNK_BYTES // (4 * v + 2 * k * itemsize) // 64 * 64)
    chunks = max(1, triton.cdiv(rows, most))
    return max(64, triton.cdiv(triton.cdiv(rows, chunks), 64) * 64)


def _one_chunk(
    hidden: Tensor,
    weight: Tensor,
    targets: tuple[Tensor, Tensor | None],  # labels [T], or ids and probs [T, k]
    w: Tensor,
    rows: Tensor,  # [m]
    softcap: float | None,
    scale: float,
    loss: Tensor,
    dhidden: Tensor | None,  # [T + 1, K]
    dweight: Tensor | None,
) -> None:
    numbers = (float(scale), float(softcap or 1.0))
    if not rows.shape[0] or not hidden.shape[0]:
        return
    at = rows.clamp_min(0)
    h = hidden.index_select(0, at)  # [m, K]
    if dweight is not None:
        # A row that is not scored may hold NaN: 0 · NaN must stay 0 in dzᵀ h.
        h.masked_fill_((w[at] == 0)[:, None], 0.0)
    z = _product_fp32(h, weight.T)  # [m, V]
    assert z.dtype == torch.float32
    dz = z.view(h.dtype)[:, : z.shape[1]]  # in the place of z
    keep = dhidden is not None or dweight is not None
    (labels, probs), v = targets, z.shape[1]
    flags = {"CAP": softcap is not None, "KEEP": keep, "BLOCK": BLOCK}
    strides = (z.stride(0), dz.stride(0))
    if probs is None:
        args = (z, dz, labels, w, rows, loss, v, *numbers, *strides)
        launch(softmax_kernel, (h.shape[0],), args, flags, WARPS)
    else:
        args = (z, dz, labels, probs, w, rows, loss, v, probs.shape[1], *numbers, *strides)
        flags |= {"BLOCK": SOFT_BLOCK, "TARGETS": triton.next_power_of_2(probs.shape[1])}
        launch(soft_softmax_kernel, (h.shape[0],), args, flags, WARPS)
    if dhidden is not None:
        # A row of weight 0 may be listed again and again: its gradient is 0 each time, so that
        # the order is no matter.
        dhidden.index_copy_(0, rows % dhidden.shape[0], dz @ weight)
    if dweight is not None:
        step = max(1, DWEIGHT_BYTES // (4 * h.shape[1]))
        for v in range(0, z.shape[1], step):
            dweight[v : v + step] += _product_fp32(dz[:, v : v + step].T, h)


def _product_fp32(a: Tensor, b: Tensor) -> Tensor:
    """a b in fp32 without a rounding between."""
    if a.is_cuda and a.dtype != torch.float32:
        return torch.mm(a, b, out_dtype=torch.float32)
    return a.float() @ b.float()
