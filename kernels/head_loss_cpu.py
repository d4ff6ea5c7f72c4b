"""The head loss in plain PyTorch, a chunk of rows at a time: the path of a CPU.

Same formulas as head_loss.py; the row list is found with `nonzero()`, so this path waits for a
device that is not a CPU.
"""

from __future__ import annotations

import torch
from torch import Tensor

# Rows of logits alive at once: large enough for the matrix product, small enough for memory.
CHUNK_BYTES = 128 * 2**20


def head_loss(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    w: Tensor,
    row_index: Tensor | None,
    softcap: float | None,
    logit_scale: float,
    want_hidden: bool,
    want_weight: bool,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """w_t · nll_t [T], and Σ_t of it differentiated: dhidden [T, K], dweight [V, K] or None."""
    rows = w.nonzero().squeeze(-1) if row_index is None else row_index.long()  # [M]
    if row_index is not None:
        rows = rows[w[rows] != 0]
    loss = torch.zeros(hidden.shape[0], dtype=torch.float32, device=hidden.device)  # [T]
    dhidden = hidden.new_zeros(hidden.shape) if want_hidden else None
    dweight = torch.zeros_like(weight, dtype=torch.float32) if want_weight else None
    chunk = max(1, CHUNK_BYTES // (4 * weight.shape[0]))
    for part in rows.split(chunk):
        h, target, wp = hidden[part], labels[part, None], w[part]
        z, slope = _logits(h, weight, softcap, logit_scale)  # [m, V]
        nll, dz = _nll_and_dz(z, target)
        loss[part] = wp * nll
        if want_hidden or want_weight:
            dz.mul_(slope) if slope is not None else dz.mul_(logit_scale)
            dz = dz.to(weight.dtype)
        if want_hidden:
            dhidden[part] = (dz @ weight).mul_(wp[:, None])
        if want_weight:
            dweight += dz.T @ (h * wp[:, None]).to(dz.dtype)
    return loss, dhidden, None if dweight is None else dweight.to(weight.dtype)


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
