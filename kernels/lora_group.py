"""LoRA linears that share an input: q/k/v, and gate/up with SwiGLU.

    y_i = x W_iᵀ + scaling_i (x A_iᵀ) B_iᵀ (+ bias_i)
    h   = act(y_0) · y_1                                  gate/up only; act = silu or gelu_tanh

One product gives S = x Aᵀ of all members, and their dx are summed in place. Two ways give the
same: Triton kernels (lora_fused.py) and plain products (lora_group_cpu.py).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from liftcore.kernels.autocast import cast
from liftcore.kernels.lora import _check, choose
from liftcore.kernels.lora_group_cpu import PlainGateUp, PlainGroup

ACTIVATIONS = ("silu", "gelu_tanh")


def lora_qkv(
    x: Tensor,
    weights: Sequence[Tensor],
    lora_a: Sequence[Tensor],
    lora_b: Sequence[Tensor],
    scalings: Sequence[float],
    biases: Sequence[Tensor | None] | None = None,
    *,
    way: str | None = None,
) -> tuple[Tensor, ...]:
    """(q, k, v) of x: up to three LoRA linears that share x; gradients for x, A and B only.

    Shapes: x [..., K], weights[i] [N_i, K], lora_a[i] [R_i, K], lora_b[i] [N_i, R_i], biases[i]
    [N_i] or None -> a tuple of [..., N_i]; the N_i and R_i may differ. `way`: "triton" or
    "plain", else as tiles.py says. Raises ValueError when the shapes or dtypes do not fit, or for
    a way that cannot run these tensors. Autocast holds as for lora_linear.
    """
    x, weights, lora_a, lora_b, biases = _check_group(x, weights, lora_a, lora_b, scalings, biases)
    flat = x.reshape(-1, x.shape[-1])  # [T, K]
    scalings = [float(s) for s in scalings]
    if choose("group", flat, way) == "triton":
        from liftcore.kernels.lora_fused import FusedLora

        ys = FusedLora.apply(flat, scalings, *weights, *lora_a, *lora_b, *biases)
    else:
        ys = PlainGroup.apply(flat, scalings, *weights, *lora_a, *lora_b, *biases)
    return tuple(ys) if x.ndim == 2 else tuple(y.view(*x.shape[:-1], y.shape[-1]) for y in ys)


def lora_gate_up(
    x: Tensor,
    weights: Sequence[Tensor],
    lora_a: Sequence[Tensor],
    lora_b: Sequence[Tensor],
    scalings: Sequence[float],
    biases: Sequence[Tensor | None] | None = None,
    *,
    activation: str = "silu",
    way: str | None = None,
) -> Tensor:
    """act(gate) · up of x, gate and up being LoRA linears; gradients for x, A and B only.

    Shapes: as lora_qkv with two members (gate, up) of one width N -> [..., N]. `activation` is
    "silu" or "gelu_tanh". Raises ValueError when the shapes, dtypes or activation do not fit.
    """
    x, weights, lora_a, lora_b, biases = _check_group(x, weights, lora_a, lora_b, scalings, biases)
    if len(weights) != 2 or weights[0].shape != weights[1].shape:
        raise ValueError(
            f"lora_gate_up: weights {[tuple(w.shape) for w in weights]} are not two of one shape"
        )
    if activation not in ACTIVATIONS:
        raise ValueError(f"lora_gate_up: unknown activation {activation!r}, not in {ACTIVATIONS}")
    flat = x.reshape(-1, x.shape[-1])  # [T, K]
    scalings = [float(s) for s in scalings]
    gelu = activation == "gelu_tanh"
    tensors = (*weights, *lora_a, *lora_b, *biases)
    if choose("gate_up", flat, way) == "triton":
        from liftcore.kernels.lora_fused import FusedGateUp

        keep = torch.is_grad_enabled() and any(t.requires_grad for t in (flat, *lora_a, *lora_b))
        h = FusedGateUp.apply(flat, scalings, *tensors, gelu, keep)
    else:
        h = PlainGateUp.apply(flat, scalings, *tensors, gelu)
    return h if x.ndim == 2 else h.view(*x.shape[:-1], h.shape[-1])


def _check_group(x, weights, lora_a, lora_b, scalings, biases):
    n = len(weights)
    biases = [None] * n if biases is None else biases
    if not 1 <= n <= 3 or {n} != {len(m) for m in (lora_a, lora_b, scalings, biases)}:
        raise ValueError(
            f"lora group: {n} weights, {len(lora_a)} A, {len(lora_b)} B, {len(scalings)} "
            f"scalings and {len(biases)} biases are not one each for up to 3 members"
        )
    x, *members = cast(x, *weights, *lora_a, *lora_b, *biases)
    weights, lora_a, lora_b, biases = (members[i : i + n] for i in range(0, 4 * n, n))
    for w, a, b, bias in zip(weights, lora_a, lora_b, biases, strict=True):
        _check(x, w, a, b, bias)
    return x, weights, lora_a, lora_b, biases
