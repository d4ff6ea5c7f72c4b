"""A frozen linear in FP8 without LoRA: y = Q(x) Q(W)ᵀ (+ bias), with a gradient for x."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from liftcore.kernels.autocast import cast, without_autocast
from liftcore.kernels.fp8 import Fp8Weight
from liftcore.kernels.lora import fp8_way
from liftcore.kernels.lora_autograd import functions


def fp8_linear(
    x: Tensor, weight: Fp8Weight, bias: Tensor | None = None, *, way: str | None = None
) -> Tensor:
    """y = Q(x) Q(W)ᵀ (+ bias), where Q rounds each row to FP8 (fp8.py); a gradient for x only,
    dx = Q(dy) Q(Q(W)ᵀ)ᵀ.

    Shapes: x [..., K] of a floating dtype, weight [N, K], bias [N] of x's dtype or None -> [..., N]
    in x's dtype, that of autocast where it is on. `way` as for lora_linear, which is this with a
    low-rank product beside it. Raises ValueError when the shapes do not fit, or for a way that
    cannot run these tensors.
    """
    n, k = weight.shape
    if x.shape[-1] != k or (bias is not None and bias.shape != (n,)):
        shape = None if bias is None else tuple(bias.shape)
        raise ValueError(
            f"fp8_linear: x {tuple(x.shape)}, weight {(n, k)} and bias {shape} do not fit "
            "[..., K], [N, K], [N]"
        )
    x = cast(x, x)
    bias = None if bias is None else cast(bias, x)
    flat = x.reshape(-1, k)
    return Fp8Linear.apply(fp8_way(flat, [weight], way), flat, weight, bias).view(*x.shape[:-1], n)


class Fp8Linear(torch.autograd.Function):
    """apply(way, x, weight, bias) -> y [T, N]; nothing is kept but the weight."""

    @staticmethod
    def forward(ctx: Any, way: str, x: Tensor, weight: Fp8Weight, bias: Tensor | None) -> Tensor:
        ctx.way, ctx.weight = way, weight
        return functions(way, x).linear(x, weight, bias)

    @staticmethod
    @once_differentiable
    @without_autocast
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        dx = functions(ctx.way, dy).linear_backward(dy, ctx.weight)
        return None, dx, None, None
