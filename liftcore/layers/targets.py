"""Which layers of a model get LoRA: the plain linear ones of its decoder that PEFT can find.

An adapter is only worth what PEFT makes of its adapter_config.json. So the layers are chosen,
and named, such that PEFT puts LoRA on exactly them: source, PEFT 0.21 (tuners/tuners_utils.py,
utils/transformers_weight_conversion.py).
"""

from __future__ import annotations

import re
import warnings
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from liftcore.errors import LiftError, UsageError
from liftcore.layers.depth import list_path, number_of, transformed
from liftcore.layers.fp8 import Fp8Linear
from liftcore.layers.linear import (
    is_linear,
    is_readable,
    is_transposed,
    quantised_by,
    unlike,
    weight_of,
)
from liftcore.layers.sharded import part
from liftcore.model import body, causal_lm

# With transformers 5 PEFT takes these names for the routed experts of an older layout, wherever
# they stand, and puts no LoRA on a linear layer of such a name.
EXPERTS = {
    "mixtral": ("gate", "w1", "w2", "w3"),
    "qwen2_moe": ("gate", "gate_proj", "up_proj", "down_proj"),
}
# PEFT refuses these names in these models.
MAMBA = ("falcon_h1", "mamba", "mamba2", "falcon_mamba", "nemotron_h")
MAMBA_REFUSED = ("out_proj", "conv1d")
EXCLUDED = "exclude_modules"


@dataclass(frozen=True)
class Targets:
    """layers   module path -> the linear layer that gets LoRA
    device, dtype  of their products, and so of the adapter
    left     module path, or that of a weight -> why it gets none
    names    the target_modules by which PEFT finds just these layers, with
    numbers  the decoder layers whose linear layers these are, PEFT's layers_to_transform, in
    pattern  the list of this name, PEFT's layers_pattern; both None where `names` alone say it
    """

    layers: dict[str, nn.Module]
    device: torch.device
    dtype: torch.dtype
    left: dict[str, str]
    names: list[str] | str
    numbers: list[int] | None = None
    pattern: str | None = None

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


def targets(
    model: nn.Module, numbers: Collection[int] | None = None, exclude: Collection[str] = ()
) -> Targets:
    """The plain linear layers of the decoder but the LM head, as far as PEFT can find them; with
    `numbers` only those within these of the decoder's layers, and none whose path ends with a name
    of `exclude` (PEFT's exclude_modules).

    Raises LiftError when there is none, when the model carries PEFT layers already, or when the
    layers differ in device or dtype; UsageError when they are quantised by a package that is not
    in QUANTISED.
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
    head = causal_lm(model).get_output_embeddings()
    inside = {p: m for p, m in modules.items() if id(m) in decoder and m is not head}
    linear = {path: module for path, module in inside.items() if is_linear(module)}
    left = {path: why for path, module in linear.items() if (why := _unfit(module))}
    left |= unreachable(model, [path for path in linear if path not in left])
    left |= {p: EXCLUDED for p in linear if p not in left and not {*exclude}.isdisjoint(_ends(p))}
    layers = {path: module for path, module in linear.items() if path not in left}
    if not layers:
        why = f": {next(iter(left.values()))}" if left else ""
        raise LiftError(f"{type(model).__name__} has no nn.Linear layers to put LoRA on{why}")
    places = {_place(model, layer) for layer in layers.values()}
    if len(places) > 1:
        raise LiftError(
            "the model's linear layers differ in device or dtype; load it on one device"
        )
    named = target_modules(layers, modules)
    every = Targets(layers, *places.pop(), left | _experts(inside), named)
    return every if numbers is None else _within(model, every, numbers, modules)


def _within(
    model: nn.Module, every: Targets, numbers: Collection[int], names: Iterable[str]
) -> Targets:
    """Those of the targets that lie in the decoder layers of these numbers."""
    lists = list_path(model)
    inside = {p: m for p, m in every.layers.items() if number_of(p, lists) in numbers}
    left = {p: why for p, why in every.left.items() if number_of(p, lists) in numbers}
    if not inside:
        raise LiftError(f"no linear layers for LoRA in layers {', '.join(map(str, numbers))}")
    part: dict[str, Any] = {"layers": inside, "left": left}
    pattern = (lists or "").rpartition(".")[2]
    # PEFT takes no layers beside a regular expression, and not all lists by their name.
    named = transformed(hits(every.names, names), list(numbers), pattern)
    if isinstance(every.names, list) and named == set(inside):
        return replace(every, **part, numbers=list(numbers), pattern=pattern)
    return replace(every, **part, names=target_modules(inside, names))


def _place(model: nn.Module, layer: nn.Module) -> tuple[torch.device, torch.dtype]:
    """The device and dtype of a layer's product."""
    if isinstance(layer, Fp8Linear):
        return layer.codes.device, layer.dtype
    weight = weight_of(layer)
    if quantised_by(layer):
        return weight.device, causal_lm(model).get_input_embeddings().weight.dtype
    return weight.device, weight.dtype


def _unfit(module: nn.Module) -> str | None:
    if quantised_by(module):
        return None  # it is called as it is
    if isinstance(module, Fp8Linear):
        return unlike(module)
    weight = weight_of(module)
    if not weight.is_floating_point() or type(part(weight).data) is not Tensor:
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
    """Raises LiftError when a layer cannot take a sum of its own: it shares its weight, or is
    quantised."""
    if not all(map(is_readable, layers.values())):
        raise LiftError(
            "a quantised model cannot be merged with an adapter; use the adapter itself"
        )
    if shared := shared_weights(model, layers):
        raise LiftError(
            f"{type(model).__name__} cannot be merged with an adapter: {shared[0]} shares its "
            "weight with another layer; use the adapter itself"
        )


def shared_weights(model: nn.Module, layers: dict[str, nn.Module]) -> list[str]:
    """The paths of those of the layers whose weight stands elsewhere in the model too."""
    uses = Counter(id(p) for _, p in model.named_parameters(remove_duplicate=False))
    return [path for path, layer in layers.items() if uses[id(layer.weight)] > 1]


def unreachable(model: nn.Module, paths: Sequence[str]) -> dict[str, str]:
    """Module path -> why PEFT would not put an adapter's weights there, of those of `paths`."""
    kind = getattr(getattr(model, "config", None), "model_type", None)
    experts, mamba = _expert_names(kind), MAMBA_REFUSED if kind in MAMBA else ()
    why = dict.fromkeys(_renamed(model, kind, paths), "PEFT renames them when it loads an adapter")
    for path in paths:
        if _last(path) in experts:
            why[path] = "PEFT takes these names for routed experts"
        elif _last(path) in mamba:
            why[path] = "PEFT refuses these names in Mamba models"
    return why


def target_modules(paths: Collection[str], names: Iterable[str]) -> list[str] | str:
    """The target_modules by which PEFT puts LoRA on the modules at `paths` and on no other.

    `names` are the paths of all of the model's modules. Each layer goes by the end of its path
    that no other module shares, mostly its last name; a regular expression serves where even a
    whole path is the end of another. Raises LiftError when neither names them.
    """
    names, chosen = list(names), set(paths)
    others = {end for name in names if name not in chosen for end in _ends(name)}
    ends = {path: next((e for e in _ends(path) if e not in others), None) for path in paths}
    patterns: list[str] | str = sorted({end for end in ends.values() if end})
    if not all(ends.values()):
        patterns = "|".join(re.escape(path) for path in sorted(paths))
    if hits(patterns, names) != chosen:
        raise LiftError("the model's linear layers cannot be named so that PEFT finds them")
    return patterns


def hits(patterns: Iterable[str] | str, names: Iterable[str]) -> set[str]:
    """The modules among `names` that PEFT adapts by these target_modules."""
    if isinstance(patterns, str):
        return {name for name in names if re.fullmatch(patterns, name)}
    wanted = set(patterns)
    return {name for name in names if not wanted.isdisjoint(_ends(name))}


def _ends(path: str) -> list[str]:
    """ "a.b.c" -> ["c", "b.c", "a.b.c"]."""
    parts = path.split(".")
    return [".".join(parts[i:]) for i in range(len(parts) - 1, -1, -1)]


def _last(path: str) -> str:
    return path.rpartition(".")[2]


def _expert_names(kind: str | None) -> tuple[str, ...]:
    try:
        from transformers.conversion_mapping import _MODEL_TO_CONVERSION_PATTERN as patterns
    except ImportError:  # transformers 4 has no such table, and PEFT then converts nothing
        return ()
    layout = "mixtral" if kind == "mixtral" else patterns.get(kind)
    return EXPERTS.get(layout or "", ())


def _renamed(model: nn.Module, kind: str | None, paths: Sequence[str]) -> list[str]:
    """The paths that PEFT changes in the names of weights, as transformers does when it reads a
    checkpoint of an older layout."""
    try:
        from transformers import conversion_mapping
        from transformers.core_model_loading import WeightRenaming, rename_source_key
    except ImportError:
        return []
    if kind is None or conversion_mapping.get_checkpoint_conversion_mapping(kind) is None:
        return []
    try:
        rules = conversion_mapping.get_model_conversion_mapping(cast(Any, model))
        renamings = [
            WeightRenaming("base_model.model.model.", "model."),
            WeightRenaming("base_model.model.", ""),
            WeightRenaming(r"(lora_[^\.]*)", r"\1.default"),
            *(rule for rule in rules if isinstance(rule, WeightRenaming)),
        ]
        changed = []
        for path in sorted(paths):
            key = f"base_model.model.{path}.lora_A.weight"
            new, _ = rename_source_key(key, renamings, [])
            # PEFT takes a name back that has only lost its beginning.
            if not key.endswith("".join(new.rsplit(".default", 1))):
                changed.append(path)
        return changed
    except Exception as error:  # these functions are transformers' own, and may change
        warnings.warn(
            f"whether PEFT renames the layers of {type(model).__name__} is not known: {error}",
            stacklevel=2,
        )
        return []
