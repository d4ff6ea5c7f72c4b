"""The twins of the CUDA library's ops in plain PyTorch: the formulas and the shapes.

They run on any device and never make the host wait, so that they too can stand in a CUDA graph.
"""

from __future__ import annotations

import torch
from torch import Tensor

IGNORE = -100


@torch.no_grad()
def segment_batch(tables, step: Tensor, out, size: int, stride: int, loss: str) -> None:
    """Fills Buffers from Tables for step[0] and adds 1 to it: see segment_batch.py."""
    tokens, prefix, table, firsts = tables
    length, p, width = tokens.numel(), prefix.numel(), prefix.numel() + size
    live = (step[0] >= 0) & (step[0] < table.shape[0])
    at = step[:1].clamp(0, table.shape[0] - 1)
    number = torch.where(live, table.index_select(0, at)[0].long(), -1)[:, None]  # [B, 1]
    first = firsts.index_select(0, at).long()  # [1]
    here = number >= 0
    begin = (first - size + number * stride).clamp_min(0)
    end = (first + number * stride).clamp_max(length)

    t = torch.arange(width, device=tokens.device)[None]  # [1, W]
    held = begin + t - p  # [B, W]: the document's token that row t holds
    target = held + 1
    text = here & (t >= p) & (held < end)
    ids = torch.where(text, tokens[held.clamp(0, length - 1)], 0)
    if p:
        ids = torch.where(here & (t < p), prefix[t.clamp_max(p - 1)], ids)

    scored = here & (t >= (p or 1) - 1) & (t + 1 >= p) & (target < end)
    weight = torch.ones_like(ids, dtype=torch.float32)
    if loss == "new":
        known = (first + (number - 1) * stride).clamp_max(length)
        scored = scored & ((number == 0) | (target >= known))
    elif loss == "mean":
        count = 1 + -((first - length).clamp_max(0) // stride)
        last = torch.minimum(count - 1, (target - first + size) // stride)
        before = torch.where(target < first, 0, (target - first) // stride + 1)
        weight = 1 / (last - before + 1).float()

    out.input_ids.copy_(ids)
    out.labels.copy_(torch.where(scored, tokens[target.clamp(0, length - 1)], IGNORE))
    out.weights.copy_(torch.where(scored, weight, 0))
    out.position_ids.copy_(t.expand_as(ids))
    flat, most = scored.flatten(), out.row_index.numel()
    place = torch.where(flat, flat.cumsum(0) - 1, most).clamp_max(most)
    # One place more than there is takes the rows that are not listed.
    rows = out.row_index.new_full((most + 1,), width - 1)
    rows.scatter_(0, place, torch.arange(flat.numel(), device=flat.device))
    out.row_index.copy_(rows[:most])
    out.count.copy_(flat.sum())
    step[:1].add_(live.long())


@torch.no_grad()
def lora_adamw(
    master, exp_avg, exp_avg_sq, grads, shadows, scales, rates, step, norm, status,
    max_norm, beta1, beta2, eps, weight_decay,
) -> None:  # fmt: skip
    """One update of State: see lora_adamw.py."""
    grad = torch.cat([g.flatten().float() for g in grads])  # [P]
    size = torch.linalg.vector_norm(grad, dtype=torch.float64).to(norm.dtype).reshape(1)
    finite = size.isfinite()  # [1]
    rate = rates.index_select(0, step.clamp_max(rates.numel() - 1)).double()
    t = (step + finite).double()

    grad = grad * (max_norm / (size + 1e-6)).clamp_max(1)
    first = exp_avg + (1 - beta1) * (grad - exp_avg)
    second = beta2 * exp_avg_sq + (1 - beta2) * grad * grad
    root = 1 / (1 - beta2**t).sqrt()
    change = (rate / (1 - beta1**t)).float() * first / (second.sqrt() * root.float() + eps)
    value = (1 - rate * weight_decay).float() * master - change
    # Written last: where the memory ends before, nothing has changed.
    norm.copy_(size)
    status[:1].copy_(~finite)
    status[1:].add_(~finite)
    step.add_(finite)
    for old, new in ((master, value), (exp_avg, first), (exp_avg_sq, second)):
        old.copy_(torch.where(finite, new, old))
    values = master.split([s.numel() for s in shadows])
    for shadow, scale, flat in zip(shadows, scales, values, strict=True):
        shadow.copy_(torch.where(finite, scale * flat.view(shadow.shape), shadow))
    for g in grads:
        g.zero_()
