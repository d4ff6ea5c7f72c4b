"""Clip, AdamW on fp32 masters, shadow and zeroed gradient, over the one flat tensor of an adapter.

    norm = √Σ g²                     g ← g · min(1, max_norm / (norm + 1e-6))
    m ← m + (1 − β1)(g − m)          v ← β2 v + (1 − β2) g²
    p ← (1 − rate · decay) p − rate / (1 − β1ᵗ) · m / (√(v / (1 − β2ᵗ)) + ε)
    shadow ← p                       grad ← 0

The shadow is what the model computes with: the adapter's own tensor, in bf16 say. The rates of
all steps and the number of updates live on the device. When the norm is not finite only the
gradient is zeroed. Source: "Decoupled Weight Decay Regularization" (Loshchilov, Hutter),
algorithm 2.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from liftcore.kernels import native, reference

TYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
# Of csrc/lora_adamw.h: elements of a chunk, and floats before the partial sum of each.
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

    master, exp_avg, exp_avg_sq [P] fp32; grad and shadow [P]. rates [n] fp32: the rate of each
    update, the last one for all that follow. step [1] int64: updates done. norm [1] fp32: before
    the clip. status [2] int32: whether the last update was skipped, and how many were. scratch
    belongs to the library.
    """

    master: Tensor
    exp_avg: Tensor
    exp_avg_sq: Tensor
    grad: Tensor
    shadow: Tensor
    rates: Tensor
    step: Tensor
    norm: Tensor
    status: Tensor
    scratch: Tensor


@torch.no_grad()
def state(shadow: Tensor, grad: Tensor, rates: Tensor) -> State:
    """A new State whose masters start from the shadow's values.

    shadow [P] fp32, bf16 or fp16, grad [P] of the same dtype or fp32, both contiguous. The op
    writes to these two ever after. Raises ValueError when shapes, dtypes or devices do not fit.
    """
    _check(shadow, grad, rates)
    device = rates.device
    native.live(rates)
    master = shadow.detach().to(torch.float32, copy=True)
    return State(
        master,
        exp_avg=torch.zeros_like(master),
        exp_avg_sq=torch.zeros_like(master),
        grad=grad.detach(),
        shadow=shadow.detach(),
        rates=rates.detach(),
        step=torch.zeros(1, dtype=torch.int64, device=device),
        norm=torch.zeros(1, dtype=torch.float32, device=device),
        status=torch.zeros(2, dtype=torch.int32, device=device),
        scratch=torch.zeros(SCRATCH + -(-len(master) // CHUNK), device=device),
    )


@torch.library.custom_op(
    "liftcore::lora_adamw",
    mutates_args=(
        "master", "exp_avg", "exp_avg_sq", "grad", "shadow", "step", "norm", "status", "scratch",
    ),
)  # fmt: skip
def _lora_adamw(
    master: Tensor, exp_avg: Tensor, exp_avg_sq: Tensor, grad: Tensor, shadow: Tensor,
    rates: Tensor, step: Tensor, norm: Tensor, status: Tensor, scratch: Tensor,
    max_norm: float, beta1: float, beta2: float, eps: float, weight_decay: float,
) -> None:  # fmt: skip
    if not native.live(master):
        reference.lora_adamw(
            master, exp_avg, exp_avg_sq, grad, shadow, rates, step, norm, status,
            max_norm, beta1, beta2, eps, weight_decay,
        )  # fmt: skip
        return
    grad_type, size = TYPES[grad.dtype], grad.numel()
    native.call(
        "liftcore_lora_norm", master.device, grad, size, grad_type, scratch,
        rates, rates.numel(), step, norm, status, max_norm, beta1, beta2, weight_decay,
    )  # fmt: skip
    native.call(
        "liftcore_lora_update", master.device, master, exp_avg, exp_avg_sq, grad, shadow, size,
        grad_type, TYPES[shadow.dtype], scratch, beta1, beta2, eps,
    )  # fmt: skip


@_lora_adamw.register_fake
def _(*_: object) -> None:
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


def _check(shadow: Tensor, grad: Tensor, rates: Tensor) -> None:
    def need(ok: bool, what: str) -> None:
        if not ok:
            raise ValueError(f"lora_adamw: {what}")

    need(
        rates.ndim == 1 and rates.numel() > 0 and rates.dtype == torch.float32
        and rates.is_contiguous(),
        f"rates {rates.dtype} {list(rates.shape)} are not fp32 [n]",
    )  # fmt: skip
    kind, shape = shadow.dtype, list(shadow.shape)
    need(kind in TYPES, f"the shadow is {kind}, not fp32, bf16 or fp16")
    need(grad.dtype in (kind, torch.float32), f"the grad is {grad.dtype}, not {kind} or fp32")
    need(shadow.ndim == 1 and shape[0] > 0, f"the shadow {shape} is not [P], P ≥ 1")
    need(grad.shape == shadow.shape, f"the grad {list(grad.shape)} is not {shape} as the shadow")
    need(shadow.device == grad.device == rates.device, f"a tensor is not on {rates.device}")
    need(shadow.is_contiguous() and grad.is_contiguous(), "shadow or grad is not contiguous")
