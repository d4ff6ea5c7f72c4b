"""The benchmark LooGLE from its own JSONL: a document a line, with its questions.

Each line has `input` (the document), `title`, `qa_pairs` and `output`. `qa_pairs` is a Python
literal in a string: a list of {"Q", "A", "S", "type"}, or "none" for a paper to be summarised,
whose summary is `output`. It is parsed as a literal and never evaluated.
"""

from __future__ import annotations

import ast
import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from liftcore.errors import LiftError
from liftcore.reading.text import MAX_BYTES

TASKS = ("shortdep_qa", "longdep_qa", "shortdep_cloze", "longdep_summarization")
# The benchmark's own kinds of long-dependency questions.
KINDS = (
    "comprehension_and_reasoning",
    "multiple_information_retrieval",
    "computation",
    "timeline_reorder",
)
# No `qa_pairs` of the benchmark has a twentieth of this.
MAX_LITERAL = 2**20


@dataclass(frozen=True)
class Question:
    """text "" asks for a summary; the answer of a cloze is a dict of the masked entities."""

    text: str
    answer: str | dict[str, str]
    kind: str


@dataclass(frozen=True)
class Item:
    """A document with its questions of one task."""

    task: str
    title: str
    text: str
    questions: tuple[Question, ...]

    @property
    def key(self) -> str:
        """The same for the same document in every task."""
        return f"{self.title} {hashlib.sha256(self.text.encode()).hexdigest()[:8]}"


def find_files(paths: Sequence[Path], tasks: Sequence[str]) -> list[Path]:
    """The files NAME.jsonl of tasks NAME, of folders or given by themselves, in TASKS' order."""
    if not paths:
        raise LiftError("DATA is missing: the benchmark's JSONL files, or their folder")
    files = []
    for path in paths:
        if not path.exists():
            raise LiftError(f"no such file or folder: {path}")
        files += sorted(path.glob("*.jsonl")) if path.is_dir() else [path]
    # A file that stands in a folder may be given by itself, too.
    files = {file.resolve(): file for file in files if file.stem in tasks}
    return sorted(files.values(), key=lambda file: tasks.index(file.stem))


def read(file: Path) -> list[Item]:
    """The documents of a file named after its task. Raises LiftError with file and line, and for
    a document that stands there twice."""
    items = [_item(row, file.stem, where) for where, row in json_lines(file)]
    for key, count in Counter(item.key for item in items).items():
        if count > 1:
            raise LiftError(f"{file}: {count} lines hold the same document, {key!r}")
    return items


def json_lines(file: Path) -> Iterator[tuple[str, dict]]:
    """(FILE:LINE, object) for each line. Raises LiftError for what is not a JSON object."""
    with file.open(encoding="utf-8-sig") as lines:
        for number, line in enumerate(lines, 1):
            where = f"{file}:{number}"
            if len(line) > MAX_BYTES:
                raise LiftError(f"{where}: {len(line):,} characters; at most {MAX_BYTES:,}")
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise LiftError(f"{where}: not JSON ({error})") from error
            if not isinstance(row, dict):
                raise LiftError(f"{where}: not a JSON object")
            yield where, row


def field(row: dict, name: str, kind: type | tuple[type, ...], where: str) -> Any:
    """A field of the wanted type. Raises LiftError."""
    if not isinstance(row.get(name), kind):
        raise LiftError(f"{where}: the field {name!r} is missing or not of the right type")
    return row[name]


def _item(row: dict, task: str, where: str) -> Item:
    text, title = field(row, "input", str, where), field(row, "title", str, where)
    if task == "longdep_summarization":
        questions = (Question("", field(row, "output", str, where), "summarization"),)
    else:
        questions = tuple(_questions(field(row, "qa_pairs", (str, list), where), task, where))
    return Item(task, title, text, questions)


def _questions(pairs: str | list, task: str, where: str) -> Iterator[Question]:
    pairs = literal(pairs, where) if isinstance(pairs, str) else pairs
    if not isinstance(pairs, list) or not all(isinstance(p, dict) for p in pairs):
        raise LiftError(f"{where}: qa_pairs is not a list of dicts")
    for pair in pairs:
        answer = field(pair, "A", dict if task == "shortdep_cloze" else (str, int, float), where)
        if isinstance(answer, dict):
            answer = {str(k): str(v) for k, v in answer.items()}
        kind = field(pair, "type", str, where) if task == "longdep_qa" else task
        yield Question(field(pair, "Q", str, where), _text(answer), kind)


def _text(answer: str | float | dict[str, str]) -> str | dict[str, str]:
    return answer if isinstance(answer, (str, dict)) else str(answer)


def literal(text: str, where: str, limit: int = MAX_LITERAL) -> Any:
    """The value of a Python literal (strings, numbers, lists, dicts, ...), never evaluated.

    Raises LiftError for anything else, and for more than `limit` characters.
    """
    if len(text) > limit:
        raise LiftError(f"{where}: a literal of {len(text):,} characters; at most {limit:,}")
    try:
        return ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError) as error:
        raise LiftError(f"{where}: not a Python literal ({type(error).__name__})") from error
