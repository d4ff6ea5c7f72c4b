"""Triton kernels that only the backward of the LoRA linear needs.

    outer    C = scale · Pᵀ Q              [M, N]   over T: dA = dSᵀ x, dB = scaling · dyᵀ S
    swiglu   dg = dh · u · act′(g),  du = dh · act(g)

A product over T is split into spans of tokens. Each span has its own fp32 partial result, and a
second kernel adds them in order: no atomics, so the same inputs give the same bits.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from liftcore.kernels.blocks_triton import corner_of, gate_argument, load_tile, store_tile
from liftcore.kernels.launch import launch, record
from liftcore.kernels.lora_triton import can_use_tma, describe
from liftcore.kernels.tiles import CompileCase, architecture, pick, processors

# Fewer tokens than this in a span are not worth a partial result of their own.
MIN_SPAN = 512
BLOCK = 1024  # elements a program of the elementwise kernels takes


@triton.jit
def outer_kernel(
    c, p, q, scale, tokens, rows, cols, span, stride_p, stride_q,
    BM: tl.constexpr, BN: tl.constexpr, BT: tl.constexpr, GROUP: tl.constexpr,
    TMA: tl.constexpr,
):  # fmt: skip
    """c[i] = scale · P[i·span :]ᵀ Q[i·span :] over one span of tokens; c [spans, rows, cols]."""
    m, n = corner_of(tl.program_id(0), rows, cols, BM, BN, GROUP)
    part = tl.program_id(1)
    start = part * span
    acc = tl.zeros((BM, BN), tl.float32)
    for t in tl.range(start, min(start + span, tokens), BT):
        a = load_tile(p, t, m, tokens, rows, stride_p, BT, BM, TMA)  # [BT, BM]
        b = load_tile(q, t, n, tokens, cols, stride_q, BT, BN, TMA)  # [BT, BN]
        acc = tl.dot(a.T, b, acc, input_precision="ieee")
    c += tl.cast(part, tl.int64) * rows * cols
    store_tile(c, acc * scale, m, n, rows, cols, cols, BM, BN, False)


@triton.jit
def sum_kernel(out, parts, count, size, BLOCK: tl.constexpr):
    """out [size] = the sum of parts [count, size], first to last."""
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    acc = tl.zeros((BLOCK,), tl.float32)
    for part in tl.range(0, count):
        acc += tl.load(parts + tl.cast(part, tl.int64) * size + i, mask=i < size, other=0.0)
    tl.store(out + i, acc.to(out.dtype.element_ty), mask=i < size)


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


def outer(p: Tensor, q: Tensor, scale: float = 1.0) -> Tensor:
    """scale · pᵀ q [M, N] of p [T, M] and q [T, N], in the dtype of p."""
    tokens, rows = p.shape
    cols = q.shape[1]
    arch = architecture(p.device)
    sms = processors(p.device)
    tile = pick("outer", arch, p.element_size(), rows, cols, sms)
    tiles = triton.cdiv(rows, tile.bm) * triton.cdiv(cols, tile.bn)
    span, spans = split(tokens, tiles, sms, tile.bk, MIN_SPAN if arch else 1)
    out = p.new_empty(rows, cols)
    parts = out if spans == 1 else p.new_empty((spans, rows, cols), dtype=torch.float32)
    tma = can_use_tma(arch, p, q)
    left, right = (describe(p, tile.bk, tile.bm), describe(q, tile.bk, tile.bn)) if tma else (p, q)
    args = parts, left, right, scale, tokens, rows, cols, span, p.stride(0), q.stride(0)
    constexprs = dict(BM=tile.bm, BN=tile.bn, BT=tile.bk, GROUP=tile.group, TMA=tma)
    launch(outer_kernel, (tiles, spans), args, constexprs, tile.warps, tile.stages)
    if spans > 1:
        size = rows * cols
        launch(sum_kernel, (triton.cdiv(size, BLOCK),), (out, parts, spans, size), {"BLOCK": BLOCK})
    return out


def split(tokens: int, tiles: int, sms: int, step: int, least: int) -> tuple[int, int]:
    """Tokens in a span (a multiple of step) and how many spans, so that all processors work."""
    wanted = max(1, min(sms // tiles, tokens // least))
    span = triton.cdiv(triton.cdiv(tokens, wanted), step) * step
    return span, triton.cdiv(tokens, span)


def swiglu_backward(dh: Tensor, gate: Tensor, up: Tensor, gelu: bool) -> tuple[Tensor, Tensor]:
    """Gradients of gate and up [T, N] of h = act(gate) · up; all three contiguous."""
    dgate, dup = gate.new_empty(gate.shape), up.new_empty(up.shape)
    size = gate.numel()
    args = dgate, dup, dh, gate, up, size
    constexprs = dict(GELU=gelu, BLOCK=BLOCK)
    launch(swiglu_backward_kernel, (triton.cdiv(size, BLOCK),), args, constexprs)
    return dgate, dup


def compile_cases(arch: int) -> list[CompileCase]:
    """The launches of Llama-3-8B and SmolLM2-135M in bf16, rank 128, at 8192 and 512 tokens."""

    def matrix(*shape):
        return torch.empty(shape, dtype=torch.bfloat16, device="meta")

    def run():
        for t in (8192, 512):
            for hidden, kv, wide in ((4096, 1024, 14336), (576, 192, 1536)):
                for ranks in (128, 256, 384):
                    outer(matrix(t, ranks), matrix(t, hidden))
                for n in (hidden, kv, wide):
                    outer(matrix(t, n), matrix(t, 384)[:, 128:256], 2.0)
                swiglu_backward(*(matrix(t, wide) for _ in range(3)), False)

    return record(arch, run)
