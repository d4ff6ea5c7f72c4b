"""The head loss in plain PyTorch, a chunk of rows at a time: the path of a CPU.

Same formulas as head_loss.py; the row list is found with `nonzero()`, so this path waits for a
device that is not a CPU, even with a row_index: GPUs before sm_80, ROCm, MPS and fp64 on CUDA.
"""

from __future__ import annotations

import torch
from torch import Tensor

from liftcore.kernels.head_loss import Inputs

# Bytes of logits alive at once: enough rows for a fast product.
CHUNK_BYTES = 128 * 2**20
# Rows whose fp32 logits are worked on at once: few enough to stay in the cache.
TILE_ROWS = 16


def head_loss(given: Inputs) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """The loss, dhidden and dweight: see Inputs."""
    hidden, weight, labels, w, row_index, cap, scale, want_hidden, want_weight, _, probs = given
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
            tokens = part[tile]
            target = (labels[tokens, None], None)
            if probs is not None:
                target = (labels[tokens], probs[tokens])
            nll = _over_gradient(dz[tile], logits, *target, cap, scale)
            loss[tokens] = wp[tile] * nll
        if dhidden is not None:
            dhidden[part] = torch.mm(dz, weight).mul_(wp[:, None])
        if dweight is not None:
            dweight += dz.T @ (h * wp[:, None]).to(dz.dtype)
    return loss, dhidden, dweight


def _over_gradient(
    z: Tensor,  # [m, V]
    logits: Tensor,  # [≥ m, V] fp32
    labels: Tensor,  # [m, 1], or ids [m, k]
    probs: Tensor | None,  # [m, k]
    softcap: float | None,
    logit_scale: float,
) -> Tensor:  # [m]
    """Loss [m] of each row; the products z [m, V] are overwritten with d loss / dz."""
    wide = logits[: len(z)].copy_(z)
    slope = _cap_and_scale(wide, softcap, logit_scale)
    nll = _nll_and_dz(wide, labels) if probs is None else _soft_nll_and_dz(wide, labels, probs)
    z.copy_(wide if slope is None else wide.mul_(slope))
    return nll


def _cap_and_scale(z: Tensor, softcap: float | None, logit_scale: float) -> Tensor | float | None:
    """Turns products [m, V] into logits in place; returns d logits / d product, None for 1."""
    if logit_scale != 1.0:
        z.mul_(logit_scale)
    if softcap is None:
        return logit_scale if logit_scale != 1.0 else None
    t = z.div_(softcap).tanh_()
    slope = t.square().neg_().add_(1.0).mul_(logit_scale)
    t.mul_(softcap)
    return slope


def _nll_and_dz(z: Tensor, target: Tensor) -> Tensor:
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


def _soft_nll_and_dz(z: Tensor, ids: Tensor, p: Tensor) -> Tensor:
    """The same for targets ids [m, k] of probabilities p [m, k], Σ p > 0.

    All targets are left out of the sum. At most one of them, the likeliest, can hold more than
    half of the softmax; with `rest` the sum of everything else, its dz is
    (Σ p − p) − Σ p · rest / total, so that one target with p = 1 is the loss above, bit for bit.
    """
    used = p > 0
    top = z.amax(-1, keepdim=True)
    z_target = z.gather(-1, ids) - top
    e = z_target.exp().masked_fill_(~used, 0.0)
    first = e.argmax(-1, keepdim=True)
    e_first, p_first = e.gather(-1, first), p.gather(-1, first)
    dz = z.sub_(top).exp_().scatter_(-1, ids, 0.0)
    rest = dz.sum(-1, keepdim=True) + e.scatter(-1, first, 0.0).sum(-1, keepdim=True)
    total = rest + e_first
    p_rest = p.scatter(-1, first, 0.0).sum(-1, keepdim=True)
    mass = p_rest + p_first
    nll = total.log() - z_target
    sure = torch.where(e_first > 0.5, torch.log1p(rest / e_first), nll.gather(-1, first))
    nll.scatter_(-1, first, sure)
    at_target = (mass * e / total - p).scatter_(-1, first, p_rest - mass * rest / total)
    # An unused place repeats the id of place 0, and must write what that one writes.
    at_target = torch.where(used, at_target, at_target[:, :1])
    dz.div_(total / mass).scatter_(-1, ids, at_target)
    return nll.mul_(p).sum(-1)
