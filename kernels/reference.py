"""Every op of liftcore in plain PyTorch: the formulas and the shapes.

These functions are the truth for the tests. They are written to be read, for any dtype (the
tests use fp64), and are differentiated by autograd. One spelling a dimension everywhere:
T tokens, K in features, N out features, R rank, V vocabulary. The twins of the CUDA library's
ops, at the end, run on any device and never make the host wait, so that they too can stand in a
CUDA graph.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from liftcore.kernels.segment_batch import Buffers, Tables

IGNORE = -100  # the label of a row that is not scored


def lora_linear(
    x: Tensor,
    weight: Tensor,
    lora_a: Tensor,
    lora_b: Tensor,
    scaling: float,
    bias: Tensor | None = None,
) -> Tensor:
    """y = x Wᵀ + scaling (x Aᵀ) Bᵀ (+ bias).

    Shapes: x [..., K], weight [N, K], lora_a [R, K], lora_b [N, R], bias [N] -> [..., N].
    Source: "LoRA: Low-Rank Adaptation of Large Language Models", equation 3.
    """
    return F.linear(x, weight, bias) + scaling * F.linear(F.linear(x, lora_a), lora_b)


def lora_qkv(
    x: Tensor,
    weights: Sequence[Tensor],
    lora_a: Sequence[Tensor],
    lora_b: Sequence[Tensor],
    scalings: Sequence[float],
    biases: Sequence[Tensor | None] | None = None,
) -> tuple[Tensor, ...]:
    """A tuple of lora_linear over members that share x; each argument holds one a member."""
    biases = biases or [None] * len(weights)
    groups = zip(weights, lora_a, lora_b, scalings, biases, strict=True)
    return tuple(lora_linear(x, *member) for member in groups)


def lora_gate_up(
    x: Tensor,
    weights: Sequence[Tensor],
    lora_a: Sequence[Tensor],
    lora_b: Sequence[Tensor],
    scalings: Sequence[float],
    biases: Sequence[Tensor | None] | None = None,
    activation: str = "silu",
) -> Tensor:
    """act(gate) · up with (gate, up) = the LoRA linears of x; act is silu or gelu_tanh."""
    gate, up = lora_qkv(x, weights, lora_a, lora_b, scalings, biases)
    return _activation(activation)(gate) * up


def _activation(name: str) -> Callable[[Tensor], Tensor]:
    return F.silu if name == "silu" else functools.partial(F.gelu, approximate="tanh")


def lora_linear_many(
    x: Tensor,
    weight: Tensor,
    lora_a: Tensor,
    lora_b: Tensor,
    adapter_of_tile: Tensor,
    scaling: float,
    bias: Tensor | None = None,
) -> Tensor:
    """lora_linear of each tile of rows with the adapter of its own.

    Shapes: x [T, K], weight [N, K], lora_a [E, R, K], lora_b [E, N, R], adapter_of_tile int [n],
    bias [N] -> [T, N]; tile i is rows i · T / n to (i + 1) · T / n.
    """
    tiles = zip(x.chunk(len(adapter_of_tile)), adapter_of_tile.tolist(), strict=True)
    ys = [lora_linear(rows, weight, lora_a[e], lora_b[e], scaling, bias) for rows, e in tiles]
    return torch.cat(ys)


def lora_qkv_many(
    x: Tensor,
    weights: Sequence[Tensor],
    lora_a: Sequence[Tensor],
    lora_b: Sequence[Tensor],
    adapter_of_tile: Tensor,
    scalings: Sequence[float],
    biases: Sequence[Tensor | None] | None = None,
) -> tuple[Tensor, ...]:
    """A tuple of lora_linear_many over members that share x."""
    biases = biases or [None] * len(weights)
    groups = zip(weights, lora_a, lora_b, scalings, biases, strict=True)
    return tuple(lora_linear_many(x, *m[:3], adapter_of_tile, *m[3:]) for m in groups)


def lora_gate_up_many(
    x: Tensor,
    weights: Sequence[Tensor],
    lora_a: Sequence[Tensor],
    lora_b: Sequence[Tensor],
    adapter_of_tile: Tensor,
    scalings: Sequence[float],
    biases: Sequence[Tensor | None] | None = None,
    activation: str = "silu",
) -> Tensor:
    """act(gate) · up with (gate, up) = lora_qkv_many; act is silu or gelu_tanh."""
    gate, up = lora_qkv_many(x, weights, lora_a, lora_b, adapter_of_tile, scalings, biases)
    return _activation(activation)(gate) * up


def fp8_rounded(x: Tensor) -> Tensor:
    """The rows of x [M, K] as FP8 holds them, fp64: each number to the nearest of e4m3, by torch's
    own cast, under the smallest power of two that has all of the row in its range.

    The linears over FP8 are lora_linear with Q(x) Q(W)ᵀ in the place of x Wᵀ, and dx has
    Q(dy) Q(Q(W)ᵀ)ᵀ in the place of dy W.
    """
    wide = x.detach().double()
    largest = wide.abs().amax(1, keepdim=True).clamp_min(1e-30)
    most = torch.finfo(torch.float8_e4m3fn).max
    scale = 2.0 ** torch.ceil(torch.log2(largest / most)).clamp(-40, 40)
    return (wide / scale).float().to(torch.float8_e4m3fn).double() * scale


def soft_cap(logits: Tensor, cap: float | None) -> Tensor:
    """cap · tanh(logits / cap), as in Gemma 2; the identity for None."""
    return logits if cap is None else cap * torch.tanh(logits / cap)


def linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    *,
    token_weights: Tensor | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
    softcap: float | None = None,
    logit_scale: float = 1.0,
) -> Tensor:
    """Σ_t w_t · (logsumexp(z_t) − z_t[label_t]) with z = softcap(logit_scale · hidden Wᵀ).

    Shapes: hidden [T, K], weight [V, K], labels [T], token_weights [T] or None (all ones).
    A row with label `ignore_index` or weight 0 is not scored. Returns a scalar, or [T] with
    reduction "none" (the weighted loss of each row, 0 where not scored). "mean" divides by the
    sum of the weights of the scored rows and is 0 when no row is scored.
    """
    scored = labels != ignore_index
    w = scored.to(hidden.dtype)
    if token_weights is not None:
        w = w * token_weights.to(hidden.dtype)
    logits = soft_cap(logit_scale * F.linear(hidden, weight), softcap)  # [T, V]
    target = labels.masked_fill(~scored, 0)
    nll = logits.logsumexp(-1) - logits.gather(-1, target[:, None]).squeeze(-1)  # [T]
    return _weigh(nll, w, reduction)


def linear_soft_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    target_ids: Tensor,
    target_probs: Tensor,
    *,
    token_weights: Tensor | None = None,
    reduction: str = "mean",
    softcap: float | None = None,
    logit_scale: float = 1.0,
) -> Tensor:
    """−Σ_t w_t Σ_j p_tj log softmax(z_t)[id_tj] with z = softcap(logit_scale · hidden Wᵀ).

    Shapes: hidden [T, K], weight [V, K], target_ids and target_probs [T, k], token_weights [T] or
    None (all ones). An id of −1 or a probability of 0 is no target; a row without targets or of
    weight 0 is not scored. An id may stand twice. Reductions as for linear_cross_entropy.
    """
    used = (target_ids >= 0) & (target_probs != 0)
    w = used.any(-1).to(hidden.dtype)
    if token_weights is not None:
        w = w * token_weights.to(hidden.dtype)
    logits = soft_cap(logit_scale * F.linear(hidden, weight), softcap)  # [T, V]
    ids = target_ids.long().masked_fill(~used, 0)
    probs = target_probs.to(logits.dtype).masked_fill(~used, 0.0)
    nll = logits.logsumexp(-1, keepdim=True) - logits.gather(-1, ids)  # [T, k]
    return _weigh((probs * nll).sum(-1), w, reduction)


def _weigh(nll: Tensor, w: Tensor, reduction: str) -> Tensor:
    """The loss of rows nll [T] of weight w [T]."""
    loss = torch.where(w != 0, w * nll, torch.zeros_like(nll))
    if reduction == "none":
        return loss
    if reduction == "sum":
        return loss.sum()
    total = w.sum()
    return loss.sum() / torch.where(total == 0, torch.ones_like(total), total)


@torch.no_grad()
def segment_batch(
    tables: Tables, step: Tensor, out: Buffers, size: int, stride: int, loss: str
) -> None:
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
    master: Tensor, exp_avg: Tensor, exp_avg_sq: Tensor, grad: Tensor, shadow: Tensor,
    rates: Tensor, step: Tensor, norm: Tensor, status: Tensor,
    max_norm: float, beta1: float, beta2: float, eps: float, weight_decay: float,
) -> None:  # fmt: skip
    """One update of State: see adamw.py."""
    g = grad.float()  # [P]
    size = torch.linalg.vector_norm(g, dtype=torch.float64).to(norm.dtype).reshape(1)
    finite = size.isfinite()  # [1]
    rate = rates.index_select(0, step.clamp_max(rates.numel() - 1)).double()
    t = (step + finite).double()

    g = g * (max_norm / (size + 1e-6)).clamp_max(1)
    first = exp_avg + (1 - beta1) * (g - exp_avg)
    second = beta2 * exp_avg_sq + (1 - beta2) * g * g
    root = 1 / (1 - beta2**t).sqrt()
    change = (rate / (1 - beta1**t)).float() * first / (second.sqrt() * root.float() + eps)
    value = (1 - rate * weight_decay).float() * master - change
    # Written last: where the memory ends before, nothing has changed.
    norm.copy_(size)
    status[:1].copy_(~finite)
    status[1:].add_(~finite)
    step.add_(finite)
    for old, new in ((master, value), (exp_avg, first), (exp_avg_sq, second), (shadow, value)):
        old.copy_(torch.where(finite, new, old))
    grad.zero_()
