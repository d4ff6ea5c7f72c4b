"""What a plain linear layer is: y = x Wᵀ (+ bias), under whatever name.

nn.Linear is one, and so is the Conv1D of transformers, whose weight is transposed. A subclass of
nn.Linear with a forward of its own is one when a trial says so. Fp8Linear is one whose weight the
ops take in FP8; those of bitsandbytes and torchao compute the product by themselves.
"""

from __future__ import annotations

from collections.abc import Iterable
from inspect import signature
from typing import Any, cast
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from liftcore.errors import UsageError
from liftcore.kernels.fp8 import Weight
from liftcore.layers.fp8 import Fp8Linear
from liftcore.layers.replaced import off_by

# Package -> its layers that compute x Wᵀ (+ bias) of a quantised W with a gradient for x; () where
# nn.Linear does so with a weight of the package's.
QUANTISED = {"bitsandbytes": ("Linear4bit", "Linear8bitLt"), "torchao": ()}
# Layers with a forward of their own -> what their trial said.
_tried: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()


def is_transposed(layer: nn.Module) -> bool:
    """Whether the layer is a Conv1D of transformers: weight [K, N], as in GPT-2; or stands for
    one."""
    from transformers.pytorch_utils import Conv1D

    return isinstance(layer, Conv1D) or (isinstance(layer, Fp8Linear) and layer.fan_in_fan_out)


def is_linear(layer: nn.Module) -> bool:
    """Whether the layer is of a class that holds the weight of a product."""
    return isinstance(layer, nn.Linear | Fp8Linear) or is_transposed(layer)


def quantised_by(layer: nn.Module) -> str | None:
    """The package whose own product a quantised layer computes, of QUANTISED; None for others."""
    package, kind = type(layer).__module__.partition(".")[0], type(layer).__name__
    if kind in QUANTISED.get(package, ()):
        return package
    weight = layer._parameters.get("weight") if type(layer) is nn.Linear else None
    package = type(weight.data).__module__.partition(".")[0] if weight is not None else ""
    return package if package in QUANTISED else None


def keep_gradients(model: nn.Module) -> None:
    """Has the quantised layers of a model give a gradient for x in any mode.

    In evaluation bitsandbytes repacks 4-bit weights in place where a CPU has AVX512-BF16, and the
    product is one without a gradient from then on. Raises UsageError where that has happened.
    """
    for layer in cast(Iterable[Any], model.modules()):
        if not quantised_by(layer) or not getattr(layer, "support_avx512bf16_for_cpu", False):
            continue
        layer.support_avx512bf16_for_cpu = False
        if getattr(layer.weight.quant_state, "packing_format_for_cpu", False):
            raise UsageError(
                "bitsandbytes has repacked the model's 4-bit weights for inference; load it again"
            )


def is_readable(layer: nn.Module) -> bool:
    """Whether the layer's weight is a matrix of numbers, and not quantised."""
    return not isinstance(layer, Fp8Linear) and quantised_by(layer) is None


def weight_of(layer: nn.Module) -> Tensor:
    """The weight as the layer keeps it: [N, K], or [K, N]."""
    assert isinstance(layer.weight, Tensor)
    return layer.weight


def bias_of(layer: nn.Module) -> Tensor | None:
    assert layer.bias is None or isinstance(layer.bias, Tensor)
    return layer.bias


def product_weight(layer: nn.Module) -> Weight:
    """The weight [N, K] as the ops take it."""
    return layer.rows if isinstance(layer, Fp8Linear) else matrix(layer)


def matrix(layer: nn.Module) -> Tensor:
    """The weight as [N, K]; a view where the layer keeps it transposed."""
    upright = isinstance(layer, nn.Linear | Fp8Linear)
    return weight_of(layer) if upright else weight_of(layer).T


def features(layer: Any) -> tuple[int, int]:
    """(K, N): the width of a linear layer's input and of its output."""
    if isinstance(layer, nn.Linear) or not hasattr(layer, "nf"):
        return layer.in_features, layer.out_features
    return layer.nx, layer.nf


def unlike(layer: nn.Module) -> str | None:
    """What a layer of is_linear() is, if it cannot be computed as x Wᵀ (+ bias): "hooked",
    "parametrized" or the name of its class; None when it can."""
    kind: Any = type(layer)
    if isinstance(layer, Fp8Linear):
        return "hooked" if "forward" in vars(layer) or observed(layer) else None
    # A weight that is computed at each call is none that a product may keep.
    if "weight" not in layer._parameters:
        return "parametrized"
    if "forward" in vars(layer) or observed(layer):
        return "hooked"
    if kind.__call__ is not nn.Module.__call__:
        return kind.__name__
    if kind.forward is nn.Linear.forward or _is_conv1d(kind):
        return None
    if layer not in _tried:
        # A caller that hands over more than x knows more of the layer than we do.
        _tried[layer] = len(signature(kind.forward).parameters) == 2 and _is_product(layer)
    return None if _tried[layer] else kind.__name__


def observed(module: nn.Module) -> bool:
    """Whether somebody hooks into the calls of a module, so that none may be left out."""
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
    )


def _is_conv1d(kind: Any) -> bool:
    from transformers.pytorch_utils import Conv1D

    return kind.forward is Conv1D.forward


@torch.no_grad()
def _is_product(layer: nn.Module) -> bool:
    """Whether the layer gives x Wᵀ (+ bias) for the smallest to the largest x, in either mode."""
    weight, bias = matrix(layer), bias_of(layer)
    if weight.is_meta:
        return True  # there is nothing to compute with; sizes are all that is asked for
    eps, largest = torch.finfo(weight.dtype).eps, torch.finfo(weight.dtype).max
    devices = [weight.device] if weight.is_cuda else []
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(2, 3, weight.shape[1], generator=draw)
    modes = [(module, module.training) for module in layer.modules()]
    try:
        # It may draw random numbers: those of the caller stay as they are.
        with torch.random.fork_rng(devices):
            for scale in (1e-3, 1.0, 1e3, *((1e8,) if largest > 1e9 else ())):
                given = (x * scale).to(weight.device, weight.dtype)
                right = F.linear(given, weight, bias).float()
                for training in (False, True):
                    layer.train(training)
                    own = layer(given.clone())
                    if not isinstance(own, Tensor) or own.dtype != given.dtype:
                        return False
                    # 16-bit sums may be rounded once more; fp32 ones in another order.
                    if not off_by(own, right) <= max(eps, 1e-5):
                        return False
        return True
    except Exception:  # a forward of unknown form may fail in any way
        return False
    finally:
        for module, training in modes:
            module.training = training
