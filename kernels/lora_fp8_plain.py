"""The LoRA linears over a frozen W in FP8, in plain PyTorch: a CPU's path, and the twin of
lora_fp8_triton.py.

With Q(m) the values of m's rows in FP8 (fp8.py):

    S    = x Aᵀ                                             [T, R]   of x itself
    y    = Q(x) Q(W)ᵀ + scaling S Bᵀ (+ bias)               [T, N]
    dx   = Σ_i Q(dy_i) Q(Q(W_i)ᵀ)ᵀ + dS [A_0; A_1; ..]      [T, K]
    dS, dA and dB as in lora_plain.py, of x and dy themselves

Gradients go through the rounding of x as if it were not there.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from liftcore.kernels import lora_plain
from liftcore.kernels.fp8 import Fp8Rows, Fp8Weight, decoded, power, quantise
from liftcore.kernels.lora_plain import swiglu_backward, times

__all__ = [
    "gate_up_forward",
    "linear",
    "linear_backward",
    "lora_backward",
    "lora_forward",
    "swiglu_backward",
]


def lora_forward(
    x: Tensor,  # [T, K]
    weights: Sequence[Fp8Weight],  # [N_i, K]
    *rest: Sequence,  # lora_a, lora_b, scalings, biases
) -> list[Tensor]:  # [T, N_i], then [T, ΣR]
    """[y_0, .., S] for x [T, K]."""
    return lora_plain.lora_forward(x, weights, *rest, base=_of_one(quantise(x)))


def gate_up_forward(
    x: Tensor,  # [T, K]
    weights: Sequence[Fp8Weight],  # [N, K]
    *rest,  # lora_a, lora_b, scalings, biases, gelu, keep
) -> list[Tensor]:
    """[h, gate, up, S]."""
    return lora_plain.gate_up_forward(x, weights, *rest, base=_of_one(quantise(x)))


def lora_backward(*args) -> list[Tensor]:
    """[dx] + [dA, all members' rows] + [dB_0, ..], as lora_plain.lora_backward."""
    return lora_plain.lora_backward(*args, add_base=_add_products)


def linear(x: Tensor, weight: Fp8Weight, bias: Tensor | None) -> Tensor:
    """Q(x) Q(W)ᵀ (+ bias) [T, N] of x [T, K]."""
    return product(quantise(x), weight.forward, x.dtype, bias)


def linear_backward(dy: Tensor, weight: Fp8Weight) -> Tensor:
    """dx [T, K] of linear(), of dy [T, N]."""
    return product(quantise(dy), weight.transposed(), dy.dtype)


def _of_one(rows: Fp8Rows):
    """The base product of each member of a group, whose x has been quantised once."""
    return lambda x, weight, bias: product(rows, weight.forward, x.dtype, bias)


def _add_products(dx: Tensor, dys: Sequence[Tensor], weights: Sequence[Fp8Weight]) -> None:
    for dy, weight in zip(dys, weights, strict=True):
        dx += linear_backward(dy, weight)


def product(x: Fp8Rows, w: Fp8Rows, dtype: torch.dtype, bias: Tensor | None = None) -> Tensor:
    """x wᵀ (+ bias) [T, N] in a dtype, of the values of x [T, K] and w [N, K]."""
    # Codes are exact in bf16; their sums would leave the range of fp16.
    wide = torch.bfloat16 if dtype == torch.bfloat16 else torch.float32
    y = F.linear(decoded(x.codes, wide), decoded(w.codes, wide))
    y.mul_(power(x.exponents)[:, None].to(wide))
    y = times(y, power(w.exponents).to(wide)).to(dtype)
    if bias is None:
        return y
    return y + bias if torch.compiler.is_compiling() else y.add_(bias)  # as times()
