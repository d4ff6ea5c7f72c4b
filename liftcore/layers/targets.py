"""Which layers of a model get LoRA: the plain linear ones of its decoder that PEFT can find."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from liftcore.errors import LiftError, UsageError
from liftcore.layers.linear import is_linear, is_transposed, unlike
from liftcore.layers.peft_names import target_modules, unreachable
from liftcore.model import body


@dataclass(frozen=True)
class Targets:
    """layers   module path -> the linear layer that gets LoRA
    left     module path, or that of a weight -> why it gets none
    names    the target_modules by which PEFT finds just these layers
    """

    layers: dict[str, nn.Module]
    left: dict[str, str]
    names: list[str] | str

    @property
    def fan_in_fan_out(self) -> bool:
        """What PEFT calls a weight [K, N]."""
        return all(is_transposed(layer) for layer in self.layers.values())

    @property
    def note(self) -> str:
        """What gets no LoRA, for people; empty when everything does."""
        paths: dict[str, list[str]] = {}
        for path, why in self.left.items():
            paths.setdefault(why, []).append(path)
        parts = []
        for why, those in paths.items():
            ends = sorted({path.rpartition(".")[2] for path in those})
            parts.append(f"{len(those)} named {', '.join(ends)} ({why})")
        return f"without LoRA: {'; '.join(parts)}" if parts else ""


def targets(model: nn.Module) -> Targets:
    """The plain linear layers of the decoder but the LM head, as far as PEFT can find them.

    Raises LiftError when there is none, when the model carries PEFT layers already, or when the
    layers differ in device or dtype; UsageError when they are quantised.
    """
    if any(hasattr(m, "lora_A") and hasattr(m, "base_layer") for m in model.modules()):
        raise LiftError("the model has PEFT adapters already: merge or unload them first")
    current = getattr(model, "_liftcore_adapter", None)
    bases = {id(layer): layer.base for layer in current.layers.values()} if current else {}
    hidden = set(map(id, bases.values()))
    modules = {
        path: bases.get(id(module), module)
        for path, module in model.named_modules()
        if path and id(module) not in hidden
    }
    # A model that also sees or hears has other towers; only the decoder reads the document.
    decoder = {id(m) for m in body(model).modules()}
    head = model.get_output_embeddings()
    inside = {p: m for p, m in modules.items() if id(m) in decoder and m is not head}
    linear = {path: module for path, module in inside.items() if is_linear(module)}
    left = {path: why for path, module in linear.items() if (why := _unfit(module))}
    left |= unreachable(model, [path for path in linear if path not in left])
    layers = {path: module for path, module in linear.items() if path not in left}
    if not layers:
        why = f": {next(iter(left.values()))}" if left else ""
        raise LiftError(f"{type(model).__name__} has no nn.Linear layers to put LoRA on{why}")
    if len({(m.weight.device, m.weight.dtype) for m in layers.values()}) > 1:
        raise LiftError(
            "the model's linear layers differ in device or dtype; load it on one device"
        )
    return Targets(layers, left | _experts(inside), target_modules(layers, modules))


def _unfit(module: nn.Module) -> str | None:
    weight = module.weight
    if not weight.is_floating_point() or type(weight.data) is not Tensor:
        raise UsageError("the model's linear layers are quantised; load it in bf16 or fp32")
    why = unlike(module)
    return f"no plain linear layer: {why}" if why else None


def _experts(modules: dict[str, nn.Module]) -> dict[str, str]:
    """Paths of the weights that are stacks of matrices, which no LoRA of ours takes."""
    stacks = {}
    for path, module in modules.items():
        if isinstance(module, _ConvNd):
            continue
        for name, weight in module._parameters.items():
            if weight is not None and weight.ndim == 3 and min(weight.shape) > 1:
                stacks[f"{path}.{name}"] = "3-D weights, such as routed experts"
    return stacks


def check_mergeable(model: nn.Module, layers: dict[str, nn.Module]) -> None:
    """Raises LiftError when a layer shares its weight, so that it cannot take a sum of its own."""
    uses = Counter(id(p) for _, p in model.named_parameters(remove_duplicate=False))
    shared = [path for path, layer in layers.items() if uses[id(layer.weight)] > 1]
    if shared:
        raise LiftError(
            f"{type(model).__name__} cannot be merged with an adapter: {shared[0]} shares its "
            "weight with another layer; use the adapter itself"
        )
