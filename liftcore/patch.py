"""accelerate(model): liftcore's ops under somebody else's LoRA layers; restore(model): undo it."""

from __future__ import annotations

import types
import warnings
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from liftcore.kernels.lora import lora_linear


@dataclass
class PatchReport:
    """Module paths that run liftcore's ops now, and those left as they were with the reason."""

    replaced: list[str] = field(default_factory=list)
    left: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        lines = [f"{len(self.replaced)} LoRA linears replaced, {len(self.left)} left"]
        return "\n".join(lines + [f"  left {path}: {why}" for path, why in self.left.items()])


def accelerate(model: nn.Module) -> PatchReport:
    """Replaces the forward of every PEFT LoRA linear of this instance by lora_linear.

    A layer is known by its structure (base_layer, lora_A, lora_B, scaling), not by its class.
    What cannot be taken (dropout, DoRA, a quantised base) stays as it is and is named in the
    report; a warning is given when nothing was replaced. Nothing global is patched, parameters
    stay where they are, and restore() undoes it.
    """
    report = PatchReport()
    for path, module in model.named_modules():
        if not all(hasattr(module, name) for name in ("base_layer", "lora_A", "lora_B", "scaling")):
            continue
        if "forward" in vars(module):
            why = None if hasattr(module, "_liftcore_patched") else "its forward is patched already"
        else:
            why = _unfit(module)
            if why is None:
                module.forward = types.MethodType(_forward, module)
                module._liftcore_patched = True
        if why is None:
            report.replaced.append(path)
        else:
            report.left[path] = why
    if not report.replaced:
        warnings.warn(
            "liftcore.accelerate replaced nothing: no LoRA linear it can take", stacklevel=2
        )
    return report


def restore(model: nn.Module) -> None:
    """Gives every module that accelerate() changed its own forward back."""
    for module in model.modules():
        if vars(module).pop("_liftcore_patched", False):
            del module.forward


def _unfit(module: nn.Module) -> str | None:
    """Why a LoRA layer must be left alone; None when it need not."""
    base = module.base_layer
    if not isinstance(base, nn.Linear) or not base.weight.is_floating_point():
        return f"its base is {type(base).__name__}"
    if base.weight.requires_grad or (base.bias is not None and base.bias.requires_grad):
        return "its base weight or bias is trained"
    if any(getattr(module, "use_dora", {}).values()):
        return "DoRA"
    if getattr(module, "fan_in_fan_out", False):
        return "its weight is transposed (fan_in_fan_out)"
    dropouts = getattr(module, "lora_dropout", {})
    if any(getattr(d, "p", 0) for d in dropouts.values()):
        return "dropout"
    if any(b.bias is not None for b in module.lora_B.values()):
        return "a bias on lora_B"
    if getattr(module, "lora_variant", None):
        return "a LoRA variant"
    return None


def _forward(self: nn.Module, x: Tensor, *args, **kwargs) -> Tensor:
    active = [name for name in self.active_adapters if name in self.lora_A]
    # Merged, disabled, several at once, extra arguments: PEFT's own forward knows what to do.
    if self.disable_adapters or self.merged or len(active) != 1 or args or kwargs:
        return type(self).forward(self, x, *args, **kwargs)
    name, base = active[0], self.base_layer
    dtype = torch.get_autocast_dtype(x.device.type) if _autocast(x) else base.weight.dtype
    y = lora_linear(
        x.to(dtype),
        base.weight.to(dtype),
        self.lora_A[name].weight.to(dtype),
        self.lora_B[name].weight.to(dtype),
        self.scaling[name],
        None if base.bias is None else base.bias.to(dtype),
    )
    return y if _autocast(x) else y.to(x.dtype)


def _autocast(x: Tensor) -> bool:
    return torch.is_autocast_enabled(x.device.type)
