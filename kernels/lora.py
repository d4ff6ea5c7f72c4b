"""LoRA linears: y = x Wᵀ + scaling (x Aᵀ) Bᵀ (+ bias), alone or in groups that share x.

    S  = x Aᵀ                      [T, R]   kept for dB
    y  = x Wᵀ + scaling S Bᵀ       [T, N]   written once
    dS = scaling · dy B            [T, R]   for dx and dA
    dx = dy W + dS A               [T, K]
    dA = dSᵀ x                     [R, K]   for this alone x is kept
    dB = scaling · dyᵀ S           [N, R]

W is frozen: its gradient is never formed. Of x, A and B each may be frozen as well (by its
requires_grad): then its gradient is not formed, nor is anything computed or kept that only it
reads. With A frozen (LoRA-FA, arXiv 2308.03303) that is x: S alone is kept. In a group (q/k/v, or
gate/up with h = act(gate) · up) one product gives the S of all members, and their dx are summed in
place. lora_autograd.py says what is kept. Two ways give the same: fused Triton kernels
(lora_fused.py) and plain products (lora_plain.py); tiles.py says which runs where. Over a W in FP8
they are lora_fp8_triton.py and lora_fp8_plain.py.
Source: "LoRA" (Hu et al.), equation 3.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from liftcore.kernels.autocast import cast
from liftcore.kernels.device import HAS_TRITON, architecture, interpreting
from liftcore.kernels.fp8 import Fp8Weight, Weight
from liftcore.kernels.lora_autograd import LoraBranch, LoraGateUp, LoraGroup
from liftcore.kernels.tiles import way as table_way

TRITON_DTYPES = (torch.bfloat16, torch.float16, torch.float32)
ACTIVATIONS = ("silu", "gelu_tanh")


def lora_linear(
    x: Tensor,
    weight: Weight,
    lora_a: Tensor,
    lora_b: Tensor,
    scaling: float,
    bias: Tensor | None = None,
    *,
    way: str | None = None,
) -> Tensor:
    """y = x Wᵀ + scaling (x Aᵀ) Bᵀ (+ bias), with gradients for x, A and B only.

    Shapes: x [..., K], weight [N, K], lora_a [R, K], lora_b [N, R], bias [N] -> [..., N]; all of
    one floating dtype and on one device. Under autocast the op runs in the dtype of autocast, as
    F.linear does, and each gradient has the dtype of its input. Weight and bias are frozen. The
    weight may be an Fp8Weight (fp8.py), here as in the other ops. `way` overrides the choice of
    the table in tiles.py: "triton" or "plain". Raises ValueError when the shapes or dtypes do not
    fit, or for a way that cannot run these tensors. Source: "LoRA" (Hu et al.), equation 3.
    """
    return _linears("linear", x, [weight], [lora_a], [lora_b], [scaling], [bias], way)[0]


def lora_qkv(
    x: Tensor,
    weights: Sequence[Weight],
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
    return _linears("group", x, weights, lora_a, lora_b, scalings, biases, way)


def lora_gate_up(
    x: Tensor,
    weights: Sequence[Weight],
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
    flat, tensors = _checked(x, weights, lora_a, lora_b, scalings, biases)
    if len(weights) != 2 or weights[0].shape != weights[1].shape:
        raise ValueError(
            f"lora_gate_up: weights {[tuple(w.shape) for w in weights]} are not two of one shape"
        )
    if activation not in ACTIVATIONS:
        raise ValueError(f"lora_gate_up: unknown activation {activation!r}, not in {ACTIVATIONS}")
    scales, gelu = [float(s) for s in scalings], activation == "gelu_tanh"
    trained = (x, *lora_a, *lora_b)
    keep = torch.is_grad_enabled() and any(t.requires_grad for t in trained)
    chosen = _way_for("gate_up", flat, weights, way)
    h = LoraGateUp.apply(chosen, flat, scales, *tensors, gelu, keep)
    return h if x.ndim == 2 else h.view(*x.shape[:-1], h.shape[-1])


def add_lora(x: Tensor, y: Tensor, lora_a: Tensor, lora_b: Tensor, scaling: float) -> Tensor:
    """y + scaling (x Aᵀ) Bᵀ, with gradients for x, y, A and B.

    For quantised bases: y = base(x) and its share of dx are somebody else's.

    Shapes: x [..., K], y [..., N], lora_a [R, K], lora_b [N, R] -> [..., N], in the dtype of y;
    x, A and B are cast to it (under autocast to the dtype of autocast). Raises ValueError when
    the shapes do not fit. Source: "QLoRA", equation 5.
    """
    r, k = lora_a.shape
    if x.shape != (*y.shape[:-1], k) or lora_b.shape != (y.shape[-1], r):
        raise ValueError(
            f"add_lora: x {tuple(x.shape)}, y {tuple(y.shape)}, lora_a {tuple(lora_a.shape)} and "
            f"lora_b {tuple(lora_b.shape)} do not fit [..., K], [..., N], [R, K], [N, R]"
        )
    dtype, shape = y.dtype, y.shape
    x, y, lora_a, lora_b = (cast(t.to(dtype), x) for t in (x, y, lora_a, lora_b))
    out = LoraBranch.apply(x.reshape(-1, k), y.reshape(-1, shape[-1]), lora_a, lora_b, scaling)
    return out.view(shape).to(dtype)


def choose(op: str, x: Tensor, way: str | None = None) -> str:
    """The way that runs an op for x [T, K]: `way` if given, else by device and tiles.WAYS.

    No rows need no kernel: they take the plain way. Raises ValueError for a way that cannot run.
    """
    device, dtype = x.device.type, x.dtype
    if way is not None:
        return _named_way(op, x, way)
    if device == "cpu":
        # bf16 products are wrong in Triton's interpreter.
        live = interpreting() and dtype == torch.float32 and x.shape[0]
        return "triton" if live else "plain"
    if device != "cuda" or not x.shape[0] or dtype not in TRITON_DTYPES or not HAS_TRITON:
        return "plain"
    return table_way(op, architecture(x.device), x.shape[0])


def _named_way(op: str, x: Tensor, way: str) -> str:
    if way not in ("triton", "plain"):
        raise ValueError(f"way {way!r} of {op}: not one of triton, plain")
    if way == "plain":
        return way
    if x.device.type == "cpu":
        if not interpreting():
            raise ValueError("way 'triton' needs tensors on a GPU, or TRITON_INTERPRET=1")
        dtypes = (torch.float32,)
    elif x.device.type == "cuda" and HAS_TRITON and architecture(x.device) >= 80:
        dtypes = TRITON_DTYPES
    else:
        raise ValueError(
            f"way 'triton' needs Triton and an NVIDIA GPU of sm_80: x is on {x.device}"
        )
    if x.dtype not in dtypes:
        raise ValueError(f"way 'triton' on {x.device.type} takes {dtypes}, not {x.dtype}")
    return "triton" if x.shape[0] else "plain"


def path(x: Tensor) -> str:
    """Which path is live for an MLP of tensors like x: "triton", "triton interpreter" or
    "plain"."""
    chosen = choose("gate_up", x.reshape(-1, x.shape[-1]))
    return "triton interpreter" if chosen == "triton" and x.device.type == "cpu" else chosen


def _way_for(op: str, x: Tensor, weights: Sequence[Weight], way: str | None) -> str:
    """choose() for these weights: those in FP8 have ways of their own."""
    fp8 = [isinstance(w, Fp8Weight) for w in weights]
    if not any(fp8):
        return choose(op, x, way)
    if not all(fp8):
        raise ValueError(f"{op}: some of the weights are in FP8 and some are not")
    return fp8_way(x, weights, way)


def fp8_way(x: Tensor, weights: Sequence[Weight], way: str | None = None) -> str:
    """choose() for weights in FP8: Triton's products of FP8 need sm_89, 16 bits beside them, and
    rows that start at multiples of 16 bytes. Raises ValueError where Triton is named as `way` and
    cannot run."""
    chosen = choose("fp8", x, way)
    fits = x.element_size() == 2 and not any(n % 16 for w in weights for n in w.shape)
    able = not x.is_cuda or (fits and architecture(x.device) >= 89)
    if chosen == "triton" and not able:
        if way is not None:
            raise ValueError(
                "way 'triton' over FP8 takes 16-bit tensors, weights of multiples of 16, and sm_89"
            )
        chosen = "plain"
    return f"fp8 {chosen}"


def _linears(
    op: str,
    x: Tensor,  # [..., K]
    weights: Sequence[Weight],  # [N_i, K]
    lora_a: Sequence[Tensor],  # [R_i, K]
    lora_b: Sequence[Tensor],  # [N_i, R_i]
    scalings: Sequence[float],
    biases: Sequence[Tensor | None] | None,  # [N_i]
    way: str | None,
) -> tuple[Tensor, ...]:  # [..., N_i]
    """The members of one group, by the way that the table or the caller chooses for this op."""
    flat, tensors = _checked(x, weights, lora_a, lora_b, scalings, biases)
    chosen = _way_for(op, flat, weights, way)
    ys = LoraGroup.apply(chosen, flat, [float(s) for s in scalings], *tensors)
    return tuple(ys) if x.ndim == 2 else tuple(y.view(*x.shape[:-1], y.shape[-1]) for y in ys)


def _checked(
    x: Tensor,
    weights: Sequence[Weight],
    lora_a: Sequence[Tensor],
    lora_b: Sequence[Tensor],
    scalings: Sequence[float],
    biases: Sequence[Tensor | None] | None,
) -> tuple[Tensor, list[Weight | None]]:
    """x as [T, K], and the weights, A, B and biases of all members in a row, cast for autocast."""
    n = len(weights)
    biases = [None] * n if biases is None else biases
    if not 1 <= n <= 3 or {n} != {len(m) for m in (lora_a, lora_b, scalings, biases)}:
        raise ValueError(
            f"lora group: {n} weights, {len(lora_a)} A, {len(lora_b)} B, {len(scalings)} "
            f"scalings and {len(biases)} biases are not one each for up to 3 members"
        )
    x = cast(x, x)
    weights = [w if isinstance(w, Fp8Weight) else cast(w, x) for w in weights]
    lora_a, lora_b = ([cast(t, x) for t in m] for m in (lora_a, lora_b))
    biases = [b if b is None else cast(b, x) for b in biases]
    for member in zip(weights, lora_a, lora_b, biases, strict=True):
        _check(x, *member)
    return x.reshape(-1, x.shape[-1]), [*weights, *lora_a, *lora_b, *biases]


def _check(x: Tensor, weight: Weight, lora_a: Tensor, lora_b: Tensor, bias: Tensor | None) -> None:
    (n, k), r = weight.shape, lora_a.shape[0]
    if x.shape[-1] != k or lora_a.shape != (r, k) or lora_b.shape != (n, r):
        raise ValueError(
            f"lora_linear: x {tuple(x.shape)}, weight {tuple(weight.shape)}, lora_a "
            f"{tuple(lora_a.shape)} and lora_b {tuple(lora_b.shape)} do not fit "
            "[..., K], [N, K], [R, K], [N, R]"
        )
    if bias is not None and bias.shape != (n,):
        raise ValueError(f"lora_linear: bias {tuple(bias.shape)} is not [{n}]")
    dtype = x.dtype if isinstance(weight, Fp8Weight) else weight.dtype
    if not x.dtype == dtype == lora_a.dtype == lora_b.dtype:
        raise ValueError(
            f"lora_linear: dtypes differ: x {x.dtype}, weight {dtype}, "
            f"lora_a {lora_a.dtype}, lora_b {lora_b.dtype}"
        )
