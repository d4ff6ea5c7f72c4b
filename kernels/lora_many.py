"""LoRA linears with many adapters in one batch: the frozen product is shared, the tails are not.

    y[t]  = x[t] Wᵀ + scaling (x[t] A_eᵀ) B_eᵀ (+ bias)      e = adapter_of_tile[t // (T / n)]
    dx[t] = dy[t] W + dS[t] A_e                              dS[t] = scaling · dy[t] B_e
    dA_e  = Σ dS[t]ᵀ x[t]      dB_e = scaling · Σ dy[t]ᵀ S[t]      over the rows t of adapter e

A batch holds rows of several documents, and each document has its adapter. W is read once for all
of them. The rows come in n tiles of one size, a tile is a row of the batch and belongs to one
adapter, and the tiles are sorted by adapter. What is kept, and which gradients are formed, is as in
lora.py. Sources: "Punica" (arXiv 2310.18547) and "S-LoRA" (arXiv 2311.03285) serve many adapters
with grouped tails, and mLoRA (arXiv 2312.02515) trains several over one base.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from liftcore.kernels import lora_many_plain
from liftcore.kernels.autocast import cast
from liftcore.kernels.lora import ACTIVATIONS, choose
from liftcore.kernels.lora_autograd import LoraGateUp, LoraGroup
from liftcore.kernels.lora_plain import activated, swiglu_backward


def lora_linear_many(
    x: Tensor,
    weight: Tensor,
    lora_a: Tensor,
    lora_b: Tensor,
    adapter_of_tile: Tensor,
    scaling: float,
    bias: Tensor | None = None,
    *,
    way: str | None = None,
) -> Tensor:
    """y = x Wᵀ + scaling (x A_eᵀ) B_eᵀ (+ bias), e being each row's adapter; gradients for x, A and
    B only.

    Shapes: x [..., K] of T rows in all, weight [N, K], lora_a [E, R, K], lora_b [E, N, R],
    adapter_of_tile int32 [n], bias [N] -> [..., N]. n divides T, and tile i is rows i · T / n to
    (i + 1) · T / n. adapter_of_tile rises and lies in [0, E): a CPU checks it; on a GPU, where a
    look would wait for the device, anything else gives wrong numbers. An adapter without a tile
    gets a gradient of zeros. Autocast, `way` and errors are as for lora_linear.
    """
    members = [weight], [lora_a], [lora_b]
    return lora_qkv_many(x, *members, adapter_of_tile, [scaling], [bias], way=way)[0]


def lora_qkv_many(
    x: Tensor,
    weights: Sequence[Tensor],
    lora_a: Sequence[Tensor],
    lora_b: Sequence[Tensor],
    adapter_of_tile: Tensor,
    scalings: Sequence[float],
    biases: Sequence[Tensor | None] | None = None,
    *,
    way: str | None = None,
) -> tuple[Tensor, ...]:
    """(q, k, v) of x: up to three of lora_linear_many that share x.

    Shapes: as lora_linear_many, one of each a member -> a tuple of [..., N_i]; the N_i and R_i may
    differ. Raises ValueError when the shapes or dtypes do not fit.
    """
    flat, ops, tensors = _checked(
        x, weights, lora_a, lora_b, adapter_of_tile, scalings, biases, way
    )
    ys = LoraGroup.apply(ops, flat, [float(s) for s in scalings], *tensors)
    return tuple(ys) if x.ndim == 2 else tuple(y.view(*x.shape[:-1], y.shape[-1]) for y in ys)


def lora_gate_up_many(
    x: Tensor,
    weights: Sequence[Tensor],
    lora_a: Sequence[Tensor],
    lora_b: Sequence[Tensor],
    adapter_of_tile: Tensor,
    scalings: Sequence[float],
    biases: Sequence[Tensor | None] | None = None,
    *,
    activation: str = "silu",
    way: str | None = None,
) -> Tensor:
    """act(gate) · up of x, gate and up being two of lora_linear_many of one width N.

    Shapes: as lora_qkv_many -> [..., N]. `activation` is "silu" or "gelu_tanh". Raises ValueError
    when the shapes, dtypes or activation do not fit.
    """
    flat, ops, tensors = _checked(
        x, weights, lora_a, lora_b, adapter_of_tile, scalings, biases, way
    )
    if len(weights) != 2 or weights[0].shape != weights[1].shape:
        raise ValueError(
            f"lora_gate_up_many: weights {[tuple(w.shape) for w in weights]} are not two of one "
            "shape"
        )
    if activation not in ACTIVATIONS:
        raise ValueError(f"lora_gate_up_many: activation {activation!r} is not in {ACTIVATIONS}")
    scales, gelu = [float(s) for s in scalings], activation == "gelu_tanh"
    trained = (x, *lora_a, *lora_b)
    keep = torch.is_grad_enabled() and any(t.requires_grad for t in trained)
    h = LoraGateUp.apply(ops, flat, scales, *tensors, gelu, keep)
    return h if x.ndim == 2 else h.view(*x.shape[:-1], h.shape[-1])


@dataclass(frozen=True)
class _Ops:
    """The functions that lora_autograd.py calls, of one way and for the rows of these owners."""

    owners: Tensor  # int32 [n]
    way: str

    @property
    def _functions(self) -> Any:
        if self.way == "plain":
            return lora_many_plain
        from liftcore.kernels import lora_fused

        return lora_fused

    def lora_forward(self, *args: Any) -> list[Tensor]:
        return self._functions.lora_forward(*args, owners=self.owners)

    def lora_backward(self, *args: Any) -> list[Tensor]:
        return self._functions.lora_backward(*args, owners=self.owners)

    def gate_up_forward(self, *args: Any) -> list[Tensor]:
        if self.way != "plain":
            return self._functions.gate_up_forward(*args, owners=self.owners)
        *members, gelu, _ = args
        gate, up, s = lora_many_plain.lora_forward(*members, self.owners)
        return [activated(gate, gelu).mul_(up), gate, up, s]

    def swiglu_backward(
        self, dh: Tensor, gate: Tensor, up: Tensor, gelu: bool
    ) -> tuple[Tensor, Tensor]:
        backward = swiglu_backward if self.way == "plain" else self._functions.swiglu_backward
        return backward(dh, gate, up, gelu)


def _checked(
    x: Tensor,
    weights: Sequence[Tensor],
    lora_a: Sequence[Tensor],
    lora_b: Sequence[Tensor],
    owners: Tensor,
    scalings: Sequence[float],
    biases: Sequence[Tensor | None] | None,
    way: str | None,
) -> tuple[Tensor, _Ops, list[Tensor | None]]:
    """x as [T, K], the functions, and the weights, A, B and biases of all members in a row, cast
    for autocast."""
    n = len(weights)
    biases = [None] * n if biases is None else biases
    if not 1 <= n <= 3 or {n} != {len(m) for m in (lora_a, lora_b, scalings, biases)}:
        raise ValueError(
            f"lora group: {n} weights, {len(lora_a)} A, {len(lora_b)} B, {len(scalings)} "
            f"scalings and {len(biases)} biases are not one each for up to 3 members"
        )
    x = cast(x, x)
    weights, lora_a, lora_b = ([cast(t, x) for t in m] for m in (weights, lora_a, lora_b))
    biases = [b if b is None else cast(b, x) for b in biases]
    adapters = len(lora_a[0])
    for member in zip(weights, lora_a, lora_b, biases, strict=True):
        _check(x, adapters, *member)
    flat = x.reshape(-1, x.shape[-1])
    _check_owners(owners, adapters, flat)
    ops = _Ops(owners, choose("group", flat, way))
    return flat, ops, [*weights, *lora_a, *lora_b, *biases]


def _check(
    x: Tensor, adapters: int, weight: Tensor, lora_a: Tensor, lora_b: Tensor, bias: Tensor | None
) -> None:
    (n, k), r = weight.shape, lora_a.shape[1]
    shapes = (adapters, r, k), (adapters, n, r)
    if x.shape[-1] != k or (lora_a.shape, lora_b.shape) != shapes:
        raise ValueError(
            f"lora_linear_many: x {tuple(x.shape)}, weight {tuple(weight.shape)}, lora_a "
            f"{tuple(lora_a.shape)} and lora_b {tuple(lora_b.shape)} do not fit "
            "[..., K], [N, K], [E, R, K], [E, N, R]"
        )
    if bias is not None and bias.shape != (n,):
        raise ValueError(f"lora_linear_many: bias {tuple(bias.shape)} is not [{n}]")
    if not x.dtype == weight.dtype == lora_a.dtype == lora_b.dtype:
        raise ValueError(
            f"lora_linear_many: dtypes differ: x {x.dtype}, weight {weight.dtype}, "
            f"lora_a {lora_a.dtype}, lora_b {lora_b.dtype}"
        )


def _check_owners(owners: Tensor, adapters: int, x: Tensor) -> None:
    if owners.ndim != 1 or owners.dtype != torch.int32 or owners.device != x.device:
        raise ValueError(
            f"lora_linear_many: adapter_of_tile is {owners.dtype} {tuple(owners.shape)} on "
            f"{owners.device}, not int32 [n] on {x.device}"
        )
    if not len(owners) or len(x) % len(owners):
        raise ValueError(f"lora_linear_many: {len(x)} rows are not {len(owners)} tiles of one size")
    if owners.device.type == "cpu":
        numbers = owners.tolist()
        if numbers != sorted(numbers) or numbers[0] < 0 or numbers[-1] >= adapters:
            raise ValueError(
                f"lora_linear_many: adapter_of_tile {numbers} does not rise within 0 to "
                f"{adapters - 1}"
            )
