"""The LoRA linears in plain PyTorch: the path of a CPU.

One or more linears that share an input:

    S    = x [A_0; A_1; ..]ᵀ                          [T, ΣR]   one product for all members
    y_i  = x W_iᵀ + scaling_i S_i B_iᵀ (+ bias_i)     [T, N_i]
    dS_i = scaling_i dy_i B_i                         [T, ΣR]
    dx   = dS [A_0; A_1; ..] + Σ_i dy_i W_i           [T, K]    summed in place
    dA   = dSᵀ x                                      [ΣR, K]   its row blocks are the dA_i
    dB_i = scaling_i dy_iᵀ S_i                        [N_i, R_i]

gate/up keeps y_0 and y_1 and forms act(y_0) again in the backward. The members are not
concatenated to [x | S] [W | scaling B]ᵀ: on 2 cores with AVX512-BF16, K = 576 and T = 256 and 512
that took 0.97 to 1.20 times this way's time (q/k/v and gate/up, R = 64 and 128, bf16). On a GPU
that is not measured yet: concat_linear() is that way for a single linear, for the benchmarks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from liftcore.kernels.autocast import without_autocast

# Rows start at multiples of this many elements: 128 bytes in bf16, as the GPU's memory likes.
ALIGN = 64
PLAIN = (Tensor, torch.nn.Parameter)


def parts_of(tensors: Sequence[Any], count: int) -> list[list[Any]]:
    """The tensors cut into `count` lists of one length."""
    n = len(tensors) // count
    return [list(tensors[i : i + n]) for i in range(0, count * n, n)]


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


def forward(
    x: Tensor,  # [T, K]
    weights: Sequence[Tensor],  # [N_i, K]
    lora_a: Sequence[Tensor],  # [R_i, K]
    lora_b: Sequence[Tensor],  # [N_i, R_i]
    scalings: Sequence[float],
    biases: Sequence[Tensor | None],  # [N_i]
) -> tuple[list[Tensor], Tensor]:  # [T, N_i], [T, ΣR]
    """([y_0, ..], S) for x [T, K]."""
    s = F.linear(x, stack(lora_a))  # [T, ΣR]
    parts = s.split([b.shape[1] for b in lora_b], dim=1)
    members = zip(weights, lora_b, parts, scalings, biases, strict=True)
    ys = [add_low_rank(F.linear(x, w, bias), p, b, scale) for w, b, p, scale, bias in members]
    return ys, s


def backward(
    dys: Sequence[Tensor],  # [T, N_i]
    x: Tensor,  # [T, K]
    s: Tensor,  # [T, ΣR]
    weights: Sequence[Tensor],  # [N_i, K]
    lora_a: Sequence[Tensor],  # [R_i, K]
    lora_b: Sequence[Tensor],  # [N_i, R_i]
    scalings: Sequence[float],
    wanted: Sequence[bool],
) -> tuple[Tensor | None, ...]:
    """(dx, scalings, *weights, *dA, *dB, *biases), None where there is no gradient."""
    n = len(dys)
    need_da, need_db = any(wanted[2 + n : 2 + 2 * n]), any(wanted[2 + 2 * n : 2 + 3 * n])
    ranks = [b.shape[1] for b in lora_b]
    ds = torch.empty_like(s)
    dx = None
    da: Sequence[Tensor | None] = (None,) * n
    db: Sequence[Tensor | None] = (None,) * n
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
    return (dx, *(None,) * (1 + n), *da, *db, *(None,) * n)


class PlainGroup(torch.autograd.Function):
    """apply(x, scalings, *weights, *lora_a, *lora_b, *biases) -> (y_0, ..)."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, scalings: list[float], *tensors: Tensor | None
    ) -> tuple[Tensor, ...]:
        weights, lora_a, lora_b, biases = parts_of(tensors, 4)
        ys, s = forward(x, weights, lora_a, lora_b, scalings, biases)
        ctx.save_for_backward(x, s, *weights, *lora_a, *lora_b)
        ctx.scalings = scalings
        return tuple(ys)

    @staticmethod
    @once_differentiable
    @without_autocast
    def backward(ctx: Any, *dys: Tensor) -> tuple[Tensor | None, ...]:
        x, s, *tensors = ctx.saved_tensors
        return backward(dys, x, s, *parts_of(tensors, 3), ctx.scalings, ctx.needs_input_grad)


class PlainGateUp(torch.autograd.Function):
    """apply(x, scalings, *weights, *lora_a, *lora_b, *biases, gelu) -> act(y_0) · y_1."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scalings: list[float], *rest: Any) -> Tensor:
        *tensors, gelu = rest
        weights, lora_a, lora_b, biases = parts_of(tensors, 4)
        (gate, up), s = forward(x, weights, lora_a, lora_b, scalings, biases)
        ctx.save_for_backward(gate, up, x, s, *weights, *lora_a, *lora_b)
        ctx.scalings, ctx.gelu = scalings, gelu
        h = activated(gate, gelu)
        return h * up if torch.compiler.is_compiling() else h.mul_(up)  # see add_low_rank

    @staticmethod
    @once_differentiable
    @without_autocast
    def backward(ctx: Any, dh: Tensor) -> tuple[Tensor | None, ...]:
        gate, up, x, s, *tensors = ctx.saved_tensors
        dys = gate_up_gradients(dh, gate, up, ctx.gelu)
        members = parts_of(tensors, 3)
        return (*backward(dys, x, s, *members, ctx.scalings, ctx.needs_input_grad), None)


def activated(gate: Tensor, gelu: bool) -> Tensor:
    return F.gelu(gate, approximate="tanh") if gelu else F.silu(gate)


def gate_up_gradients(dh: Tensor, gate: Tensor, up: Tensor, gelu: bool) -> tuple[Tensor, Tensor]:
    """Gradients of gate and up, given that of act(gate) · up."""
    dup = activated(gate, gelu).mul_(dh)
    dact = dh * up
    if gelu:
        return torch.ops.aten.gelu_backward(dact, gate, approximate="tanh"), dup
    return torch.ops.aten.silu_backward(dact, gate), dup


class LoraBranch(torch.autograd.Function):
    """apply(x, y, A, B, scaling) -> y + scaling (x Aᵀ) Bᵀ: y = base(x) and its dx are another's."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, y: Tensor, lora_a: Tensor, lora_b: Tensor, scaling: float
    ) -> Tensor:
        s = F.linear(x, lora_a)  # [T, R]
        ctx.save_for_backward(x, s, lora_a, lora_b)
        ctx.scaling = scaling
        return torch.addmm(y, s, lora_b.T, alpha=scaling)  # [T, N]

    @staticmethod
    @once_differentiable
    @without_autocast
    def backward(ctx: Any, dout: Tensor) -> tuple[Tensor | None, ...]:
        x, s, lora_a, lora_b = ctx.saved_tensors
        need_dx, need_dy, need_da, need_db, _ = ctx.needs_input_grad
        dx = da = db = None
        if need_dx or need_da:
            ds = (dout @ lora_b).mul_(ctx.scaling)  # [T, R]
        if need_dx:
            dx = ds @ lora_a
        if need_da:
            da = ds.T @ x
        if need_db:
            db = (dout.T @ s).mul_(ctx.scaling)
        return dx, dout if need_dy else None, da, db, None


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
        ctx.save_for_backward(x, s, packed.all)
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
