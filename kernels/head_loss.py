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

# Bytes of fp32 logits alive at once: enough rows for a fast product, few enough for the cache.
CHUNK_BYTES = 48 * 2**20


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden, weight, labels, w, softcap, logit_scale):
        rows = w.nonzero().squeeze(-1)  # [M]
        loss = torch.zeros(hidden.shape[0], dtype=torch.float32, device=hidden.device)  # [T]
        grad = torch.zeros_like(hidden) if ctx.needs_input_grad[0] else None
        chunk = max(1, min(len(rows), CHUNK_BYTES // (4 * weight.shape[0])))
        # Two buffers for all chunks: fresh memory costs more than the arithmetic on it.
        product = hidden.new_empty(chunk, weight.shape[0])
        logits = torch.empty_like(product, dtype=torch.float32)
        for part in rows.split(chunk):
            z, dz = logits[: len(part)], product[: len(part)]
            z.copy_(torch.mm(hidden[part], weight.T, out=dz))
            slope = _cap_and_scale(z, softcap, logit_scale)
            loss[part] = w[part] * _nll_and_dz(z, labels[part, None])
            if grad is not None:
                if slope is not None:
                    z.mul_(slope)
                grad[part] = torch.mm(dz.copy_(z), weight)
        ctx.save_for_backward(grad, w)
        return loss

    @staticmethod
    def backward(ctx, dloss):
        grad, w = ctx.saved_tensors
        return grad * (dloss * w)[:, None].to(grad.dtype), None, None, None, None, None


def _cap_and_scale(z, softcap, logit_scale):
    """Turns products [m, V] into logits in place; returns d logits / d product, None for 1."""
    if logit_scale != 1.0:
        z.mul_(logit_scale)
    if softcap is None:
        return logit_scale if logit_scale != 1.0 else None
    t = z.div_(softcap).tanh_()
    slope = t.square().neg_().add_(1.0).mul_(logit_scale)
    t.mul_(softcap)
    return slope


def _nll_and_dz(z, target):
    """Loss [m] of each row; z [m, V] is overwritten with d loss / dz.

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
    return nll.squeeze(-1)


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
