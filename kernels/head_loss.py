"""LM head and cross entropy over the scored rows only.

    z_t  = softcap(logit_scale · hidden_t Wᵀ)         [V]   for rows t with weight w_t ≠ 0
    loss = Σ_t w_t (logsumexp(z_t) − z_t[label_t])
    dz_t = w_t (softmax(z_t) − onehot(label_t))       [V]   through the cap and the scale
    dhidden_t = dz_t W                                [K]

The logits exist a chunk of rows at a time and the gradient is formed in the forward, so the
backward only multiplies it by the upstream gradient. Statistics are fp32. The head is frozen.
"""

from __future__ import annotations

import torch
from torch import Tensor

# Rows of logits alive at once: large enough for the matrix product, small enough for memory.
CHUNK_BYTES = 128 * 2**20


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden, weight, labels, w, softcap, logit_scale):
        rows = w.nonzero().squeeze(-1)  # [M]
        loss = torch.zeros(hidden.shape[0], dtype=torch.float32, device=hidden.device)  # [T]
        need_grad = ctx.needs_input_grad[0]
        grad = torch.zeros_like(hidden) if need_grad else None
        chunk = max(1, CHUNK_BYTES // (4 * weight.shape[0]))
        for part in rows.split(chunk):
            h, target, wp = hidden[part], labels[part, None], w[part]
            z, slope = _logits(h, weight, softcap, logit_scale)  # [m, V]
            nll, dz = _nll_and_dz(z, target)
            loss[part] = wp * nll
            if need_grad:
                dz.mul_(slope) if slope is not None else dz.mul_(logit_scale)
                grad[part] = dz.to(weight.dtype) @ weight
        ctx.save_for_backward(grad, w)
        return loss

    @staticmethod
    def backward(ctx, dloss):
        grad, w = ctx.saved_tensors
        return grad * (dloss * w)[:, None].to(grad.dtype), None, None, None, None, None


def _nll_and_dz(z, target):
    """Loss [m] and d loss / dz [m, V] of each row; z is overwritten.

    The target is left out of the sum: softmax − 1 is then −(sum of the others) / total, which
    stays exact for a token that the model is almost sure of.
    """
    top = z.amax(-1, keepdim=True)
    z_target = z.gather(-1, target) - top
    e_target = z_target.exp()
    dz = z.sub_(top).exp_().scatter_(-1, target, 0.0)
    others = dz.sum(-1, keepdim=True)
    total = others + e_target
    nll = torch.where(e_target > 0.5, torch.log1p(others / e_target), total.log() - z_target)
    dz.div_(total).scatter_(-1, target, -others / total)
    return nll.squeeze(-1), dz


def _logits(h, weight, softcap, logit_scale):
    """fp32 logits [m, V] and d logits / d (h Wᵀ) where a cap makes it vary (else None)."""
    z = (h @ weight.T).float()
    if logit_scale != 1.0:
        z.mul_(logit_scale)
    if softcap is None:
        return z, None
    t = z.div_(softcap).tanh_()
    return t * softcap, t.square_().neg_().add_(1.0).mul_(logit_scale)


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
    """Weighted cross entropy of the LM head, computed for the scored rows only.

    Shapes: hidden [T, K], weight [V, K] (frozen), labels [T] int64, token_weights [T] float or
    None -> a fp32 scalar, or [T] with reduction "none". A row whose label is `ignore_index` or
    whose weight is 0 costs nothing: no logits and no gradient. "mean" divides by the sum of the
    weights of the scored rows and is 0 when there are none. `softcap` and `logit_scale` give the
    logits of Gemma 2 and Granite. Raises ValueError when shapes or the reduction do not fit.
    """
    if hidden.ndim != 2 or weight.ndim != 2 or hidden.shape[1] != weight.shape[1]:
        raise ValueError(
            f"linear_cross_entropy: hidden {tuple(hidden.shape)} and weight "
            f"{tuple(weight.shape)} do not fit [T, K], [V, K]"
        )
    if labels.shape != hidden.shape[:1]:
        raise ValueError(f"linear_cross_entropy: labels {tuple(labels.shape)} are not [T]")
    if reduction not in ("mean", "sum", "none"):
        raise ValueError(f"linear_cross_entropy: unknown reduction {reduction!r}")
    w = (labels != ignore_index).float()
    if token_weights is not None:
        w = w * token_weights.float()
    loss = _LinearCrossEntropy.apply(hidden, weight, labels, w, softcap, float(logit_scale))
    if reduction == "none":
        return loss
    if reduction == "sum":
        return loss.sum()
    return loss.sum() / w.sum().clamp_min(torch.finfo(torch.float32).tiny)
