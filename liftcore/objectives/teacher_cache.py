"""A teacher's targets on disk, by the hash of what it read, so that a resumed run has them."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from liftcore.errors import LiftError
from liftcore.files import write_atomically
from liftcore.objectives.sample import SoftTargets


class TeacherCache:
    """Targets in one folder, in safetensors files of a batch each: <key>.ids int32 [m, k] and
    <key>.probs float16 [m, k].

    `teacher` says whose they are and how many a token has: another's count as missing, and so does
    a damaged file. What cannot be written is not kept, and `problem` says why. Raises LiftError
    when the folder cannot be made.
    """

    def __init__(self, folder: str | Path, teacher: str):
        self.folder, self.teacher, self.problem = Path(folder), teacher, ""
        self.files: dict[str, Path] = {}
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise LiftError(f"cannot make the folder {folder}: {error.strerror}") from error
        for file in sorted(self.folder.glob("*.safetensors")):
            with contextlib.suppress(SafetensorError, OSError), safe_open(file, "pt") as kept:
                names = [n.removesuffix(".ids") for n in kept.keys() if n.endswith(".ids")]  # noqa: SIM118
                self.files |= dict.fromkeys(names, file)

    def get(self, ids: np.ndarray, first: int) -> SoftTargets | None:
        """The targets of the tokens ids[first:], or None."""
        key = self._key(ids, first)
        if key not in self.files:
            return None
        try:
            with safe_open(self.files[key], "pt") as kept:
                found = [kept.get_tensor(f"{key}.{name}").numpy() for name in ("ids", "probs")]
        except (SafetensorError, OSError):
            return None
        fits = found[0].shape == found[1].shape and len(found[0]) == len(ids) - first
        return SoftTargets(*found) if fits else None

    def put(self, entries: Iterable[tuple[np.ndarray, int, SoftTargets]]) -> None:
        """Keeps targets, each with the tokens that the teacher read and the first it speaks of."""
        tensors, keys = {}, []
        for ids, first, targets in entries:
            keys.append(self._key(ids, first))
            tensors[f"{keys[-1]}.ids"] = torch.from_numpy(targets.ids)
            tensors[f"{keys[-1]}.probs"] = torch.from_numpy(targets.probs)
        name = hashlib.sha256("".join(keys).encode()).hexdigest()[:32]
        file = self.folder / f"{name}.safetensors"
        try:
            write_atomically(file, lambda temporary: save_file(tensors, temporary))
        except LiftError as error:
            self.problem = str(error)
        else:
            self.files |= dict.fromkeys(keys, file)

    def _key(self, ids: np.ndarray, first: int) -> str:
        digest = hashlib.sha256(f"{self.teacher} {first} ".encode())
        digest.update(np.ascontiguousarray(ids, dtype=np.int32).tobytes())
        return digest.hexdigest()


def fingerprint(model: nn.Module) -> str:
    """A hash that tells one model from another: its kind, dtype and a sample of every weight."""
    digest = hashlib.sha256(f"{type(model).__name__} {next(model.parameters()).dtype}".encode())
    for name, p in model.named_parameters():
        sample = p.detach().flatten()[:64].float().cpu().numpy().tobytes()
        digest.update(f"{name} {tuple(p.shape)}".encode() + sample)
    return digest.hexdigest()
