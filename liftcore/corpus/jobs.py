"""Which documents there are, and what of each decides whether its memory is made already."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from liftcore import adapter as adapters
from liftcore import document as documents
from liftcore.config import LiftConfig
from liftcore.errors import LiftError, UsageError
from liftcore.files import reason
from liftcore.reading import SUFFIXES

# What of a plan changes no memory but by rounding.
_HOW = ("device", "together")
# Characters of a folder's name: of the title, and of the hash.
TITLE, HASH = 40, 12


@dataclass(frozen=True)
class Plan:
    """What is the same for every document: the model, the settings, where questions come from.

    server     (url, model, requests at once) of an OpenAI-compatible server that makes them
    together   how many documents share a step; None: as many as pays (many.worth_together)
    """

    model: str
    config: LiftConfig | None = None
    device: str | None = None
    dtype: str | None = None  # a name of torch
    init: str | None = None
    server: tuple[str, str, int] | None = None
    self_made: bool = False
    with_document: bool = True
    together: int | None = None

    def digest(self) -> str:
        """What tells its memories from those of other settings."""
        kept = {k: v for k, v in dataclasses.asdict(self).items() if k not in _HOW}
        if (folder := Path(self.model)).is_dir():
            kept["model"] = str(folder.resolve())
        if self.server is not None:
            kept["server"] = self.server[:2]
        if self.init is not None:
            kept["init"] = adapters.file_sha256(Path(self.init) / adapters.WEIGHTS)
        return hashlib.sha256(json.dumps(kept, sort_keys=True, default=str).encode()).hexdigest()


@dataclass(frozen=True)
class Job:
    """One document to be made a memory of.

    folder      the name of the memory's folder, which says what it is made of
    contents    the bytes of the files by name, where a worker may not see them
    tried       how often its worker has ended in the middle of it
    """

    path: str
    title: str
    questions: str | None
    folder: str
    size: int  # bytes
    contents: dict[str, bytes] | None = None
    tried: int = 0


def entries_of(corpus: Path) -> list[tuple[Path, str | None, Path | None]]:
    """(file, title or None, questions or None) of each document of a folder and those below it,
    with questions in a .jsonl of the same name; or of a .jsonl with a path a line, and where
    wanted title and questions, both paths relative to its own. Raises LiftError for none."""
    if corpus.is_dir():
        files = sorted(f for f in corpus.rglob("*") if not _hidden(f, corpus) and f.is_file())
        texts = [f for f in files if f.suffix.lower() in SUFFIXES]
        beside = {f.with_suffix("") for f in files if f.suffix.lower() == ".jsonl"}
        found = [
            (f, None, f.with_suffix(".jsonl") if f.with_suffix("") in beside else None)
            for f in texts
        ]
    else:
        found = _listed(corpus)
    if not found:
        raise LiftError(f"{corpus} holds no documents: {', '.join(SUFFIXES)}")
    return found


def _hidden(file: Path, corpus: Path) -> bool:
    return any(part.startswith(".") for part in file.relative_to(corpus).parts)


def _listed(corpus: Path) -> list[tuple[Path, str | None, Path | None]]:
    try:
        lines = corpus.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise LiftError(f"cannot read {corpus}: {reason(error)}") from error
    found = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            entry: Any = json.loads(line)
        except ValueError:
            entry = None
        values = [entry.get(k) for k in ("path", "title", "questions")] if entry else [None]
        if not isinstance(values[0], str) or not all(isinstance(v, str | None) for v in values):
            raise UsageError(
                f"{corpus}, line {number}: no JSON object with a path, and perhaps a title and a "
                "file of questions"
            )
        path, title, questions = values
        asked = corpus.parent / questions if questions else None
        found.append((corpus.parent / path, title, asked))
    return found


def job_of(file: Path, title: str | None, questions: Path | None, digest: str) -> Job:
    """The job of a document; digest: of the plan. Raises OSError for a file that is not there."""
    title = title or documents.title_of(file)
    content = file.read_bytes()
    key = hashlib.sha256(f"{digest} {title} ".encode())
    key.update(hashlib.sha256(content).digest())
    key.update(questions.read_bytes() if questions is not None else b"")
    name = re.sub(r"[^\w-]+", "-", title, flags=re.ASCII).strip("-_").lower()[:TITLE] or "document"
    folder = f"{name}-{key.hexdigest()[:HASH]}"
    asked = None if questions is None else str(questions)
    return Job(str(file), title, asked, folder, len(content))
