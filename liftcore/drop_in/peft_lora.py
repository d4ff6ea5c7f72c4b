"""liftcore's ops under the LoRA linears of PEFT: known by base_layer, lora_A, lora_B, scaling."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from torch import Tensor, nn

from liftcore.kernels.autocast import autocasting
from liftcore.kernels.lora import add_lora, lora_linear
from liftcore.layers.groups import Group, Parts, Siblings
from liftcore.layers.linear import (
    QUANTISED,
    bias_of,
    is_linear,
    is_transposed,
    matrix,
    observed,
    unlike,
    weight_of,
)
from liftcore.layers.replaced import Bound, check_device, held, put_back

MARK, GROUP = "_liftcore_lora", "_liftcore_group"


class PeftLora(Protocol):
    """What a LoRA layer of PEFT has, adapters by name."""

    base_layer: nn.Module
    lora_A: Mapping[str, nn.Module]
    lora_B: Mapping[str, nn.Module]
    lora_dropout: Mapping[str, nn.Module]
    scaling: Mapping[str, float]
    active_adapters: Sequence[str]
    disable_adapters: bool
    merged: bool


def peft(module: nn.Module) -> PeftLora:
    layer: Any = module
    return layer


def is_lora(module: nn.Module) -> bool:
    return all(hasattr(module, name) for name in ("base_layer", "lora_A", "lora_B", "scaling"))


def install(module: nn.Module) -> str | None:
    """Puts the op under a LoRA layer; why not, where it must be left alone."""
    why = "its forward is patched already" if "forward" in vars(module) else unfit(module)
    if why is None:
        module.forward = Bound(forward, module)
        setattr(module, MARK, True)
    return why


def install_group(model: nn.Module, siblings: Siblings) -> None:
    group = Group(model, siblings, parts, GROUP)
    setattr(group.parent, GROUP, group)


def remove_group(module: nn.Module) -> None:
    """Undoes install_group() on the parent of a group, or on a member of one."""
    group = vars(module).pop(GROUP, None)
    # A parent with many members may have two groups, and knows the last one only.
    if group is not None and (group.parent is module or not group.down):
        group.remove()


def remove(module: nn.Module) -> None:
    """Undoes install() and install_group() on this module."""
    remove_group(module)
    if vars(module).pop(MARK, False):
        put_back(module, forward)


def unfit(module: nn.Module) -> str | None:
    """Why a LoRA layer must be left alone; None when it need not."""
    layer = peft(module)
    base = base_kind(layer.base_layer)
    if base not in ("plain", "quantised"):
        return base
    if getattr(module, "fan_in_fan_out", False) != is_transposed(layer.base_layer):
        return "its fan_in_fan_out is not that of its base"
    names = list(layer.lora_A)
    if not names:
        return "it has no adapter"
    if len([name for name in layer.active_adapters if name in names]) > 1:
        return "several active adapters"
    reasons = [unfit_adapter(module, name) for name in names]
    return reasons[0] if all(reasons) else None


def base_kind(base: nn.Module) -> str:
    """ "plain": our product; "quantised": theirs, and our LoRA part; else why neither."""
    package, kind = type(base).__module__.partition(".")[0], type(base).__name__
    weight = getattr(base, "weight", None)
    if kind in QUANTISED.get(package, ()):
        return "quantised"
    if not is_linear(base) or not isinstance(weight, Tensor):
        return f"its base is {kind}"
    if type(weight.data) is not Tensor:
        package, kind = type(weight.data).__module__.partition(".")[0], type(weight.data).__name__
        return "quantised" if package in QUANTISED else f"its base weight is a {kind}"
    if not weight.is_floating_point():
        return f"its base is {kind}"
    bias = bias_of(base)
    if weight.requires_grad or (bias is not None and bias.requires_grad):
        return "its base weight or bias is trained"
    why = unlike(base)
    return f"its base is {why}" if why else "plain"


def unfit_adapter(module: nn.Module, name: str) -> str | None:
    if getattr(module, "use_dora", {}).get(name):
        return "DoRA"
    if name in (getattr(module, "lora_variant", None) or {}):
        return "a LoRA variant"
    layer = peft(module)
    if name in layer.lora_dropout and getattr(layer.lora_dropout[name], "p", 0):
        return "dropout"
    a, b = layer.lora_A[name], layer.lora_B[name]
    for linear in (a, b):
        if type(linear) is not nn.Linear or "forward" in vars(linear) or observed(linear):
            return "its A or B is no plain linear layer"
        if linear.bias is not None:
            return "a bias on lora_B"
    return None


def forward(self: nn.Module, x: Tensor, *args: object, **kwargs: object) -> Tensor:
    """The forward of a LoRA layer while it is accelerated."""
    name = None if args or kwargs else adapter(self)
    # Merged, disabled, several at once, extra arguments: PEFT's own forward knows what to do.
    if name is None:
        return type(self).forward(self, x, *args, **kwargs)
    layer = peft(self)
    kind = base_kind(layer.base_layer)
    if kind == "quantised":
        a, b = weight_of(layer.lora_A[name]), weight_of(layer.lora_B[name])
        return add_lora(x, layer.base_layer(x), a, b, layer.scaling[name])
    if kind != "plain":
        return type(self).forward(self, x)
    group = vars(self).get(GROUP)
    if group is not None and (y := group.output(self, x)) is not None:
        return y
    return lora_linear(x, *_parts(layer, name, x))


def adapter(module: nn.Module) -> str | None:
    """The one adapter that the ops can run now; None: the layer's own forward must."""
    layer = peft(module)
    if MARK not in vars(module) or layer.disable_adapters or layer.merged:
        return None
    active = [name for name in layer.active_adapters if name in layer.lora_A]
    if len(active) != 1:
        return None
    why = unfit_adapter(module, active[0])
    return active[0] if why is None or (why == "dropout" and not module.training) else None


def parts(module: nn.Module, x: Tensor) -> Parts | None:
    """What a group needs of a LoRA layer; None when it must run by itself."""
    name = adapter(module)
    if name is None or observed(module) or held(module) is not forward:
        return None
    layer = peft(module)
    return _parts(layer, name, x) if base_kind(layer.base_layer) == "plain" else None


def _parts(layer: PeftLora, name: str, x: Tensor) -> Parts:
    base = layer.base_layer
    a, b = weight_of(layer.lora_A[name]), weight_of(layer.lora_B[name])
    check_device(x, weight_of(base))
    if not autocasting(x):
        # PEFT keeps fp32 adapters on a bf16 model: they are masters, and the product is bf16.
        a, b = a.to(weight_of(base).dtype), b.to(weight_of(base).dtype)
    return Parts(matrix(base), a, b, layer.scaling[name], bias_of(base))
