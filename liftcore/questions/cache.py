"""Answers of a server on disk, by the hash of what was asked, so that nothing is asked twice."""

from __future__ import annotations

import hashlib
import json
import threading
from pathlib import Path

from liftcore.errors import LiftError
from liftcore.files import write_atomically

VERSION = 1


class QaCache:
    """Answers in one folder, one file each; may be used by threads and processes at once.

    A file that is damaged, or of another question, counts as missing. What cannot be written is
    not kept, and `problem` says why: a full disk must not cost the answer. Raises LiftError when
    the folder cannot be made.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        self.problem = ""
        self._lock = threading.Lock()
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise LiftError(f"cannot make the folder {folder}: {error.strerror}") from error

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
        file = self._file(key)
        content = json.dumps({"key": key, "sum": _sum(answer), "answer": answer}).encode()
        try:
            write_atomically(file, lambda to: to.write_bytes(content))
        except LiftError as error:
            with self._lock:
                self.problem = f"cannot write to {self.folder}: {error.__cause__.strerror}"

    def _file(self, key: str) -> Path:
        # Thousands of files in one folder make some file systems slow.
        return self.folder / key[:2] / f"{key}.json"


def key_of(request: dict) -> str:
    """SHA-256 of the request, whatever the order of its keys."""
    return hashlib.sha256(_canonical({"version": VERSION, **request})).hexdigest()


def _sum(answer: list) -> str:
    return hashlib.sha256(_canonical(answer)).hexdigest()[:16]


def _canonical(value) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()
