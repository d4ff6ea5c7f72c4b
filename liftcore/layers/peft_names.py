"""How PEFT finds an adapter's layers in a model: by names, by its rules, without PEFT.

An adapter is only worth what PEFT makes of its adapter_config.json. So the layers are chosen,
and named, such that PEFT puts LoRA on exactly them: source, PEFT 0.21 (tuners/tuners_utils.py,
utils/transformers_weight_conversion.py).
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Collection, Iterable, Sequence

from torch import nn

from liftcore.errors import LiftError

# With transformers 5 PEFT takes these names for the routed experts of an older layout, wherever
# they stand, and puts no LoRA on a linear layer of such a name.
EXPERTS = {
    "mixtral": ("gate", "w1", "w2", "w3"),
    "qwen2_moe": ("gate", "gate_proj", "up_proj", "down_proj"),
}
# PEFT refuses these names in these models.
MAMBA = ("falcon_h1", "mamba", "mamba2", "falcon_mamba", "nemotron_h")
MAMBA_REFUSED = ("out_proj", "conv1d")


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
    if all(ends.values()):
        targets = sorted(set(ends.values()))
    else:
        targets = "|".join(re.escape(path) for path in sorted(paths))
    if hits(targets, names) != chosen:
        raise LiftError("the model's linear layers cannot be named so that PEFT finds them")
    return targets


def hits(targets: list[str] | str, names: Iterable[str]) -> set[str]:
    """The modules among `names` that PEFT adapts by these target_modules."""
    if isinstance(targets, str):
        return {name for name in names if re.fullmatch(targets, name)}
    wanted = set(targets)
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
    return EXPERTS.get(layout, ())


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
        rules = conversion_mapping.get_model_conversion_mapping(model)
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
