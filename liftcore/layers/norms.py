"""RMSNorm of a frozen model, faster: y = x · rsqrt(mean(x²) + eps) · (offset + weight).

A norm is known by its structure (one weight [K], an eps) and by what it computes, with offset 0
(Llama) or 1 (Gemma). On a CPU in 16 bits the Function below replaces it: it keeps x̂ in 16 bits
and one number a row, and works in place on one fp32 copy. On CUDA, Liger's function does where it
is installed and faster in a short trial; that has not run on a GPU. Rotary embeddings stay: their
function belongs to the model's module, so one instance alone cannot get another.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from liftcore.layers.replaced import off_by, replaced

# y of (x [..., K], weight [K], eps)
RmsNorm = Callable[[Tensor, Tensor, float], Tensor]


class _RmsNorm(torch.autograd.Function):
    """r = rsqrt(mean(x²) + eps), x̂ = x r, y = x̂ w;  dx = r (g − x̂ mean(g x̂)) with g = dy w."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float, offset: float) -> Tensor:
        wide = x.to(torch.float32, copy=True)
        r = torch.linalg.vector_norm(wide, dim=-1, keepdim=True)
        r.square_().div_(x.shape[-1]).add_(eps).rsqrt_()
        normed = wide.mul_(r).to(x.dtype)
        ctx.save_for_backward(normed, r, weight)
        ctx.offset = offset
        # Llama rounds before the weight, Gemma after it.
        return (wide.mul_(weight.float() + offset)).to(x.dtype) if offset else normed * weight

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple:
        normed, r, weight = ctx.saved_tensors
        g = dy.float().mul_(weight.float() + ctx.offset) if ctx.offset else (dy * weight).float()
        normed = normed.float()
        mean = (g * normed).mean(-1, keepdim=True)
        return g.sub_(normed.mul_(mean)).mul_(r).to(dy.dtype), None, None, None


@contextmanager
def fast_norms(model: nn.Module) -> Generator[list[str]]:
    """Within it the RMSNorms of this model instance run a faster function; yields their paths.

    A norm whose weight is trained, or whose
    input has another dtype than its weight, or that is called with more than its input (a gate),
    runs its own code. All forwards come back.
    """
    paths: list[str] = []
    chosen: dict[tuple, RmsNorm | None] = {}
    with ExitStack() as stack:
        for path, module in model.named_modules():
            weight, eps = _weight(module), _eps(module)
            if weight is None or eps is None or "forward" in vars(module):
                continue
            x = _probe(weight)
            offset = _offset(module, weight, eps, x)
            if offset is None:
                continue
            # Two norms of a class may compute different things; the trial of speed is theirs alike.
            key = (type(module), weight.shape, weight.dtype, weight.device, offset)
            if key not in chosen:
                chosen[key] = _function(module, weight, eps, offset, x)
            if function := chosen[key]:
                paths.append(path)
                forward = _forward(module, weight, eps, function)
                stack.enter_context(replaced(module, forward=forward))
        yield paths


def _eps(module: nn.Module) -> float | None:
    eps = getattr(module, "variance_epsilon", getattr(module, "eps", None))
    return eps if isinstance(eps, float) else None


def _weight(module: nn.Module) -> Tensor | None:
    """The weight [K] of a module that has no other parameter."""
    parameters = dict(module.named_parameters())
    weight = parameters.get("weight")
    if hasattr(weight, "full_tensor"):
        return None  # its place is taken by another tensor in each forward
    return weight if len(parameters) == 1 and weight is not None and weight.ndim == 1 else None


def _forward(module: nn.Module, weight: Tensor, eps: float, function: RmsNorm) -> Callable:
    def forward(*args: Any, **kwargs: Any) -> Any:
        x = args[0] if len(args) == 1 and not kwargs else None
        if not isinstance(x, Tensor) or x.dtype != weight.dtype or weight.requires_grad:
            return type(module).forward(module, *args, **kwargs)
        return function(x, weight, eps)

    return forward


def _probe(weight: Tensor) -> Tensor:
    """Rows [T, K] for a trial, from so small that eps counts to large ones."""
    random = torch.Generator().manual_seed(0)
    x = torch.randn(512 if weight.is_cuda else 16, len(weight), generator=random) + 0.5
    return (x * torch.logspace(-4, 2, len(x))[:, None]).to(weight.device, weight.dtype)


def _function(
    module: nn.Module, weight: Tensor, eps: float, offset: float, x: Tensor
) -> RmsNorm | None:
    """function(x, weight, eps) that computes what the module does, faster; None for none."""
    if weight.device.type == "cpu":
        return lambda x, weight, eps: _RmsNorm.apply(x, weight, eps, offset)
    if weight.is_cuda:
        return _liger(module, weight, eps, offset, x)
    return None


@torch.no_grad()
def _offset(module: nn.Module, weight: Tensor, eps: float, x: Tensor) -> float | None:
    """The offset with which the formula gives what the module gives; None when none does."""
    if weight.dtype not in (torch.bfloat16, torch.float16):
        return None
    try:
        own = module(x)
    except Exception:  # it wants more than its input
        return None
    if not isinstance(own, Tensor) or own.dtype != x.dtype or own.shape != x.shape:
        return None
    own, wide = own.double(), x.double()
    normed = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    for offset in (0.0, 1.0):
        right = normed * (weight.double() + offset)
        # By rows: those that small numbers fill must not hide behind the others.
        error = (own - right).norm(dim=-1)
        if (error <= 2 * torch.finfo(x.dtype).eps * right.norm(dim=-1)).all():
            return offset
    return None


def _liger(
    module: nn.Module, weight: Tensor, eps: float, offset: float, x: Tensor
) -> RmsNorm | None:
    """Liger's RMSNorm where it is installed, right and faster than the module; else None."""
    try:
        from liger_kernel.transformers import functional  # ty: ignore[import-not-found]  # optional
    except ImportError:
        return None

    def function(x: Tensor, weight: Tensor, eps: float) -> Tensor:
        mode = "gemma" if offset else "llama"
        how = dict(offset=offset, casting_mode=mode, in_place=False)
        return functional.liger_rms_norm(x, weight, eps, **how)

    with torch.no_grad():
        if not off_by(function(x, weight, eps), module(x)) <= 2 * torch.finfo(x.dtype).eps:
            return None
    ours = _milliseconds(lambda x: function(x, weight, eps), x)
    # A wide margin, so that the choice is the same in every run.
    return function if 1.5 * ours < _milliseconds(module, x) else None


def _milliseconds(run: Callable[[Tensor], Tensor], x: Tensor) -> float:
    """Time of a forward and backward on CUDA, the best of ten."""
    best = float("inf")
    for _ in range(12):  # the first ones compile
        leaf = x.clone().requires_grad_()
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        run(leaf).sum().backward()
        end.record()
        end.synchronize()
        best = min(best, start.elapsed_time(end))
    return best
