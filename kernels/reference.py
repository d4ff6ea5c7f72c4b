"""Every op of liftcore in plain PyTorch: the formulas and the shapes.

These functions are the truth for the tests. They are written to be read, for any dtype (the
tests use fp64), and are differentiated by autograd. One spelling a dimension everywhere:
T tokens, K in features, N out features, R rank, V vocabulary.
"""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F
from torch import Tensor


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


def lora_qkv(x, weights, lora_a, lora_b, scalings, biases=None):
    """A tuple of lora_linear over members that share x; each argument holds one a member."""
    biases = biases or [None] * len(weights)
    groups = zip(weights, lora_a, lora_b, scalings, biases, strict=True)
    return tuple(lora_linear(x, *member) for member in groups)


def lora_gate_up(x, weights, lora_a, lora_b, scalings, biases=None, activation="silu"):
    """act(gate) · up with (gate, up) = the LoRA linears of x; act is silu or gelu_tanh."""
    gate, up = lora_qkv(x, weights, lora_a, lora_b, scalings, biases)
    act = F.silu if activation == "silu" else functools.partial(F.gelu, approximate="tanh")
    return act(gate) * up


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
