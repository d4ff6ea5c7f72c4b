"""Triton kernel for the backward of SwiGLU.

h  = act(g) · u
dg = dh · u · act′(g),  du = dh · act(g)         act = silu or gelu_tanh
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from liftcore.kernels.blocks_triton import gate_argument
from liftcore.kernels.launch import launch, record
from liftcore.kernels.tiles import CompileCase, ceil_div

BLOCK = 1024  # elements a program takes


@triton.jit
def swiglu_backward_kernel(dgate, dup, dh, gate, up, size, GELU: tl.constexpr, BLOCK: tl.constexpr):
    """dgate = dh · u · (σ + g σ (1 − σ) z′) and dup = dh · g σ with σ = sigmoid(z(g))."""
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    d = tl.load(dh + i, mask=i < size, other=0.0).to(tl.float32)
    g = tl.load(gate + i, mask=i < size, other=0.0).to(tl.float32)
    u = tl.load(up + i, mask=i < size, other=0.0).to(tl.float32)
    sigma = tl.sigmoid(gate_argument(g, GELU))
    slope = 1.5957691216057308 * (1.0 + 0.134145 * g * g) if GELU else 1.0
    dg = d * u * (sigma + g * sigma * (1.0 - sigma) * slope)
    tl.store(dgate + i, dg.to(dgate.dtype.element_ty), mask=i < size)
    tl.store(dup + i, (d * g * sigma).to(dup.dtype.element_ty), mask=i < size)


def swiglu_backward(dh: Tensor, gate: Tensor, up: Tensor, gelu: bool) -> tuple[Tensor, Tensor]:
    """Gradients of gate and up [T, N] of h = act(gate) · up; all three contiguous."""
    dgate, dup = gate.new_empty(gate.shape), up.new_empty(up.shape)
    size = gate.numel()
    args = dgate, dup, dh, gate, up, size
    constexprs = dict(GELU=gelu, BLOCK=BLOCK)
    launch(swiglu_backward_kernel, (ceil_div(size, BLOCK),), args, constexprs)
    return dgate, dup


def compile_cases(arch: int) -> list[CompileCase]:
    """The launches of Llama-3-8B and SmolLM2-135M in bf16."""

    def run():
        for t, wide in ((8192, 14336), (512, 1536)):
            h = torch.empty(t, wide, dtype=torch.bfloat16, device="meta")
            for gelu in (False, True):
                swiglu_backward(h, h, h, gelu)

    return record(arch, run)
