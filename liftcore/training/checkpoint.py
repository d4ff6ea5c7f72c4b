"""The state of an unfinished run in one file, written atomically."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from liftcore import files
from liftcore.config import LiftConfig
from liftcore.errors import LiftError
from liftcore.layers.base import samples

# Of the file: what is in it, and what it means.
FORMAT = "2"


@dataclass
class Position:
    """Where a run stands. All randomness derives from (seed, epoch), so this is the whole
    random state too."""

    step: int = 0  # steps done
    seconds: float = 0.0
    # How its steps are cut (MemoryPlan), on so many ranks: another cut would round otherwise.
    micro_batch: int | None = None
    recompute: int = 0
    ranks: int = 1
    starting: float = 0.0  # seconds before the first step


def try_saving(path: Path, size: int) -> None:
    """Raises LiftError when a state of `size` bytes cannot be written to `path`."""
    try:
        if path.is_dir():
            raise IsADirectoryError("a folder has this name")
        files.try_writing(path.parent)
    except OSError as error:
        raise LiftError(f"cannot write {path}: {files.reason(error)}") from error
    files.check_room(path.parent, size)


def save(path: Path, state: dict[str, Tensor], position: Position, run: dict[str, str]) -> None:
    """Writes the optimizer's state, the position and what identifies the run."""
    meta = {
        "format": FORMAT,
        "position": json.dumps(dataclasses.asdict(position)),
        "run": json.dumps(run),
    }
    tensors = {k: v.detach().cpu().contiguous() for k, v in state.items()}
    files.write_atomically(path, lambda file: save_file(tensors, file, metadata=meta))


def read(path: Path, run: dict[str, str]) -> tuple[dict[str, Tensor], Position]:
    """(state, position) of a saved run.

    Raises LiftError when the file is damaged, or belongs to another document, model or settings,
    of which it names those that differ.
    """
    try:
        with safe_open(path, "pt") as file:
            meta = file.metadata()
            if meta.get("format", "1") != FORMAT:
                raise LiftError(
                    f"{path} was written by another version of liftcore; --force starts anew"
                )
            saved, position = json.loads(meta["run"]), _position(json.loads(meta["position"]))
            state = {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118
        for key, value in run.items():
            if saved.get(key) != value:
                differing = _differing(saved[key], value) if key == "settings" else f"another {key}"
                raise LiftError(
                    f"{path} belongs to a run with {differing}; resume with the same, "
                    "or --force starts anew"
                )
    except OSError as error:
        raise LiftError(f"cannot read {path}: {files.reason(error)}") from error
    except (SafetensorError, LookupError, TypeError, ValueError, AttributeError) as error:
        raise damaged(path) from error
    return state, position


def whole(
    runner: dict[str, Tensor],
    losses: Tensor,
    epochs: list[int],
    tokens: list[int],
    source: dict[str, np.ndarray],
) -> dict[str, Tensor]:
    """A run's state: its runner's, the loss, epoch and tokens of each step taken, its source's."""
    log = torch.tensor([epochs, tokens], dtype=torch.int64)
    drawn = {name: torch.from_numpy(value) for name, value in source.items()}
    return {**runner, "losses": losses, "log": log, **drawn}


def source_of(state: dict[str, Tensor]) -> dict[str, np.ndarray]:
    """What whole() was given of the source."""
    return {k: v.numpy() for k, v in state.items() if k.startswith("source_")}


def check_log(state: dict[str, Tensor], at: Position) -> None:
    """Raises ValueError when a saved state is not of as many steps as its position says."""
    if state["log"].shape != (2, at.step) or len(state["losses"]) != at.step:
        raise ValueError("the saved state belongs to another number of steps")


def compare(state: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """Raises ValueError when a saved state has other tensors than those of the steps to go on
    with; their sizes may differ, and whoever takes them checks these."""
    kinds = [{k: (t.dtype, t.ndim) for k, t in each.items()} for each in (state, expected)]
    if kinds[0] != kinds[1]:
        raise ValueError("the saved state holds other tensors")


def damaged(path: Path) -> LiftError:
    return LiftError(f"{path} is damaged; --force starts anew")


def _position(values: dict) -> Position:
    """A position whose numbers can be one. Raises TypeError or ValueError for others."""
    at = Position(**values)
    if not (
        type(at.step) is int
        and at.step >= 0
        and all(isinstance(s, (int, float)) for s in (at.seconds, at.starting))
        and all(0 <= s < float("inf") for s in (at.seconds, at.starting))
        and (at.micro_batch is None or (type(at.micro_batch) is int and at.micro_batch >= 1))
        and type(at.recompute) is int
        and at.recompute >= 0
        and type(at.ranks) is int
        and at.ranks >= 1
    ):
        raise ValueError(f"no position: {values}")
    return at


def _differing(saved: str, now: str) -> str:
    """The settings of two runs that are not the same, by name."""
    before, after = json.loads(saved), json.loads(now)
    names = [k for k in sorted({*before, *after}) if before.get(k) != after.get(k)]
    both = (f"{k} was {json.dumps(before.get(k))}, now {json.dumps(after.get(k))}" for k in names)
    return f"another settings: {', '.join(both)}"


def identity(config: LiftConfig, document_sha256: str, model: torch.nn.Module) -> dict[str, str]:
    """What must be the same for a run to go on."""
    parameter = next(model.parameters())
    # A sample of every weight tells one model from another of the same shape.
    sample = torch.stack([sample.double().sum().cpu() for _, _, sample in samples(model)])
    return {
        "document": document_sha256,
        "settings": json.dumps(dataclasses.asdict(config), sort_keys=True),
        "model": f"{type(model).__name__} {sum(p.numel() for p in model.parameters())}",
        "weights": hashlib.sha256(sample.numpy().tobytes()).hexdigest(),
        "dtype": str(parameter.dtype),
        "layout": _layout(getattr(model, "_liftcore_adapter", None)),
    }


def _layout(adapter: Any) -> str:
    """The order of the layers in the flat buffers of an adapter."""
    groups = [] if adapter is None else [group.members for group in adapter.groups]
    return hashlib.sha256(json.dumps(groups).encode()).hexdigest()
