"""What the files of a saved memory say, without its base model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

from liftcore import adapter as adapters
from liftcore import files
from liftcore.errors import LiftError
from liftcore.info import Info, read_info
from liftcore.model import load_config

PREFIX, A, B = "base_model.model.", ".lora_A.weight", ".lora_B.weight"


@dataclass(frozen=True)
class Saved:
    """A folder that Memory.save() wrote.

    layers   module path -> (A [R, K], B [N, R]), as they were saved; not every layer of the model
             need have a pair
    """

    folder: Path
    info: Info
    settings: dict[str, Any]  # adapter_config.json
    layers: dict[str, tuple[Tensor, Tensor]]

    @property
    def rank(self) -> int:
        return next(iter(self.layers.values()))[0].shape[0]

    @property
    def alpha(self) -> float:
        return float(self.settings["lora_alpha"])

    @cached_property
    def model_config(self) -> Any:
        """The text part of the base model's configuration. Raises LiftError where it cannot be
        had."""
        return load_config(self.info.about.base_model).get_text_config()


def read_saved(folder: Path) -> Saved:
    """Raises LiftError when the folder holds no memory, or one that was changed or is damaged."""
    info = read_info(folder)
    settings = adapters.read_json(folder / adapters.CONFIG)
    weights = folder / adapters.WEIGHTS
    try:
        if adapters.file_sha256(weights) != info.about.adapter_sha256:
            raise LiftError(f"{weights} was changed since it was saved (its hash differs)")
        tensors = load_file(weights)
        paths = [n.removeprefix(PREFIX).removesuffix(A) for n in tensors if n.endswith(A)]
        layers = {p: (tensors[PREFIX + p + A], tensors[PREFIX + p + B]) for p in sorted(paths)}
        float(settings["lora_alpha"])
    except OSError as error:
        raise LiftError(f"cannot read {weights}: {files.reason(error)}") from error
    except (LookupError, TypeError, ValueError) as error:
        raise LiftError(f"the adapter in {folder} is damaged: {error}") from error
    if not layers or 2 * len(layers) != len(tensors):
        raise LiftError(f"the adapter in {folder} holds more, or less, than pairs of A and B")
    return Saved(folder, info, settings, layers)


def check_new_file(file: Path, *, force: bool) -> None:
    """Raises LiftError where there is something already, unless force; for a folder always."""
    if file.is_dir() or (file.exists() and not force):
        raise LiftError(f"{file} is there already; --force (force=True) replaces it")


def check_new_files(folder: Path, *, force: bool) -> None:
    """Raises LiftError where a folder is not empty, unless force; for a file always."""
    if folder.exists() and (not folder.is_dir() or (any(folder.iterdir()) and not force)):
        raise LiftError(f"{folder} is not empty; --force (force=True) writes into it")


def new_file(file: Path, write: Callable[[Path], object], *, force: bool) -> None:
    """Writes a file, all of it or nothing; LiftError where there is one, unless force."""
    check_new_file(file, force=force)
    files.write_atomically(file, write)


def new_files(folder: Path, fill: Callable[[Path], object], *, force: bool) -> None:
    """Lets fill(an empty folder) write files, and puts them into `folder`, all of them or none.
    LiftError where it is not empty, unless force; other files stay."""
    check_new_files(folder, force=force)

    def filled(new: Path) -> list[str]:
        fill(new)
        return []

    try:
        files.replace(folder, filled)
    except OSError as error:
        raise LiftError(f"cannot write to {folder}: {files.reason(error)}") from error
