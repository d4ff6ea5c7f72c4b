"""The LoRA linear as one product over concatenated columns, to compare with: no layer uses it.

On 2 cores with AVX512-BF16, K = 576 and T = 256 and 512, groups made so took 0.97 to 1.20 times
the time of lora_plain.py (q/k/v and gate/up, R = 64 and 128, bf16). On a GPU it is not measured.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from liftcore.kernels.autocast import without_autocast

# Rows start at multiples of this many elements: 128 bytes in bf16, as the GPU's memory likes.
ALIGN = 64


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
        both = _wide(weight, n + r, k + r)
        packed = Packed(both, both[:n, :k], both[n:, :k], both[:n, k:])
        both[n:, k:].zero_()
        packed.weight.copy_(weight)
        packed.lora_a.copy_(lora_a)
        packed.scaled_b.copy_(lora_b * scaling)
    return packed


def _wide(like: Tensor, rows: int, cols: int) -> Tensor:
    """An uninitialised [rows, cols] whose rows start at aligned addresses."""
    return like.new_empty(rows, -(-cols // ALIGN) * ALIGN)[:, :cols]


def with_slack(like: Tensor, tokens: int, k: int, r: int) -> Tensor:
    """An uninitialised x [tokens, K] with room for S in each row, for concat_linear."""
    return _wide(like, tokens, k + r)[:, :k]


def _beside(x: Tensor, r: int, slack: bool) -> Tensor:
    """[tokens, K + r] that starts with x: its own memory where it has slack, else a copy."""
    tokens, k = x.shape
    if slack and x.stride(0) >= k + r:
        # .data: the columns after x are no part of x, so its version must not change.
        return x.data.as_strided((tokens, k + r), (x.stride(0), 1))
    both = _wide(x, tokens, k + r)
    both[:, :k] = x
    return both


class ConcatLora(torch.autograd.Function):
    """y = [x | S] · [W | scaling·B]ᵀ and dx = [dy | dS] · [W ; A], from one buffer for both.

    The low-rank part is a few more columns of the base product: y and dx are written once and
    never read back. The buffer is [N + R, K + R] = [[W, scaling·B], [A, ·]].
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,  # [T, K]
        lora_a: Tensor,
        lora_b: Tensor,
        scaling: float,
        bias: Tensor | None,
        packed: Packed,
        slack: bool,
    ) -> Tensor:  # [T, N]
        (n, k), r = packed.weight.shape, packed.lora_a.shape[0]
        both = _beside(x, r, slack)  # [T, K + R]
        s = torch.mm(x, packed.lora_a.T)  # [T, R]
        both[:, k:] = s
        y = F.linear(both, packed.all[:n], bias)  # [T, N]
        # S is kept by itself: another layer may write into the slack of the same x.
        _, need_da, need_db = ctx.needs_input_grad[:3]
        ctx.save_for_backward(x if need_da else None, s if need_db else None, packed.all)
        ctx.scaling, ctx.shape = scaling, (n, k, r)
        return y

    @staticmethod
    @once_differentiable
    @without_autocast
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, s, weights = ctx.saved_tensors
        n, k, r = ctx.shape
        need_dx, need_da, need_db = ctx.needs_input_grad[:3]
        dx = da = db = None
        if need_dx or need_da:
            ds = torch.mm(dy, weights[:n, k:])  # [T, R]
        if need_dx and n <= k:
            both = _beside(dy, r, False)  # [T, N + R]
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


def concat_linear(
    x: Tensor,  # [T, K]
    packed: Packed,
    lora_a: Tensor,  # [R, K]
    lora_b: Tensor,  # [N, R]
    scaling: float,
    bias: Tensor | None = None,  # [N]
    slack: bool = False,
) -> Tensor:  # [T, N]
    """The LoRA linear as one product over [x | S]; gradients for x, A and B.

    `packed` holds the current W, A and scaling · B. `slack`: x comes from with_slack, and S may be
    written behind its rows.
    """
    return ConcatLora.apply(x, lora_a, lora_b, scaling, bias, packed, slack)
