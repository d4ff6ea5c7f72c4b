"""A frozen linear layer whose weight is in FP8."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from liftcore.kernels.fp8 import (
    E4M3,
    Fp8Rows,
    Fp8Weight,
    dequantise,
    quantise_weight,
    transposed,
)
from liftcore.kernels.lora_fp8 import fp8_linear


class Fp8Linear(nn.Module):
    """y = Q(x) Q(W)ᵀ (+ bias) of kernels/lora_fp8.py.

    Codes and exponents are buffers of whole numbers, which no cast of the model touches.

    codes, exponents       uint8 [N, K] and int8 [N]
    codes_t, exponents_t   uint8 [K, N] and int8 [K] of the transpose, for dx; None where no
                           gradient is to go through
    dtype                  of what it stands for, which `weight` gives
    fan_in_fan_out         what it stands for kept its weight as [K, N]
    """

    codes: Tensor
    exponents: Tensor
    codes_t: Tensor | None
    exponents_t: Tensor | None

    def __init__(self, weight: Tensor, bias: Tensor | None, *, fan_in_fan_out: bool = False):
        """Of a weight [N, K]; the bias stays as it is."""
        super().__init__()
        self.out_features, self.in_features = weight.shape
        self.dtype, self.fan_in_fan_out = weight.dtype, fan_in_fan_out
        self.bias = bias
        rows = quantise_weight(weight.detach(), backward=False).forward
        self.register_buffer("codes", rows.codes.view(torch.uint8))
        self.register_buffer("exponents", rows.exponents)
        self.register_buffer("codes_t", None)
        self.register_buffer("exponents_t", None)

    def keep_transpose(self) -> None:
        """Keeps the transpose too, for a backward."""
        if self.codes_t is None:
            rows = transposed(self.rows.forward)
            self.codes_t, self.exponents_t = rows.codes.view(torch.uint8), rows.exponents

    @property
    def rows(self) -> Fp8Weight:
        """The weight as the ops take it."""
        forward, back = Fp8Rows(self.codes.view(E4M3), self.exponents), None
        if self.codes_t is not None and self.exponents_t is not None:
            back = Fp8Rows(self.codes_t.view(E4M3), self.exponents_t)
        return Fp8Weight(forward, back)

    @property
    def weight(self) -> Tensor:
        """The weight [N, K], made anew: for code that asks a linear layer for one."""
        return dequantise(self.rows.forward, self.dtype)

    def forward(self, x: Tensor) -> Tensor:
        return fp8_linear(x, self.rows, self.bias)

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, e4m3"
