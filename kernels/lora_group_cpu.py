"""LoRA linears that share an input, in plain PyTorch: the path of a CPU.

    S    = x [A_0; A_1; ..]ᵀ                          [T, ΣR]   one product for all members
    y_i  = x W_iᵀ + scaling_i S_i B_iᵀ (+ bias_i)     [T, N_i]
    dS_i = scaling_i dy_i B_i                         [T, ΣR]
    dx   = dS [A_0; A_1; ..] + Σ_i dy_i W_i           [T, K]    summed in place
    dA   = dSᵀ x                                      [ΣR, K]   its row blocks are the dA_i
    dB_i = scaling_i dy_iᵀ S_i                        [N_i, R_i]

gate/up keeps y_0 and y_1 and forms act(y_0) again in the backward. The members are not
concatenated to [x | S] [W | scaling B]ᵀ: on 2 cores with AVX512-BF16, K = 576 and T = 256 and 512
that took 0.97 to 1.20 times this way's time (q/k/v and gate/up, R = 64 and 128, bf16).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from liftcore.kernels.autocast import without_autocast
from liftcore.kernels.lora_concat import add_low_rank, stack


def forward(x, weights, lora_a, lora_b, scalings, biases) -> tuple[list[Tensor], Tensor]:
    """([y_0, ..], S) for x [T, K]."""
    s = F.linear(x, stack(lora_a))  # [T, ΣR]
    parts = s.split([b.shape[1] for b in lora_b], dim=1)
    members = zip(weights, lora_b, parts, scalings, biases, strict=True)
    ys = [add_low_rank(F.linear(x, w, bias), p, b, scale) for w, b, p, scale, bias in members]
    return ys, s


def backward(dys, x, s, weights, lora_a, lora_b, scalings, wanted):
    """(dx, scalings, *weights, *dA, *dB, *biases), None where there is no gradient."""
    n = len(dys)
    need_da, need_db = any(wanted[2 + n : 2 + 2 * n]), any(wanted[2 + 2 * n : 2 + 3 * n])
    ranks = [b.shape[1] for b in lora_b]
    ds, none = torch.empty_like(s), (None,) * n
    dx, da, db = None, none, none
    if wanted[0] or need_da:
        for dy, b, part, scale in zip(dys, lora_b, ds.split(ranks, 1), scalings, strict=True):
            part.addmm_(dy, b, beta=0, alpha=scale)
    if wanted[0]:
        dx = torch.mm(ds, stack(lora_a))
        for dy, w in zip(dys, weights, strict=True):
            dx.addmm_(dy, w)
    if need_da:
        da = (ds.T @ x).split(ranks)
    if need_db:
        parts = zip(dys, lora_b, s.split(ranks, 1), scalings, strict=True)
        db = [torch.addmm(b, dy.T, p, beta=0, alpha=scale) for dy, b, p, scale in parts]
    return (dx, None, *none, *da, *db, *none)


class PlainGroup(torch.autograd.Function):
    """apply(x, scalings, *weights, *lora_a, *lora_b, *biases) -> (y_0, ..)."""

    @staticmethod
    def forward(ctx, x, scalings, *tensors):
        weights, lora_a, lora_b, biases = _quarters(tensors)
        ys, s = forward(x, weights, lora_a, lora_b, scalings, biases)
        ctx.save_for_backward(x, s, *weights, *lora_a, *lora_b)
        ctx.scalings = scalings
        return tuple(ys)

    @staticmethod
    @once_differentiable
    @without_autocast
    def backward(ctx, *dys):
        x, s, *tensors = ctx.saved_tensors
        return backward(dys, x, s, *_thirds(tensors), ctx.scalings, ctx.needs_input_grad)


class PlainGateUp(torch.autograd.Function):
    """apply(x, scalings, *weights, *lora_a, *lora_b, *biases, gelu) -> act(y_0) · y_1."""

    @staticmethod
    def forward(ctx, x, scalings, *rest):
        *tensors, gelu = rest
        weights, lora_a, lora_b, biases = _quarters(tensors)
        (gate, up), s = forward(x, weights, lora_a, lora_b, scalings, biases)
        ctx.save_for_backward(gate, up, x, s, *weights, *lora_a, *lora_b)
        ctx.scalings, ctx.gelu = scalings, gelu
        h = activated(gate, gelu)
        return h * up if torch.compiler.is_compiling() else h.mul_(up)  # see add_low_rank

    @staticmethod
    @once_differentiable
    @without_autocast
    def backward(ctx, dh):
        gate, up, x, s, *tensors = ctx.saved_tensors
        dys = gate_up_gradients(dh, gate, up, ctx.gelu)
        return (*backward(dys, x, s, *_thirds(tensors), ctx.scalings, ctx.needs_input_grad), None)


def activated(gate: Tensor, gelu: bool) -> Tensor:
    return F.gelu(gate, approximate="tanh") if gelu else F.silu(gate)


def gate_up_gradients(dh: Tensor, gate: Tensor, up: Tensor, gelu: bool) -> tuple[Tensor, Tensor]:
    """Gradients of gate and up, given that of act(gate) · up."""
    dup = activated(gate, gelu).mul_(dh)
    dact = dh * up
    if gelu:
        return torch.ops.aten.gelu_backward(dact, gate, approximate="tanh"), dup
    return torch.ops.aten.silu_backward(dact, gate), dup


def _quarters(tensors):
    n = len(tensors) // 4
    return [list(tensors[i : i + n]) for i in range(0, 4 * n, n)]


def _thirds(tensors):
    n = len(tensors) // 3
    return [list(tensors[i : i + n]) for i in range(0, 3 * n, n)]
