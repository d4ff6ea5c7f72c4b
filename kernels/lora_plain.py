"""The LoRA linears in plain PyTorch: the path of a CPU.

One or more linears that share an input:

    S    = x [A_0; A_1; ..]ᵀ                          [T, ΣR]   one product for all members
    y_i  = x W_iᵀ + scaling_i S_i B_iᵀ (+ bias_i)     [T, N_i]
    dS_i = scaling_i dy_i B_i                         [T, ΣR]
    dx   = dS [A_0; A_1; ..] + Σ_i dy_i W_i           [T, K]    summed in place
    dA   = dSᵀ x                                      [ΣR, K]   its row blocks are the dA_i
    dB_i = scaling_i dy_iᵀ S_i                        [N_i, R_i]

gate/up keeps y_0 and y_1 and forms act(y_0) again in the backward.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

PLAIN = (Tensor, torch.nn.Parameter)


def stack(matrices: Sequence[Tensor]) -> Tensor:
    """The matrices [*, K] one below the other; a view where they lie so in one buffer already."""
    first, total = matrices[0], 0
    if len(matrices) == 1:
        return first.contiguous()
    # A tracer has no addresses.
    if torch.compiler.is_compiling() or any(type(m) not in PLAIN for m in matrices):
        return torch.cat(list(matrices))
    end, buffer = first.data_ptr(), first.untyped_storage().data_ptr()
    for m in matrices:
        together = m.data_ptr() == end and m.untyped_storage().data_ptr() == buffer
        if not together or not m.is_contiguous():
            return torch.cat(list(matrices))
        total += m.shape[0]
        end += m.numel() * m.element_size()
    return first.as_strided((total, first.shape[1]), (first.shape[1], 1))


def add_low_rank(y: Tensor, s: Tensor, lora_b: Tensor, scaling: float) -> Tensor:
    """y [T, N] + scaling S Bᵀ, for s [T, R] and lora_b [N, R]; written into a fresh y.

    Not while torch.compile traces: torch 2.11 gives zero gradients, without a word, to a Function
    whose forward returns the result of an in-place op.
    """
    if torch.compiler.is_compiling():
        return torch.addmm(y, s, lora_b.T, alpha=scaling)
    return y.addmm_(s, lora_b.T, alpha=scaling)


def times(y: Tensor, factor: Tensor) -> Tensor:
    """y · factor, written into a fresh y; as add_low_rank where torch.compile traces."""
    return y * factor if torch.compiler.is_compiling() else y.mul_(factor)


def lora_forward(
    x: Tensor,  # [T, K]
    weights: Sequence[Any],  # [N_i, K]
    lora_a: Sequence[Tensor],  # [R_i, K]
    lora_b: Sequence[Tensor],  # [N_i, R_i]
    scalings: Sequence[float],
    biases: Sequence[Tensor | None],  # [N_i]
    base: Callable[[Tensor, Any, Tensor | None], Tensor] = F.linear,
) -> list[Tensor]:  # [T, N_i], then [T, ΣR]
    """[y_0, .., S] for x [T, K]; `base` is x W_iᵀ (+ bias_i), of weights of its own kind."""
    s = F.linear(x, stack(lora_a))  # [T, ΣR]
    parts = s.split([b.shape[1] for b in lora_b], dim=1)
    members = zip(weights, lora_b, parts, scalings, biases, strict=True)
    ys = [add_low_rank(base(x, w, bias), p, b, scale) for w, b, p, scale, bias in members]
    return [*ys, s]


def add_products(dx: Tensor, dys: Sequence[Tensor], weights: Sequence[Tensor]) -> None:
    """dx [T, K] + Σ_i dy_i W_i, in place."""
    for dy, w in zip(dys, weights, strict=True):
        dx.addmm_(dy, w)


def write_ds(
    ds: Tensor,  # [T, ΣR]
    dys: Sequence[Tensor],  # [T, N_i]
    lora_b: Sequence[Tensor],  # [N_i, R_i]
    scalings: Sequence[float],
) -> None:
    """dS_i = scaling_i dy_i B_i in place of ds."""
    parts = ds.split([b.shape[1] for b in lora_b], dim=1)
    for dy, b, part, scale in zip(dys, lora_b, parts, scalings, strict=True):
        part.addmm_(dy, b, beta=0, alpha=scale)


def lora_backward(
    dys: Sequence[Tensor],  # [T, N_i]
    x: Tensor | None,  # [T, K]
    s: Tensor | None,  # [T, ΣR]
    weights: Sequence[Any],  # [N_i, K]
    lora_a: Sequence[Tensor],  # [R_i, K]
    lora_b: Sequence[Tensor],  # [N_i, R_i]
    scalings: Sequence[float],
    add_base: Callable[[Tensor, Sequence[Tensor], Sequence[Any]], None] = add_products,
) -> list[Tensor]:
    """[dx] + [dA, all members' rows] + [dB_0, ..], each part only where what it reads is given.

    dx reads weights and lora_a, which may be empty; dA reads x, and dB reads S. `add_base` is
    add_products() for weights of its own kind.
    """
    ranks = [b.shape[1] for b in lora_b]
    out = []
    if weights or x is not None:
        ds = dys[0].new_empty(dys[0].shape[0], sum(ranks))
        write_ds(ds, dys, lora_b, scalings)
        if weights:
            dx = torch.mm(ds, stack(lora_a))
            add_base(dx, dys, weights)
            out.append(dx)
        if x is not None:
            out.append(ds.T @ x)
    if s is not None:
        parts = zip(dys, lora_b, s.split(ranks, 1), scalings, strict=True)
        out += [torch.addmm(b, dy.T, p, beta=0, alpha=scale) for dy, b, p, scale in parts]
    return out


def gate_up_forward(
    x: Tensor,  # [T, K]
    weights: Sequence[Any],  # [N, K]
    lora_a: Sequence[Tensor],  # [R_i, K]
    lora_b: Sequence[Tensor],  # [N, R_i]
    scalings: Sequence[float],
    biases: Sequence[Tensor | None],  # [N]
    gelu: bool,
    keep: bool,
    base: Callable[[Tensor, Any, Tensor | None], Tensor] = F.linear,
) -> list[Tensor]:
    """[h, gate, up, S]; `keep` is for the kernels, which need not write gate and up; `base` as in
    lora_forward()."""
    gate, up, s = lora_forward(x, weights, lora_a, lora_b, scalings, biases, base)
    return [times(activated(gate, gelu), up), gate, up, s]


def swiglu_backward(dh: Tensor, gate: Tensor, up: Tensor, gelu: bool) -> tuple[Tensor, Tensor]:
    """Gradients of gate and up, given that of act(gate) · up."""
    dup = activated(gate, gelu).mul_(dh)
    dact = dh * up
    if gelu:
        return torch.ops.aten.gelu_backward(dact, gate, approximate="tanh"), dup
    return torch.ops.aten.silu_backward(dact, gate), dup


def activated(gate: Tensor, gelu: bool) -> Tensor:
    return F.gelu(gate, approximate="tanh") if gelu else F.silu(gate)
