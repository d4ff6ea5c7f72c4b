"""Where the memories go: a local folder, or a URL through fsspec (s3://, gs://, file://, ...)."""

from __future__ import annotations

import contextlib
import json
import re
from pathlib import Path
from typing import Any

from liftcore import files, output
from liftcore.embedded import cache_folder
from liftcore.errors import LiftError

INDEX, FAILED = "memories.json", "failed.jsonl"
_URL = re.compile(r"[a-z][a-z0-9+.-]+://", re.I)


def is_url(out: str) -> bool:
    """Whether a place is a URL, and no folder."""
    return _URL.match(out) is not None


class Store:
    """A place for memories, each in a folder of its own. Pickled, it opens itself anew.

    local   the folder, None for a URL
    """

    def __init__(self, out: str):
        self.out = out
        self.local = None if is_url(out) else Path(out)
        self.fs: Any = None
        if self.local is None:
            try:
                import fsspec

                self.fs, self.root = fsspec.core.url_to_fs(out)
            except (ImportError, ValueError, OSError) as error:
                raise LiftError(f"cannot write to {out}: {files.reason(error)}") from error

    def __reduce__(self) -> tuple:
        return Store, (self.out,)

    def has(self, folder: str) -> bool:
        """Whether the memory of this folder is whole: its description comes last."""
        if self.local is not None:
            files.repair(self.local / folder)
            return (self.local / folder / output.INFO).is_file()
        return self.fs.exists(f"{self.root}/{folder}/{output.INFO}")

    def workplace(self, folder: str) -> Path:
        """Where the memory is made, and its unfinished run goes on: on this machine."""
        if self.local is not None:
            return self.local / folder
        return cache_folder() / "corpus" / folder

    def take(self, folder: str) -> None:
        """Puts a memory that was made in its workplace to the others."""
        if self.local is not None:
            return
        place = self.workplace(folder)
        names = sorted(files.names_in(place), key=lambda name: name == output.INFO)
        self.fs.makedirs(f"{self.root}/{folder}", exist_ok=True)
        for name in names:
            self.fs.put_file(str(place / name), f"{self.root}/{folder}/{name}")
        for name in names:
            (place / name).unlink()
        with contextlib.suppress(OSError):
            place.rmdir()

    def read(self, name: str) -> bytes | None:
        """What a file holds; None where there is none."""
        try:
            if self.local is not None:
                return (self.local / name).read_bytes()
            return self.fs.cat_file(f"{self.root}/{name}")
        except FileNotFoundError:
            return None
        except OSError as error:
            raise LiftError(f"cannot read {name} in {self.out}: {files.reason(error)}") from error

    def write(self, name: str, content: str) -> None:
        """Writes a text file in one piece. Raises LiftError where it cannot."""
        if self.local is not None:
            files.write_atomically(self.local / name, lambda to: to.write_text(content))
            return
        try:
            self.fs.makedirs(self.root, exist_ok=True)
            self.fs.pipe_file(f"{self.root}/{name}", content.encode())
        except OSError as error:
            raise LiftError(f"cannot write {name} to {self.out}: {files.reason(error)}") from error

    def remove(self, name: str) -> None:
        """Removes a file, if there is one."""
        if self.local is not None:
            (self.local / name).unlink(missing_ok=True)
        elif self.fs.exists(f"{self.root}/{name}"):
            self.fs.rm_file(f"{self.root}/{name}")

    def index(self) -> list[dict]:
        """The entries of the index; [] where there is none. Raises LiftError when it is damaged."""
        content = self.read(INDEX)
        if content is None:
            return []
        try:
            entries = json.loads(content)["memories"]
            kinds = dict.fromkeys(("title", "sha256", "folder", "path"), str)
            if all(isinstance(e[k], kind) for e in entries for k, kind in kinds.items()):
                return entries
        except (ValueError, LookupError, TypeError):
            pass
        raise LiftError(f"{INDEX} in {self.out} is damaged: remove it, and run corpus again")
