"""Clip, AdamW on fp32 masters, shadow and zeroed gradient, over all tensors of an adapter.

    norm = √Σ g²                     g ← g · min(1, max_norm / (norm + 1e-6))
    m ← m + (1 − β1)(g − m)          v ← β2 v + (1 − β2) g²
    p ← (1 − rate · decay) p − rate / (1 − β1ᵗ) · m / (√(v / (1 − β2ᵗ)) + ε)
    shadow ← scale · p               grad ← 0

The shadow is what the model computes with: the adapter's own tensor in bf16, or a block of a
concatenated buffer (lora_concat.py), whose rows lie apart. The rates of all steps and the number
of updates live on the device. When the norm is not finite only the gradient is zeroed. Source:
"Decoupled Weight Decay Regularization" (Loshchilov, Hutter), algorithm 2.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from liftcore.kernels import native, reference

TYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
# Entry, CHUNK and the size of Scratch of csrc/lora_adamw.h.
ENTRY = np.dtype(
    [(name, np.int64) for name in ("master", "exp_avg", "exp_avg_sq", "grad", "shadow")]
    + [(name, np.int64) for name in ("stride", "cols", "numel")]
    + [("scale", np.float64), ("first", np.int64)]
)
CHUNK, SCRATCH = 8192, 8


class Settings(NamedTuple):
    """AdamW and the clip; max_norm may be infinite."""

    max_norm: float = 1.0
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 0.0


class State(NamedTuple):
    """Everything the op reads and writes but the settings, on one device; from state().

    master, exp_avg, exp_avg_sq [P] fp32: the tensors one behind the other. grads, shadows: one
    tensor each, [rows, cols]; shadows may have rows apart. scales: shadow = scale · master.
    rates [n] fp32: the rate of each update, the last one for all that follow. step [1] int64:
    updates done. norm [1] fp32: before the clip. status [2] int32: whether the last update was
    skipped, and how many were. entries, chunks, scratch, addresses belong to the library.
    """

    master: Tensor
    exp_avg: Tensor
    exp_avg_sq: Tensor
    grads: tuple[Tensor, ...]
    shadows: tuple[Tensor, ...]
    scales: tuple[float, ...]
    rates: Tensor
    step: Tensor
    norm: Tensor
    status: Tensor
    entries: Tensor
    chunks: Tensor
    scratch: Tensor
    addresses: list[int]


@torch.no_grad()
def state(
    shadows: Sequence[Tensor],
    grads: Sequence[Tensor],
    rates: Tensor,
    *,
    masters: Sequence[Tensor],
    scales: Sequence[float] | None = None,
) -> State:
    """A new State whose masters start from `masters`, the tensors' values before the scale.

    shadows, grads, masters: one tensor each a parameter, all of the shape [rows, cols] or [n].
    Shadows have one of fp32, bf16, fp16 with adjacent columns; grads are contiguous, of the
    shadows' dtype or fp32. The op writes to these addresses ever after: they must stay. Raises
    ValueError when shapes, dtypes or devices do not fit.
    """
    shadows, grads = tuple(s.detach() for s in shadows), tuple(g.detach() for g in grads)
    scales = (1.0,) * len(shadows) if scales is None else tuple(map(float, scales))
    _check_tensors(shadows, grads, masters, scales, rates)
    device = rates.device
    native.live(rates)
    master = torch.cat([m.detach().flatten().to(device, torch.float32) for m in masters])
    exp_avg, exp_avg_sq = torch.zeros_like(master), torch.zeros_like(master)
    tensors = (master, exp_avg, exp_avg_sq, grads, shadows)
    entries, chunks = _table(*tensors, scales)
    return State(
        master, exp_avg, exp_avg_sq, grads, shadows, scales, rates.detach(),
        step=torch.zeros(1, dtype=torch.int64, device=device),
        norm=torch.zeros(1, dtype=torch.float32, device=device),
        status=torch.zeros(2, dtype=torch.int32, device=device),
        entries=entries, chunks=chunks,
        scratch=torch.zeros(SCRATCH + len(chunks), dtype=torch.float32, device=device),
        addresses=_addresses(*tensors),
    )  # fmt: skip


def _addresses(master, exp_avg, exp_avg_sq, grads, shadows) -> list[int]:
    return [t.data_ptr() for t in (master, exp_avg, exp_avg_sq, *grads, *shadows)]


def _table(master, exp_avg, exp_avg_sq, grads, shadows, scales) -> tuple[Tensor, Tensor]:
    """The entries [n, bytes] uint8, and the entry of each chunk [C] int32."""
    numel = np.array([g.numel() for g in grads], dtype=np.int64)
    count = -(-numel // CHUNK)
    entries = np.zeros(len(grads), dtype=ENTRY)
    offset = 4 * (np.cumsum(numel) - numel)
    for name, flat in (("master", master), ("exp_avg", exp_avg), ("exp_avg_sq", exp_avg_sq)):
        entries[name] = flat.data_ptr() + offset
    entries["grad"] = [g.data_ptr() for g in grads]
    entries["shadow"] = [s.data_ptr() for s in shadows]
    # A contiguous shadow is one long row: it needs no rows of whole vectors.
    flat = [s.is_contiguous() for s in shadows]
    entries["cols"] = [s.numel() if f else s.shape[1] for s, f in zip(shadows, flat, strict=True)]
    entries["stride"] = [0 if f else s.stride(0) for s, f in zip(shadows, flat, strict=True)]
    entries["numel"], entries["scale"], entries["first"] = numel, scales, np.cumsum(count) - count
    table = torch.from_numpy(entries.view(np.uint8).reshape(len(grads), -1))
    chunks = torch.from_numpy(np.repeat(np.arange(len(grads), dtype=np.int32), count))
    return table.to(master.device), chunks.to(master.device)


@torch.library.custom_op(
    "liftcore::lora_adamw",
    mutates_args=(
        "master", "exp_avg", "exp_avg_sq", "grads", "shadows", "step", "norm", "status", "scratch",
    ),
)  # fmt: skip
def _lora_adamw(
    master: Tensor, exp_avg: Tensor, exp_avg_sq: Tensor, grads: Sequence[Tensor],
    shadows: Sequence[Tensor], scales: Sequence[float], rates: Tensor, step: Tensor, norm: Tensor,
    status: Tensor, entries: Tensor, chunks: Tensor, scratch: Tensor, addresses: Sequence[int],
    max_norm: float, beta1: float, beta2: float, eps: float, weight_decay: float,
) -> None:  # fmt: skip
    if not native.live(master):
        reference.lora_adamw(
            master, exp_avg, exp_avg_sq, grads, shadows, scales, rates, step, norm, status,
            max_norm, beta1, beta2, eps, weight_decay,
        )  # fmt: skip
        return
    tensors = (master, exp_avg, exp_avg_sq, grads, shadows)
    if _addresses(*tensors) != list(addresses):
        # A compiler that makes the op functional may hand it copies.
        entries, chunks = _table(*tensors, scales)
    grad_type = TYPES[grads[0].dtype]
    native.call(
        "liftcore_lora_norm", master.device, entries, chunks, chunks.numel(), grad_type, scratch,
        rates, rates.numel(), step, norm, status, max_norm, beta1, beta2, weight_decay,
    )  # fmt: skip
    native.call(
        "liftcore_lora_update", master.device, entries, chunks, chunks.numel(), grad_type,
        TYPES[shadows[0].dtype], scratch, beta1, beta2, eps,
    )  # fmt: skip


@_lora_adamw.register_fake
def _(*_):
    return None


@torch.no_grad()
def lora_adamw(state: State, settings: Settings) -> Tensor:
    """One update, in two passes over the gradient; returns state.norm, a [1] on the device.

    Raises ValueError when the settings make no sense.
    """
    s = settings
    if not (s.max_norm > 0 and 0 <= s.beta1 < 1 and 0 <= s.beta2 < 1 and s.eps > 0):
        raise ValueError(f"lora_adamw: these settings make no sense: {settings}")
    if not s.weight_decay >= 0:
        raise ValueError(f"lora_adamw: weight_decay {s.weight_decay} is negative")
    _lora_adamw(*state, *settings)
    return state.norm


def _check_tensors(shadows, grads, masters, scales, rates):
    def need(ok: bool, what: str) -> None:
        if not ok:
            raise ValueError(f"lora_adamw: {what}")

    need(len(shadows) > 0, "there is no tensor")
    need(
        len(shadows) == len(grads) == len(masters) == len(scales),
        f"{len(shadows)} shadows, {len(grads)} grads, {len(masters)} masters, {len(scales)} scales",
    )
    need(
        rates.ndim == 1 and rates.numel() > 0 and rates.dtype == torch.float32
        and rates.is_contiguous(),
        f"rates {rates.dtype} {list(rates.shape)} are not fp32 [n]",
    )  # fmt: skip
    kind, grad_kind = shadows[0].dtype, grads[0].dtype
    need(kind in TYPES, f"shadows are {kind}, not fp32, bf16 or fp16")
    need(grad_kind in (kind, torch.float32), f"grads are {grad_kind}, not {kind} or fp32")
    for i, (s, g, m) in enumerate(zip(shadows, grads, masters, strict=True)):
        need(s.shape == g.shape == m.shape, f"tensor {i}: shapes differ: shadow {list(s.shape)}, "
             f"grad {list(g.shape)}, master {list(m.shape)}")  # fmt: skip
        need(s.ndim in (1, 2), f"tensor {i}: shape {list(s.shape)} is not [rows, cols] or [n]")
        need(0 < s.numel() < 2**31, f"tensor {i}: {s.numel()} elements are not in 1 to 2³¹ - 1")
        need(s.dtype == kind and g.dtype == grad_kind, f"tensor {i}: dtype differs from tensor 0")
        need(s.device == g.device == rates.device, f"tensor {i}: not on {rates.device}")
        need(g.is_contiguous(), f"tensor {i}: grad is not contiguous")
        need(
            s.is_contiguous() or (s.ndim == 2 and s.stride(1) == 1 and s.stride(0) >= s.shape[1]),
            f"tensor {i}: shadow has strides {s.stride()}, its columns must be adjacent",
        )
