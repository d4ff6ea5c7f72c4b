"""LoRA linear: y = x Wᵀ + scaling (x Aᵀ) Bᵀ (+ bias), forward and backward.

    S  = x Aᵀ                      [T, R]   kept for the backward
    y  = x Wᵀ + scaling S Bᵀ       [T, N]   written once
    dS = scaling · dy B            [T, R]
    dx = dy W + dS A               [T, K]   skipped when x needs no gradient
    dA = dSᵀ x                     [R, K]
    dB = scaling · dyᵀ S           [N, R]

W is frozen: its gradient is never formed. Three ways give the same: fused Triton kernels
(lora_fused.py), one library product over concatenated matrices (lora_concat.py), and the plain
products below; tiles.py says which runs where. Source: "LoRA" (Hu et al.), equation 3.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from liftcore.kernels.autocast import cast, without_autocast
from liftcore.kernels.lora_concat import ConcatLora, Packed, add_low_rank
from liftcore.kernels.tiles import HAS_TRITON, architecture, interpreting
from liftcore.kernels.tiles import way as table_way

TRITON_DTYPES = (torch.bfloat16, torch.float16, torch.float32)


class _LoraLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, lora_a, lora_b, scaling, bias):
        s = F.linear(x, lora_a)  # [T, R]
        y = add_low_rank(F.linear(x, weight, bias), s, lora_b, scaling)  # [T, N]
        ctx.save_for_backward(x, s, weight, lora_a, lora_b)
        ctx.scaling = scaling
        return y

    @staticmethod
    @once_differentiable
    @without_autocast
    def backward(ctx, dy):
        x, s, weight, lora_a, lora_b = ctx.saved_tensors
        ds = (dy @ lora_b).mul_(ctx.scaling)  # [T, R]
        dx = torch.mm(dy, weight).addmm_(ds, lora_a) if ctx.needs_input_grad[0] else None
        da = ds.T @ x if ctx.needs_input_grad[2] else None
        db = (dy.T @ s).mul_(ctx.scaling) if ctx.needs_input_grad[3] else None
        return dx, None, da, db, None, None


def lora_linear(
    x: Tensor,
    weight: Tensor,
    lora_a: Tensor,
    lora_b: Tensor,
    scaling: float,
    bias: Tensor | None = None,
    *,
    dropout: float = 0.0,
    way: str | None = None,
    packed: Packed | None = None,
    slack: bool = False,
) -> Tensor:
    """y = x Wᵀ + scaling (x Aᵀ) Bᵀ (+ bias), with gradients for x, A and B only.

    Shapes: x [..., K], weight [N, K], lora_a [R, K], lora_b [N, R], bias [N] -> [..., N]; all of
    one floating dtype and on one device. Under autocast the op runs in the dtype of autocast, as
    F.linear does, and each gradient has the dtype of its input. Weight and bias are frozen. `way`
    overrides the choice of the table in tiles.py: "triton", "plain", or "concat" (one library
    product), which needs `packed`, a buffer from lora_concat.pack that holds the current W, A and
    scaling · B and whose view is `weight`, and is the default where it is given. `slack`: x comes
    from lora_concat.with_slack, and S may be written behind its rows. Raises ValueError when the
    shapes, dtypes, devices or `packed` do not fit, for a way that cannot run these tensors, or for
    a dropout. Source: "LoRA" (Hu et al.), equation 3.
    """
    x, weight, lora_a, lora_b, bias = cast(x, weight, lora_a, lora_b, bias)
    _check(x, weight, lora_a, lora_b, bias)
    if dropout:
        raise ValueError(f"lora_linear: dropout {dropout} is not supported, only 0")
    flat = x.reshape(-1, x.shape[-1])  # [T, K]
    chosen = choose("linear", flat, way or ("concat" if packed is not None else None))
    if chosen == "triton":
        from liftcore.kernels.lora_fused import FusedLora

        (y,) = FusedLora.apply(flat, [float(scaling)], weight, lora_a, lora_b, bias)
    elif chosen == "concat":
        _check_packed(packed, weight, lora_a)
        y = ConcatLora.apply(flat, lora_a, lora_b, float(scaling), bias, packed, slack)
    else:
        y = _LoraLinear.apply(flat, weight, lora_a, lora_b, float(scaling), bias)
    return y if x.ndim == 2 else y.view(*x.shape[:-1], weight.shape[0])


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
    ways = ("triton", "concat", "plain") if op == "linear" else ("triton", "plain")
    if way not in ways:
        raise ValueError(f"way {way!r} of {op}: not one of {', '.join(ways)}")
    if way != "triton":
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
    """Which path is live for tensors like x: "triton", "triton interpreter" or "plain"."""
    chosen = choose("linear", x.reshape(-1, x.shape[-1]))
    return "triton interpreter" if chosen == "triton" and x.device.type == "cpu" else chosen


def _check(x: Tensor, weight: Tensor, lora_a: Tensor, lora_b: Tensor, bias: Tensor | None) -> None:
    (n, k), r = weight.shape, lora_a.shape[0]
    if x.shape[-1] != k or lora_a.shape != (r, k) or lora_b.shape != (n, r):
        raise ValueError(
            f"lora_linear: x {tuple(x.shape)}, weight {tuple(weight.shape)}, lora_a "
            f"{tuple(lora_a.shape)} and lora_b {tuple(lora_b.shape)} do not fit "
            "[..., K], [N, K], [R, K], [N, R]"
        )
    if bias is not None and bias.shape != (n,):
        raise ValueError(f"lora_linear: bias {tuple(bias.shape)} is not [{n}]")
    if not x.dtype == weight.dtype == lora_a.dtype == lora_b.dtype:
        raise ValueError(
            f"lora_linear: dtypes differ: x {x.dtype}, weight {weight.dtype}, "
            f"lora_a {lora_a.dtype}, lora_b {lora_b.dtype}"
        )


def _check_packed(packed: Packed | None, weight: Tensor, lora_a: Tensor) -> None:
    """The buffer has the shape and dtype of this layer, and the weight is a view of it."""
    if packed is None:
        raise ValueError("lora_linear: the way 'concat' needs packed=")
    (n, k), r = weight.shape, lora_a.shape[0]
    if packed.all.shape != (n + r, k + r) or packed.all.dtype != weight.dtype:
        raise ValueError(
            f"lora_linear: packed is {packed.all.dtype} {tuple(packed.all.shape)}, the layer needs "
            f"{weight.dtype} {(n + r, k + r)}"
        )
    # A tracer has no addresses.
    if not torch.compiler.is_compiling() and weight.data_ptr() != packed.weight.data_ptr():
        raise ValueError("lora_linear: weight is not packed.weight; packed is of another layer")
