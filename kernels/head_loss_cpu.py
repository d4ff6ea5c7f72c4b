"""The head loss in plain PyTorch, a chunk of rows at a time: the path of a CPU.

Same formulas as head_loss.py; the row list is found with `nonzero()`, so this path waits for a
device that is not a CPU, even with a row_index: GPUs before sm_80, ROCm, MPS and fp64 on CUDA.
"""

from __future__ import annotations

import torch
from torch import Tensor

# Bytes of logits alive at once: enough rows for a fast product.
CHUNK_BYTES = 128 * 2**20
# Rows whose fp32 logits are worked on at once: few enough to stay in the cache.
TILE_ROWS = 16


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
        rows = rows[rows >= 0]
        rows = rows[w[rows] != 0]
    loss = torch.zeros(hidden.shape[0], dtype=torch.float32, device=hidden.device)  # [T]
    dhidden = hidden.new_zeros(hidden.shape) if want_hidden else None
    dweight = weight.new_zeros(weight.shape, dtype=torch.float32) if want_weight else None
    size = weight.shape[0] * hidden.element_size()
    chunk = max(1, min(len(rows), CHUNK_BYTES // size))
    # Two buffers for all chunks: fresh memory costs more than the arithmetic on it.
    product = hidden.new_empty(chunk, weight.shape[0])
    logits = product.new_empty(min(chunk, TILE_ROWS), weight.shape[0], dtype=torch.float32)
    for part in rows.split(chunk):
        h, wp, dz = hidden[part], w[part], product[: len(part)]
        torch.mm(h, weight.T, out=dz)  # [m, V]
        for at in range(0, len(part), TILE_ROWS):
            tile = slice(at, at + TILE_ROWS)
            loss[part[tile]] = wp[tile] * _over_gradient(
                dz[tile], logits, labels[part[tile], None], softcap, logit_scale
            )
        if want_hidden:
            dhidden[part] = torch.mm(dz, weight).mul_(wp[:, None])
        if want_weight:
            dweight += dz.T @ (h * wp[:, None]).to(dz.dtype)
    return loss, dhidden, None if dweight is None else dweight.to(weight.dtype)


def _over_gradient(z, logits, target, softcap, logit_scale):
    """Loss [m] of each row; the products z [m, V] are overwritten with d loss / dz."""
    wide = logits[: len(z)].copy_(z)
    slope = _cap_and_scale(wide, softcap, logit_scale)
    nll = _nll_and_dz(wide, target)
    z.copy_(wide if slope is None else wide.mul_(slope))
    return nll


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
