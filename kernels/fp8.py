"""Matrices in FP8 (e4m3), each row with a scale that is a power of two.

    value[m, k] = 2^exponent[m] · code[m, k]

A power of two costs no precision, since e4m3 is a floating format: only its range ends one
binade earlier. In return scaling is exact everywhere, and a weight that is quantised a second
time along its columns, for the backward, keeps its values, but for those that fall below the range.
Rows do not see each other, so that a token's result depends on nothing else in its batch.
Source: "FP8 Formats for Deep Learning" (Micikevicius et al.), table 1.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

E4M3 = torch.float8_e4m3fn
# Exponents of a row's scale. Products of two codes over any depth, and ratios of two scales, stay
# far within fp32.
LOWEST, HIGHEST = -40, 40
# The largest code is 448 = 1.75 · 2^8: added to the bits of an fp32 number, this carries into the
# exponent what is larger than 1.75 · 2^e.
ROUND_UP = 0x1FFFFF
BIAS = 127 + 8


class Fp8Rows(NamedTuple):
    """codes e4m3 [M, K], and exponents int8 [M] of the scales of its rows."""

    codes: Tensor
    exponents: Tensor


class Fp8Weight(NamedTuple):
    """A frozen weight [N, K] for the ops of lora.py, in the place of a tensor.

    forward   its rows, [N, K]
    backward  those of its transpose [K, N], for dx; None where they are made anew when needed,
              which takes a pass over the weight and holds one byte an element less
    """

    forward: Fp8Rows
    backward: Fp8Rows | None = None

    @property
    def shape(self) -> torch.Size:
        return self.forward.codes.shape

    @property
    def device(self) -> torch.device:
        return self.forward.codes.device

    def numel(self) -> int:
        return self.forward.codes.numel()

    def transposed(self) -> Fp8Rows:
        """The rows of the transpose [K, N]."""
        return transposed(self.forward) if self.backward is None else self.backward


Weight = Tensor | Fp8Weight


def quantise(x: Tensor) -> Fp8Rows:
    """The rows of x [M, K], of any floating dtype, to the nearest code (ties to even).

    The scale of a row is the smallest power of two under which its largest number is a code's, but
    within 2^LOWEST and 2^HIGHEST; a number below 2^-10 of it becomes 0.
    """
    largest = x.detach().abs().amax(1).float() if x.shape[1] else x.new_zeros(len(x)).float()
    exponents = (((largest.view(torch.int32) + ROUND_UP) >> 23) - BIAS).clamp_(LOWEST, HIGHEST)
    codes = (x.detach().float() * power(-exponents)[:, None]).to(E4M3)
    return Fp8Rows(codes, exponents.to(torch.int8))


def quantise_weight(weight: Tensor, *, backward: bool = True) -> Fp8Weight:
    """A weight [N, K] in FP8; with `backward` its transpose is kept too."""
    forward = quantise(weight)
    return Fp8Weight(forward, transposed(forward) if backward else None)


def transposed(rows: Fp8Rows) -> Fp8Rows:
    """The values of rows [M, K] as rows [K, M]: made of the codes, whose product they undo."""
    return quantise(dequantise(rows, torch.float32).T.contiguous())


def dequantise(rows: Fp8Rows, dtype: torch.dtype) -> Tensor:
    """The values [M, K] in a dtype; exact in bf16 and fp32."""
    return decoded(rows.codes, dtype).mul_(power(rows.exponents)[:, None].to(dtype))


def power(exponents: Tensor) -> Tensor:
    """2^e as fp32, for whole e of an integer dtype."""
    return ((exponents.to(torch.int32) + 127) << 23).view(torch.float32)


def decoded(codes: Tensor, dtype: torch.dtype) -> Tensor:
    """The codes e4m3 as numbers of another dtype, exactly; a fresh tensor.

    On a CPU torch's own cast takes 5 to 20 times as long. The bits of a code behind its sign, moved
    into the place of bf16's, are its value times 2^-120, subnormal or not; no code is NaN here.
    """
    if codes.device.type != "cpu":
        return codes.to(dtype)
    bits = codes.view(torch.int8).to(torch.int16)
    moved = (bits & 0x7F).bitwise_left_shift_(4).bitwise_or_(bits.bitwise_and_(-0x8000))
    return moved.view(torch.bfloat16).mul_(2.0**120).to(dtype)
