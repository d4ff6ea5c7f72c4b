"""Where the memories go: a local folder, or a URL through fsspec (s3://, gs://, file://, ...)."""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from liftcore import files, output
from liftcore.embedded import cache_folder
from liftcore.errors import LiftError

INDEX, FAILED = "memories.json", "failed.jsonl"
# What is brought of a memory, its description last.
BROUGHT = (*output.ADAPTER, output.DOCUMENT, output.QUESTIONS, output.PICTURE, output.INFO)
AT_ONCE = 16  # files that are read from a URL
# Characters of a name in the cache that are the folder's own.
LONGEST = 60
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
                raise LiftError(f"cannot open {out}: {files.reason(error)}") from error

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

    def bring(self, folder: str = "") -> Path:
        """The folder of a memory on this machine; "" for one that lies in the store's own place.
        One at a URL is copied once into the cache, under a name that tells its description, and
        with that the hash of its weights. Raises LiftError where it is no memory, or cannot be
        had."""
        if self.local is not None:
            return self.local / folder
        within = f"{folder}/" if folder else ""
        info = self.read(f"{within}{output.INFO}")
        if info is None:
            raise LiftError(f"{self.out} holds no memory: there is no {within}{output.INFO}")
        digest = hashlib.sha256(info).hexdigest()[:16]
        name = (folder or self.root).rstrip("/").rpartition("/")[2]
        name = re.sub(r"[^\w.-]", "-", name, flags=re.ASCII)[:LONGEST].lstrip(".")
        place = cache_folder() / "memories" / f"{name}-{digest}"

        def fill(new: Path) -> None:
            names = [f"{within}{name}" for name in BROUGHT[:-1]]
            for name, content in zip(BROUGHT[:-1], self.read_each(names), strict=True):
                if content is not None:
                    (new / name).write_bytes(content)
            (new / output.INFO).write_bytes(info)

        if not (place / output.INFO).is_file():
            try:
                files.new_folder(place, fill)
            except OSError as error:
                why = files.reason(error)
                raise LiftError(f"cannot copy a memory to {place}: {why}") from error
        return place

    def read(self, name: str) -> bytes | None:
        """What a file holds; None where there is none. Raises LiftError where it cannot be read."""
        return self.read_each([name])[0]

    def read_each(self, names: Sequence[str]) -> list[bytes | None]:
        """read() of each file; several at a time from a URL."""
        if len(names) < 2 or self.local is not None:
            return list(map(self._content, names))
        with ThreadPoolExecutor(AT_ONCE) as pool:
            return list(pool.map(self._content, names))

    def _content(self, name: str) -> bytes | None:
        try:
            if self.local is not None:
                return (self.local / name).read_bytes()
            return self.fs.cat_file(f"{self.root}/{name}")
        except FileNotFoundError:
            return None
        except Exception as error:  # each file system has errors of its own
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
