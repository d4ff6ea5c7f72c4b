"""The LoRA part of a linear layer, added to a base product that somebody else computed.

    S   = x Aᵀ                        [T, R]   kept for the backward
    out = y + scaling S Bᵀ            [T, N]
    dS  = scaling · dout B            [T, R]
    dx  = dS A      dA = dSᵀ x      dB = scaling · doutᵀ S      dy = dout

For quantised bases: y = base(x) and its share of dx stay theirs. Source: "QLoRA", equation 5.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from liftcore.kernels.autocast import cast, without_autocast


class _LoraBranch(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, y, lora_a, lora_b, scaling):
        s = F.linear(x, lora_a)  # [T, R]
        ctx.save_for_backward(x, s, lora_a, lora_b)
        ctx.scaling = scaling
        return torch.addmm(y, s, lora_b.T, alpha=scaling)  # [T, N]

    @staticmethod
    @once_differentiable
    @without_autocast
    def backward(ctx, dout):
        x, s, lora_a, lora_b = ctx.saved_tensors
        need_dx, need_dy, need_da, need_db, _ = ctx.needs_input_grad
        dx = da = db = None
        if need_dx or need_da:
            ds = (dout @ lora_b).mul_(ctx.scaling)  # [T, R]
        if need_dx:
            dx = ds @ lora_a
        if need_da:
            da = ds.T @ x
        if need_db:
            db = (dout.T @ s).mul_(ctx.scaling)
        return dx, dout if need_dy else None, da, db, None


def add_lora(x: Tensor, y: Tensor, lora_a: Tensor, lora_b: Tensor, scaling: float) -> Tensor:
    """y + scaling (x Aᵀ) Bᵀ, with gradients for x, y, A and B.

    Shapes: x [..., K], y [..., N], lora_a [R, K], lora_b [N, R] -> [..., N], in the dtype of y;
    x, A and B are cast to it (under autocast to the dtype of autocast). Raises ValueError when
    the shapes do not fit.
    """
    r, k = lora_a.shape
    if x.shape != (*y.shape[:-1], k) or lora_b.shape != (y.shape[-1], r):
        raise ValueError(
            f"add_lora: x {tuple(x.shape)}, y {tuple(y.shape)}, lora_a {tuple(lora_a.shape)} and "
            f"lora_b {tuple(lora_b.shape)} do not fit [..., K], [..., N], [R, K], [N, R]"
        )
    dtype, shape = y.dtype, y.shape
    x, y, lora_a, lora_b = cast(*(t.to(dtype) for t in (x, y, lora_a, lora_b)))
    out = _LoraBranch.apply(x.reshape(-1, k), y.reshape(-1, shape[-1]), lora_a, lora_b, scaling)
    return out.view(shape).to(dtype)
