"""The LoRA linear as one library product over concatenated matrices.

    y  = [x | S] · [W | scaling·B]ᵀ        S  = x Aᵀ
    dx = [dy | dS] · [W ; A]               dS = dy (scaling·B)

The weight side is one buffer [N + R, K + R] = [[W, scaling·B], [A, ·]], so that both products
read it in place. The low-rank part is then a few more columns of the base product: y and dx are
written once and never read back.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from liftcore.kernels.autocast import without_autocast

# Rows start at multiples of this many elements: 128 bytes in bf16, as the GPU's memory likes.
ALIGN = 64
PLAIN = (Tensor, torch.nn.Parameter)


class Packed(NamedTuple):
    """Views of one buffer: all [N + R, K + R], weight [N, K], lora_a [R, K], scaled_b [N, R].

    Whoever changes A or B writes A into `lora_a` and scaling · B into `scaled_b`; the op reads
    only the buffer.
    """

    all: Tensor
    weight: Tensor
    lora_a: Tensor
    scaled_b: Tensor


def pack(weight: Tensor, lora_a: Tensor, lora_b: Tensor, scaling: float) -> Packed:
    """A new buffer with the values of weight [N, K], lora_a [R, K] and scaling · lora_b [N, R]."""
    (n, k), r = weight.shape, lora_a.shape[0]
    with torch.no_grad():
        both = wide(weight, n + r, k + r)
        packed = Packed(both, both[:n, :k], both[n:, :k], both[:n, k:])
        both[n:, k:].zero_()
        packed.weight.copy_(weight)
        packed.lora_a.copy_(lora_a)
        packed.scaled_b.copy_(lora_b * scaling)
    return packed


def wide(like: Tensor, rows: int, cols: int) -> Tensor:
    """An uninitialised [rows, cols] whose rows start at aligned addresses."""
    return like.new_empty(rows, -(-cols // ALIGN) * ALIGN)[:, :cols]


def with_slack(like: Tensor, tokens: int, k: int, r: int) -> Tensor:
    """An uninitialised x [tokens, K] with room for S in each row, for `slack=True`."""
    return wide(like, tokens, k + r)[:, :k]


def beside(x: Tensor, r: int, slack: bool) -> Tensor:
    """[tokens, K + r] that starts with x: its own memory where it has slack, else a copy."""
    tokens, k = x.shape
    if slack and x.stride(0) >= k + r:
        # .data: the columns after x are no part of x, so its version must not change.
        return x.data.as_strided((tokens, k + r), (x.stride(0), 1))
    both = wide(x, tokens, k + r)
    both[:, :k] = x
    return both


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


class ConcatLora(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, lora_a, lora_b, scaling, bias, packed, slack):
        (n, k), r = packed.weight.shape, packed.lora_a.shape[0]
        both = beside(x, r, slack)  # [T, K + R]
        s = torch.mm(x, packed.lora_a.T)  # [T, R]
        both[:, k:] = s
        y = F.linear(both, packed.all[:n], bias)  # [T, N]
        # S is kept by itself: another layer may write into the slack of the same x.
        ctx.save_for_backward(x, s, packed.all)
        ctx.scaling, ctx.shape = scaling, (n, k, r)
        return y

    @staticmethod
    @once_differentiable
    @without_autocast
    def backward(ctx, dy):
        x, s, weights = ctx.saved_tensors
        n, k, r = ctx.shape
        need_dx, need_da, need_db = ctx.needs_input_grad[:3]
        dx = da = db = None
        if need_dx or need_da:
            ds = torch.mm(dy, weights[:n, k:])  # [T, R]
        if need_dx and n <= k:
            both = beside(dy, r, False)  # [T, N + R]
            both[:, n:] = ds
            dx = torch.mm(both, weights[:, :k])  # [T, K]
        elif need_dx:
            # A copy of dy would cost more than reading dx back once.
            dx = torch.mm(dy, weights[:n, :k]).addmm_(ds, weights[n:, :k])
        if need_da:
            da = ds.T @ x  # [R, K]
        if need_db:
            db = (dy.T @ s).mul_(ctx.scaling)  # [N, R]
        return dx, da, db, None, None, None, None
