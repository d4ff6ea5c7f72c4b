"""What was asked or computed once, on disk by the hash of what it depends on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn

from liftcore.errors import LiftError
from liftcore.files import write_atomically
from liftcore.layers.base import samples

VERSION = 1


class Cache:
    """Files in one folder; may be used by threads and processes at once.

    A file that is damaged, or of something else, counts as missing. What cannot be written is
    not kept, and `problem` says why: a full disk must not cost the answer. Raises LiftError when
    the folder cannot be made.
    """

    def __init__(self, folder: str | Path):
        self.folder, self.problem = Path(folder), ""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise LiftError(f"cannot make the folder {folder}: {error.strerror}") from error

    def _write(self, file: Path, write: Callable[[Path], object]) -> bool:
        """Whether the file could be written."""
        try:
            write_atomically(file, write)
        except LiftError as error:
            self.problem = str(error)
            return False
        return True


def fingerprint(model: nn.Module, *, with_dtype: bool = True) -> str:
    """A hash that tells one model from another: its kind, a sample of every weight, and its dtype.
    Without that, a model has the same one in each dtype that holds its weights exactly."""
    dtype = next(model.parameters()).dtype if with_dtype else ""
    digest = hashlib.sha256(f"{type(model).__name__} {dtype}".encode())
    for name, shape, sample in samples(model):
        digest.update(f"{name} {shape}".encode() + sample.float().cpu().numpy().tobytes())
    return digest.hexdigest()


class QaCache(Cache):
    """Answers of a server, one file each, so that nothing is asked twice."""

    def get(self, request: dict) -> list | None:
        """The answer kept for this request, or None."""
        key = key_of(request)
        try:
            kept = json.loads(self._file(key).read_bytes())
        except (OSError, ValueError, RecursionError):
            return None
        if not isinstance(kept, dict) or kept.get("key") != key:
            return None
        answer = kept.get("answer")
        return answer if isinstance(answer, list) and kept.get("sum") == _sum(answer) else None

    def put(self, request: dict, answer: list) -> None:
        """Keeps the answer, a list of what JSON can hold."""
        key = key_of(request)
        content = json.dumps({"key": key, "sum": _sum(answer), "answer": answer}).encode()
        self._write(self._file(key), lambda to: to.write_bytes(content))

    def _file(self, key: str) -> Path:
        # Thousands of files in one folder make some file systems slow.
        return self.folder / key[:2] / f"{key}.json"


def key_of(request: dict) -> str:
    """SHA-256 of the request, whatever the order of its keys."""
    return hashlib.sha256(_canonical({"version": VERSION, **request})).hexdigest()


def _sum(answer: list) -> str:
    return hashlib.sha256(_canonical(answer)).hexdigest()[:16]


def _canonical(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()
