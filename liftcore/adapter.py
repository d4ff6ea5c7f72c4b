"""Adapters on disk, in PEFT's own form; and one user of a model at a time."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import re
import threading
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from liftcore import files
from liftcore.errors import LiftError
from liftcore.layers.depth import decoder_layers, list_path, number_of, transformed
from liftcore.layers.linear import features
from liftcore.layers.lora import Adapter
from liftcore.layers.targets import EXCLUDED, Targets, hits, targets
from liftcore.model import causal_lm
from liftcore.output import ADAPTER

CONFIG, WEIGHTS = ADAPTER
# What adapter_config.json may say without changing what an adapter computes.
HARMLESS = {
    "r",
    "lora_alpha",  # these two are read
    "base_model_name_or_path",  # compared by who reads
    "auto_mapping",
    "eva_config",
    "inference_mode",
    "loftq_config",
    "lora_dropout",  # for PEFT's own training
    "megatron_core",
    "peft_version",
    "qalora_group_size",
    "revision",
    "runtime_config",
    "task_type",
}
# How A and B began; the other ways of PEFT change the base model's weights too.
INITS = (True, False, None, "gaussian", "eva", "orthogonal")
# The values that vLLM takes for --max-lora-rank.
VLLM_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
# Beside the models: one that held its lock could be neither copied nor pickled.
_locks: WeakKeyDictionary[nn.Module, threading.RLock] = WeakKeyDictionary()
_guard = threading.Lock()


def alone_with(model: nn.Module) -> threading.RLock:
    """The model's lock, for a `with`: each memory puts its own adapter into the model that
    they share. Other threads wait, the same one may take it again."""
    with _guard:
        return _locks.setdefault(model, threading.RLock())


def write(adapter: Adapter, folder: Path) -> str:
    """Writes adapter_config.json and adapter_model.safetensors; returns the latter's sha256."""
    tensors = {}
    for path, layer in adapter.layers.items():
        tensors[f"base_model.model.{path}.lora_A.weight"] = layer.lora_a.detach().cpu().contiguous()
        tensors[f"base_model.model.{path}.lora_B.weight"] = layer.lora_b.detach().cpu().contiguous()
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    # safetensors writes for the owner alone; a server may run as somebody else.
    (folder / CONFIG).touch()
    (folder / WEIGHTS).chmod((folder / CONFIG).stat().st_mode)
    alpha = int(adapter.alpha) if adapter.alpha == int(adapter.alpha) else adapter.alpha
    settings = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_name(adapter.model),
        "r": adapter.rank,
        "lora_alpha": alpha,
        "lora_dropout": 0.0,
        "target_modules": adapter.targets.names,
        "bias": "none",
        "fan_in_fan_out": adapter.targets.fan_in_fan_out,
        "inference_mode": True,
        "init_lora_weights": True,
        "modules_to_save": None,
        "use_dora": False,
        "use_rslora": False,
    }
    if adapter.targets.numbers is not None:
        settings["layers_to_transform"] = adapter.targets.numbers
        settings["layers_pattern"] = [adapter.targets.pattern]
    if missing := [p for p, why in adapter.targets.left.items() if why == EXCLUDED]:
        # PEFT warns of names that are none.
        settings["exclude_modules"] = [n for n in adapter.exclude if hits([n], missing)]
    (folder / CONFIG).write_text(json.dumps(settings, indent=2) + "\n")
    return file_sha256(folder / WEIGHTS)


def read(
    model: nn.Module, folder: Path, sha256: str | None = None, *, train_a: bool = True
) -> Adapter:
    """The adapter of a folder as layers for `model`, not yet installed; train_a is Adapter's.

    Raises LiftError when a file is missing, damaged or changed (against `sha256`), when PEFT
    would compute something else of its settings, or when the adapter does not fit the model.
    """
    settings = read_json(folder / CONFIG)
    try:
        rank, alpha = int(settings["r"]), float(settings["lora_alpha"])
        if rank < 1 or not math.isfinite(alpha):
            raise ValueError(f"r is {rank}, lora_alpha {alpha}")
        tensors = load_file(folder / WEIGHTS)
    except FileNotFoundError as error:
        raise LiftError(f"{folder} has no {WEIGHTS}") from error
    except (KeyError, TypeError, ValueError, OverflowError, SafetensorError, OSError) as error:
        raise LiftError(f"the adapter in {folder} is damaged: {error}") from error
    if sha256 is not None and file_sha256(folder / WEIGHTS) != sha256:
        raise LiftError(f"{folder / WEIGHTS} was changed since it was saved (its hash differs)")
    numbers, exclude = _where(model, settings)
    wanted = targets(model, numbers, exclude)
    if fields := _not_computed(settings, wanted):
        raise LiftError(
            f"the adapter in {folder} cannot be computed as plain LoRA: {CONFIG} says "
            + ", ".join(fields)
        )
    expected = {}
    for path, layer in wanted.layers.items():
        k, n = features(layer)
        expected[f"base_model.model.{path}.lora_A.weight"] = (rank, k)
        expected[f"base_model.model.{path}.lora_B.weight"] = (n, rank)
    if {name: tuple(t.shape) for name, t in tensors.items()} != expected:
        raise LiftError(
            f"the adapter in {folder} was trained on "
            f"{settings.get('base_model_name_or_path')} and does not fit "
            f"{base_name(model)}: its layers or shapes differ"
        )
    adapter = Adapter(model, rank, alpha, numbers=numbers, exclude=exclude, train_a=train_a)
    with torch.no_grad():
        for path, layer in adapter.layers.items():
            layer.lora_a.copy_(tensors[f"base_model.model.{path}.lora_A.weight"])
            layer.lora_b.copy_(tensors[f"base_model.model.{path}.lora_B.weight"])
    return adapter


def left_out(model: nn.Module, folder: str | Path) -> tuple[str, ...]:
    """The exclude_modules of settings that put LoRA where the adapter in `folder` has it."""
    return _where(model, read_json(Path(folder) / CONFIG))[1]


def _where(model: nn.Module, settings: dict) -> tuple[list[int] | None, tuple[str, ...]]:
    """The numbers of the decoder layers that PEFT's settings name, None for all, and the ends of
    the paths of those of their linear layers that they leave out."""
    every, excluded = targets(model), settings.get("exclude_modules")
    try:
        named = _named(settings, every) - hits(excluded or (), every.layers)
    except (TypeError, ValueError, re.error):
        return None, ()  # said by _not_computed
    if not named or named == set(every.layers):
        return None, ()
    lists = list_path(model)
    numbers = {path: number_of(path, lists) for path in every.layers}
    wanted = sorted({n for path in named if (n := numbers[path]) is not None})
    if len(wanted) == len(decoder_layers(model)):
        wanted = []
    inside = {path for path, n in numbers.items() if not wanted or n in wanted}
    if isinstance(excluded, list) and inside - hits(excluded, inside) == named:
        return wanted or None, tuple(excluded)
    ends = {path.rpartition(".")[2] for path in inside - named}
    if not ends.isdisjoint(path.rpartition(".")[2] for path in named):
        ends = inside - named
    return wanted or None, tuple(sorted(ends))


def _named(settings: dict, wanted: Targets) -> set[str]:
    """Those of the layers that PEFT would adapt; raises TypeError, ValueError or re.error for
    settings that are none of PEFT's."""
    value = settings.get("target_modules")
    paths = set(wanted.layers) if value == "all-linear" else hits(value or (), wanted.layers)
    layers, pattern = (settings.get(name) for name in ("layers_to_transform", "layers_pattern"))
    return transformed(paths, layers, pattern)


def _not_computed(settings: dict, wanted: Targets) -> list[str]:
    """The settings under which PEFT computes something else than our layers, as "name = value".

    Each must be one that we know, or at a value that asks for nothing.
    """
    known = {
        "peft_type": ("LORA",),
        "bias": ("none", None),
        "init_lora_weights": INITS,
        "fan_in_fan_out": (wanted.fan_in_fan_out,),
    }
    wrong = []
    # What PEFT then looks up by itself must be said.
    for name, value in {**dict.fromkeys(("peft_type", "target_modules")), **settings}.items():
        if name in known:
            fine = value in known[name]
        elif name == "target_modules":
            # A name too many has no weights to load.
            fine = _hits(settings, wanted) == set(wanted.layers)
        elif name in ("layers_to_transform", "layers_pattern"):
            fine = True  # part of what target_modules comes to
        elif name == "exclude_modules":
            fine = not value or _hits({"target_modules": value}, wanted) == set()
        else:
            fine = name in HARMLESS or value is None or value is False or value in ("", [], {})
        if not fine:
            wrong.append(f"{name} = {json.dumps(value)[:100]}")
    return wrong


def _hits(settings: dict, wanted: Targets) -> set[str] | None:
    """The layers that settings of PEFT name; None when they are none of PEFT's."""
    try:
        return _named(settings, wanted)
    except (TypeError, ValueError, re.error):
        return None


def base_name(model: nn.Module) -> str:
    """The name the base model was loaded by."""
    return str(causal_lm(model).config.name_or_path or type(model).__name__)


def vllm_rank(rank: int) -> int | None:
    """The smallest --max-lora-rank of vLLM that takes this rank; None when none does."""
    return next((r for r in VLLM_RANKS if r >= rank), None)


def file_sha256(file: Path) -> str:
    digest = hashlib.sha256()
    with open(file, "rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def settings_of(folder: str | Path | None) -> dict[str, Any]:
    """The settings that an adapter to begin from brings with it; none without a folder."""
    if folder is None:
        return {}
    settings = read_json(Path(folder) / CONFIG)
    begun = {"rank": settings.get("r"), "alpha": settings.get("lora_alpha"), "layers": None}
    begun |= {"adapter_init": "random", "train_a": True}
    begun["exclude_modules"] = ()  # left_out(), where there is a model
    if layers := settings.get("layers_to_transform"):
        with contextlib.suppress(TypeError):
            layers = sorted({layers} if isinstance(layers, int) else layers)
            begun["layers"] = (layers[0], layers[-1])
    return begun


def read_json(file: Path) -> dict:
    """A JSON object. Raises LiftError when the file is missing or damaged. A save into its folder
    that was killed is finished first."""
    files.repair(file.parent)
    try:
        # As bytes: the byte order mark of some editors is no part of JSON.
        content = json.loads(file.read_bytes())
    except FileNotFoundError as error:
        raise LiftError(
            f"{file.parent} holds no liftcore adapter: {file.name} is missing"
        ) from error
    except OSError as error:
        raise LiftError(f"cannot read {file}: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise LiftError(f"{file} is damaged: {error}") from error
    if not isinstance(content, dict):
        raise LiftError(f"{file} is damaged: not a JSON object")
    return content
