"""The Triton kernel of the head loss with soft targets: a row of logits to its loss and dz.

As softmax_kernel of head_loss_cublas.py, with k targets in place of one label. The targets are
read first and −∞ is put in their place in z, so that the passes over the vocabulary leave them
out without a comparison for each; their own dz is written last.
"""

from __future__ import annotations

import triton
import triton.language as tl

from liftcore.kernels.head_loss_triton import cap_parts, log1p


@triton.jit
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
