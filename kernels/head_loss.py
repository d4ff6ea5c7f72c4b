"""LM head and cross entropy over the scored rows only.

    z_t  = softcap(logit_scale · hidden_t Wᵀ)         [V]   for rows t with weight w_t ≠ 0
    loss = Σ_t w_t (logsumexp(z_t) − z_t[label_t])
    dz_t = w_t (softmax(z_t) − onehot(label_t))       [V]   through the cap and the scale
    dhidden_t = dz_t W                                [K]
    dW   = Σ_t dz_tᵀ hidden_t                         [V, K]   only for a trainable head

The logits exist a chunk of rows at a time. With a frozen head the gradient is formed in the
forward and the backward only multiplies each row by its upstream gradient; with a trainable
head the backward runs the chunks again, since dW needs the upstream gradients first.
Statistics are fp32. On CUDA the work is done by head_loss_logits.py or head_loss_cublas.py,
elsewhere by head_loss_plain.py. With soft targets a row has a few probabilities in place of one
label, and the op takes them as labels [T, k] beside probs [T, k]:

    loss = Σ_t w_t Σ_j p_tj (logsumexp(z_t) − z_t[id_tj])
    dz_t = w_t (softmax(z_t) · Σ_j p_tj − p_t scattered to id_t)
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from liftcore.kernels.device import HAS_TRITON, architecture, interpreting, on_device

# How a CUDA device runs the two products, by what the host knows. Not measured on a GPU yet.
#   rows known on the host: cuBLAS has the higher throughput and no row is computed in vain
#   rows found on the device: only a Triton product can stop at a count that the host never sees
WAY_WITH_ROW_INDEX = "cublas"
WAY_WITHOUT_ROW_INDEX = "triton"


class Inputs(NamedTuple):
    """What the op takes, and each of the three files that compute it.

    They return w_t · nll_t [T] fp32 and the gradients of its sum: dhidden [T, K] in the dtype of
    hidden and, where they can, dweight [V, K] fp32; None for one that is not wanted.
    """

    hidden: Tensor  # [T, K]
    weight: Tensor  # [V, K]
    labels: Tensor  # [T]; with probs [T, k], in the order that merged() gives
    w: Tensor  # [T] fp32
    row_index: Tensor | None  # [M]
    softcap: float | None
    logit_scale: float
    want_hidden: bool
    want_weight: bool
    way: str
    probs: Tensor | None = None  # [T, k]


_library = torch.library.Library("liftcore", "FRAGMENT")
_library.define(
    "head_loss(Tensor hidden, Tensor weight, Tensor labels, Tensor w, Tensor? row_index, "
    "float? softcap, float logit_scale, bool want_hidden, bool want_weight, str way, "
    "Tensor? probs=None) -> (Tensor, Tensor, Tensor)"
)
_library.define("head_loss_scale(Tensor grad, Tensor factor) -> Tensor")


@torch.library.impl(_library, "head_loss", "CompositeExplicitAutograd")
def _head_loss(*args: Any) -> tuple[Tensor, Tensor, Tensor]:
    """w_t · nll_t [T] fp32, and the gradients of its sum; an empty tensor for one not wanted."""
    given = Inputs(*args)
    hidden, weight, labels, w = given[:4]
    if hidden.device.type == "cpu" and not _use_triton(hidden.device, hidden.dtype):
        # The backward asks for dW with weights that hold a gradient: that may be anything.
        _check_values(labels, w, weight.shape[0], given.probs, any_weight=given.want_weight)
    factor = None
    if hidden.dtype == torch.float16:
        # Weights near 1, and the rest of them in fp32: a scaler's 65,536 overflows dz in fp16.
        factor = _power_of_two(w)
        given = given._replace(w=w / factor)
    # Autocast would turn the fp32 products inside into another dtype.
    with on_device(hidden), torch.autocast(hidden.device.type, enabled=False):
        loss, dhidden, dweight = _way(given)(given)
    if factor is not None:
        loss = loss * factor
        if dhidden is not None:
            dhidden = _scaled(dhidden, factor)
        if dweight is not None:
            dweight.mul_(factor)
    dhidden = hidden.new_empty(0) if dhidden is None else dhidden
    dweight = weight.new_empty(0) if dweight is None else dweight.to(weight.dtype)
    return loss, dhidden, dweight


def _way(given: Inputs) -> Callable[[Inputs], tuple[Tensor, Tensor | None, Tensor | None]]:
    """The function that computes it."""
    hidden, cublas = given.hidden, given.way == "cublas"
    if not _use_triton(hidden.device, hidden.dtype):
        from liftcore.kernels.head_loss_plain import head_loss
    elif given.want_weight or cublas or given.probs is not None or _interpreted_bf16(hidden):
        from liftcore.kernels.head_loss_cublas import head_loss
    else:
        from liftcore.kernels.head_loss_logits import head_loss
    return head_loss


def _power_of_two(w: Tensor) -> Tensor:
    """The power of two just above the largest |w|, fp32 []; 1 where w is empty or all 0."""
    largest = w.abs().amax() if w.numel() else w.new_zeros(())
    return torch.ldexp(torch.ones_like(largest), torch.frexp(largest).exponent)


def _scaled(x: Tensor, factor: Tensor) -> Tensor:
    """x · factor in the dtype of x, multiplied in fp32 at least and rounded once."""
    return torch.mul(x, factor, out=torch.empty_like(x))


def _check_values(
    labels: Tensor, w: Tensor, vocabulary: int, probs: Tensor | None, any_weight: bool
) -> None:
    """Raises ValueError for values that a CPU can look at without a wait."""
    if not any_weight and torch.isnan(w).any():
        raise ValueError("head loss: a token weight is NaN")
    used = w != 0 if probs is None else (w != 0)[:, None] & (probs > 0)
    wrong = labels[used & ((labels < 0) | (labels >= vocabulary))]
    if len(wrong):
        raise ValueError(
            f"head loss: a label is {int(wrong[0])}, outside of the vocabulary [0, {vocabulary})"
        )


@torch.library.register_fake("liftcore::head_loss", lib=_library)
def _(*args: Any) -> tuple[Tensor, Tensor, Tensor]:
    hidden, weight, *_ = given = Inputs(*args)
    return (
        hidden.new_empty(hidden.shape[0], dtype=torch.float32),
        hidden.new_empty(hidden.shape if given.want_hidden else 0),
        weight.new_empty(weight.shape if given.want_weight else 0),
    )


@torch.library.impl(_library, "head_loss_scale", "CompositeExplicitAutograd")
def _head_loss_scale(grad: Tensor, factor: Tensor) -> Tensor:
    """grad [T, K] with row t multiplied by factor [T]."""
    if _use_triton(grad.device, grad.dtype):
        from liftcore.kernels.head_loss_dhidden import scale_rows

        with on_device(grad):
            return scale_rows(grad, factor)
    return _scaled(grad, factor[:, None])


@torch.library.register_fake("liftcore::head_loss_scale", lib=_library)
def _(grad: Tensor, factor: Tensor) -> Tensor:
    return torch.empty_like(grad)


@functools.cache
def _use_triton(device: torch.device, dtype: torch.dtype) -> bool:
    if dtype not in (torch.bfloat16, torch.float16, torch.float32) or not HAS_TRITON:
        return False
    return architecture(device) >= 80 if device.type == "cuda" else interpreting()


def _interpreted_bf16(x: Tensor) -> bool:
    """bf16 products are wrong in Triton's interpreter."""
    return x.device.type == "cpu" and x.dtype != torch.float32


class _LinearCrossEntropy(torch.autograd.Function):
    """apply(*Inputs) -> w_t · nll_t [T] fp32."""

    @staticmethod
    def forward(ctx: Any, *args: Any) -> Tensor:
        hidden, weight, labels, w, row_index, cap, scale, dhidden, dweight, way, probs = args
        # The gradient is kept in the dtype of hidden: in fp16 without the size of the weights.
        ctx.factor = _power_of_two(w) if hidden.dtype == torch.float16 else None
        near_one = w if ctx.factor is None else w / ctx.factor
        rest = (cap, scale, dhidden and not dweight, False, way, probs)
        loss, grad, _ = torch.ops.liftcore.head_loss(
            hidden, weight, labels, near_one, row_index, *rest
        )
        loss = loss if ctx.factor is None else loss * ctx.factor
        ctx.trainable_head = dweight
        for_dw = (loss, w) if ctx.needs_input_grad[3] else (None, None)
        if dweight:
            ctx.save_for_backward(*for_dw, hidden, weight, labels, w, row_index, probs)
            ctx.rest = (cap, scale, dhidden, True, way)
        else:
            ctx.save_for_backward(*for_dw, grad)
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dloss: Tensor) -> tuple[Tensor | None, ...]:
        loss, w, *saved = ctx.saved_tensors
        # loss_t = w_t nll_t; the nll of a row of weight 0 is not known and left out.
        dw = None if loss is None else torch.where(w != 0, dloss * (loss / w), 0.0)
        nothing = (None,) * 7
        if not ctx.trainable_head:
            (grad,) = saved
            want = ctx.needs_input_grad[0]
            up = dloss if ctx.factor is None else dloss * ctx.factor
            dhidden = torch.ops.liftcore.head_loss_scale(grad, up) if want else None
            return dhidden, None, None, dw, *nothing
        hidden, weight, labels, w, row_index, probs = saved
        _, dhidden, dweight = torch.ops.liftcore.head_loss(
            hidden, weight, labels, w * dloss, row_index, *ctx.rest, probs
        )
        return dhidden if ctx.rest[2] else None, dweight, None, dw, *nothing


def linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    *,
    token_weights: Tensor | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
    softcap: float | None = None,
    logit_scale: float = 1.0,
    row_index: Tensor | None = None,
    way: str | None = None,
) -> Tensor:
    """Weighted cross entropy of the LM head, computed for the scored rows only.

    Shapes: hidden [T, K], weight [V, K], labels [T] int64, token_weights [T] float or None -> a
    fp32 scalar, or [T] with reduction "none". A row whose label is `ignore_index` or whose
    weight is 0 costs nothing: no logits and no gradient. "mean" divides by the sum of the
    weights of the scored rows and is 0 when there are none. `softcap` and `logit_scale` give the
    logits of Gemma 2 and Granite. The head's gradient is formed only if `weight` requires one;
    it takes 4 V K bytes for its fp32 sums and, on CUDA without `row_index`, the logits of all T
    rows. `token_weights` may require a gradient; a row of weight 0 gets none from its own loss.
    Weights may be negative ("mean" divides by their sum as it is), but not NaN, and a label that
    is scored lies in [0, V). On a CPU anything else raises ValueError; on a GPU, where a look
    would wait for the device, the loss of such a row is NaN.

    `row_index` [M] int32 or int64, when the caller knows the rows: every scored row once, the
    rest of a fixed length filled with −1 or with rows of weight 0. Without it the rows are found
    on the device. Either way the host never waits for their number where the Triton kernels run
    (CUDA from sm_80 in bf16, fp16 and fp32). `way` ("cublas" or "triton") overrides the choice
    of products there; a trainable head always takes cuBLAS. Autocast has no effect inside.
    Raises ValueError when shapes, dtypes or options do not fit.
    """
    name = "linear_cross_entropy"
    _check(name, hidden, weight, token_weights, reduction, row_index)
    if labels.shape != hidden.shape[:1]:
        raise ValueError(f"{name}: labels {tuple(labels.shape)} are not [T]")
    if way not in (None, "cublas", "triton"):
        raise ValueError(f"{name}: unknown way {way!r}")
    w = (labels != ignore_index).float()
    if token_weights is not None:
        w = w * token_weights.float()
    if way is None:
        way = WAY_WITHOUT_ROW_INDEX if row_index is None else WAY_WITH_ROW_INDEX
    wanted = _wanted(hidden, weight)
    given = Inputs(hidden, weight, labels, w, row_index, softcap, float(logit_scale), *wanted, way)
    return _reduced_loss(given, reduction)


def linear_soft_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    target_ids: Tensor,
    target_probs: Tensor,
    *,
    token_weights: Tensor | None = None,
    row_index: Tensor | None = None,
    reduction: str = "mean",
    softcap: float | None = None,
    logit_scale: float = 1.0,
) -> Tensor:
    """Weighted cross entropy of the LM head against sparse soft targets, scored rows only.

    One target with p = 1 is the hard loss. On CUDA the products always run in cuBLAS.

    Shapes: hidden [T, K], weight [V, K], target_ids int [T, k], target_probs float [T, k] ->
    a fp32 scalar, or [T] with reduction "none". The probabilities need not sum to 1, and an id
    may stand twice in a row: both count. An id of −1 or a probability of 0 is no target; a row
    without targets or of weight 0 costs nothing. There is no gradient for the targets. The rest
    is as for linear_cross_entropy, but without a `row_index` CUDA forms the logits of all T rows.
    Raises ValueError when shapes, dtypes or options do not fit.
    """
    name = "linear_soft_cross_entropy"
    _check(name, hidden, weight, token_weights, reduction, row_index)
    _check_targets(name, hidden.shape[0], target_ids, target_probs)
    ids, probs = merged(target_ids, target_probs.detach())
    w = (probs[:, 0] > 0).float()
    if token_weights is not None:
        w = w * token_weights.float()
    numbers, wanted = (softcap, float(logit_scale)), _wanted(hidden, weight)
    given = Inputs(hidden, weight, ids, w, row_index, *numbers, *wanted, "cublas", probs)
    return _reduced_loss(given, reduction)


def merged(ids: Tensor, probs: Tensor) -> tuple[Tensor, Tensor]:
    """Targets [T, k] as the kernels want them: int64 and fp32, each id once, the likeliest first.

    A place that is not used has probability 0 and repeats the id of place 0.
    """
    ids = ids.long()
    probs = probs.float().masked_fill(ids < 0, 0.0)
    same = ids[:, :, None] == ids[:, None, :]  # [T, k, k]
    sums = (same * probs[:, None, :]).sum(-1).masked_fill(same.tril(-1).any(-1), 0.0)
    probs, order = sums.sort(dim=-1, descending=True, stable=True)
    ids = ids.gather(-1, order)
    return torch.where(probs > 0, ids, ids[:, :1]), probs


def _wanted(hidden: Tensor, weight: Tensor) -> tuple[bool, bool]:
    """Whether dhidden and dweight are."""
    grad = torch.is_grad_enabled()
    return grad and hidden.requires_grad, grad and weight.requires_grad


def _reduced_loss(given: Inputs, reduction: str) -> Tensor:
    loss = _LinearCrossEntropy.apply(*given)
    if reduction == "none":
        return loss
    if reduction == "sum":
        return loss.sum()
    total = given.w.sum()
    return loss.sum() / torch.where(total == 0, 1.0, total)


def _check(
    name: str,
    hidden: Tensor,
    weight: Tensor,
    token_weights: Tensor | None,
    reduction: str,
    row_index: Tensor | None,
) -> None:
    """What every head loss asks of its arguments; raises ValueError."""
    if hidden.ndim != 2 or weight.ndim != 2 or hidden.shape[1] != weight.shape[1]:
        raise ValueError(
            f"{name}: hidden {tuple(hidden.shape)} and weight {tuple(weight.shape)} do not fit "
            "[T, K], [V, K]"
        )
    if hidden.dtype != weight.dtype:
        raise ValueError(f"{name}: hidden is {hidden.dtype}, weight is {weight.dtype}")
    if token_weights is not None and token_weights.shape != hidden.shape[:1]:
        raise ValueError(f"{name}: token_weights {tuple(token_weights.shape)} are not [T]")
    if reduction not in ("mean", "sum", "none"):
        raise ValueError(f"{name}: unknown reduction {reduction!r}")
    if row_index is not None and (
        row_index.ndim != 1 or row_index.dtype not in (torch.int32, torch.int64)
    ):
        raise ValueError(f"{name}: row_index must be [M] of int32 or int64")


def _check_targets(name: str, rows: int, ids: Tensor, probs: Tensor) -> None:
    if ids.ndim != 2 or ids.shape[0] != rows or probs.shape != ids.shape or not ids.shape[1]:
        raise ValueError(
            f"{name}: target_ids {tuple(ids.shape)} and target_probs {tuple(probs.shape)} are "
            f"not both [T, k] with T = {rows} and k ≥ 1"
        )
    if ids.is_floating_point() or not probs.is_floating_point():
        raise ValueError(f"{name}: target_ids are {ids.dtype}, target_probs {probs.dtype}")
