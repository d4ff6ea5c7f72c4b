"""Questions and answers about a document: what a pair is, the user's own, and what is the same."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

from liftcore.errors import LiftError, UsageError, first_line
from liftcore.questions.words import goes_on, has_words, normalised, question_key
from liftcore.reading.encodings import decode
from liftcore.reading.text import read_bytes
from liftcore.tokens import check_text

# What may stand around JSON: white space, and the byte order marks of files put together.
BLANK = " \t\r\n\ufeff"


@dataclass(frozen=True)
class Pair:
    """A question and its answer.

    evidence   words of the document that show the answer, or ""
    window     number of the window of the document that it was made from; -1: the user's
    group      the same for pairs that ask for one fact, of which an epoch takes one; "": a pair
               that every epoch takes
    """

    question: str
    answer: str
    evidence: str = ""
    window: int = -1
    group: str = ""


class PairSource(Protocol):
    """Pairs that arrive over time. All members may be used from any thread.

    poll()     the pairs that are ready since the last call, in the document's order; never waits
               for others to work, though a source may work itself for one batch
    done       nothing more will come
    expected   pairs in all; an estimate until done
    seconds    time that making them took so far
    failures   why windows of the document gave no answer at all -> how often
    rejected   why single pairs were thrown away -> how often
    """

    seconds: float
    failures: Counter[str]
    rejected: Counter[str]

    def poll(self) -> list[Pair]: ...

    @property
    def done(self) -> bool: ...

    @property
    def expected(self) -> int: ...

    def close(self) -> None: ...


class GivenPairs:
    """Pairs that are there from the start, as a source."""

    seconds = 0.0

    def __init__(self, pairs: Iterable[Pair]):
        self._pairs = list(pairs)
        self.digest = hashlib.sha256(repr(self._pairs).encode()).hexdigest()
        self.expected, self.done = len(self._pairs), not self._pairs
        self.failures: Counter[str] = Counter()
        self.rejected: Counter[str] = Counter()

    def poll(self) -> list[Pair]:
        pairs, self._pairs, self.done = self._pairs, [], True
        return pairs

    def close(self) -> None:
        self._pairs, self.done = [], True


class SharedPairs:
    """Readers of one source, each of which is a source itself and gets every pair."""

    def __init__(self, source: PairSource):
        self.source = source
        self.pairs: list[Pair] = []

    def reader(self) -> PairSource:
        reader: Any = _Reader(self)
        return reader


class _Reader:
    def __init__(self, shared: SharedPairs):
        self._shared, self._at = shared, 0

    def poll(self) -> list[Pair]:
        pairs = self._shared.pairs
        pairs += self._shared.source.poll()
        new, self._at = pairs[self._at :], len(pairs)
        return new

    @property
    def done(self) -> bool:
        return self._shared.source.done and self._at == len(self._shared.pairs)

    def __getattr__(self, name: str) -> Any:
        # expected, seconds, failures, close() ... are the source's own.
        return getattr(self._shared.source, name)


class Deduplicator:
    """Knows the questions seen so far; the same ones are those of equal question_key()."""

    def __init__(self):
        self._seen: set[str] = set()

    def fresh(self, pairs: Iterable[Pair]) -> list[Pair]:
        """Those of the pairs that ask something new."""
        new = []
        for pair in pairs:
            key = question_key(pair.question)
            if key not in self._seen:
                self._seen.add(key)
                new.append(pair)
        return new


def stands_in(evidence: str, text: str) -> bool:
    """Whether the words of `evidence` stand in the text, but for case, spacing and quotes. The last
    of several may be cut off."""
    wanted, whole = normalised(evidence).strip("\"' .…"), normalised(text)
    start = whole.find(wanted) if wanted else -1
    while start >= 0:
        stop = start + len(wanted)
        if not goes_on(whole, start) and (" " in wanted or not goes_on(whole, stop)):
            return True
        start = whole.find(wanted, start + 1)
    return False


def read_pairs(path: str | Path) -> list[Pair]:
    """The user's pairs: a text file (see reading.encodings.decode) with one JSON object a line, or
    an array of such objects, keys question and answer, and evidence if wanted; others are ignored.
    A question asked twice counts once.

    Raises UsageError that names the line or the pair, and LiftError for a file without pairs.
    """
    path = Path(path)
    text = decode(read_bytes(path), str(path))
    whole = _whole(text)
    if whole is not None:
        pairs = [as_pair(each, f"{path}, pair {n}") for n, each in enumerate(whole, 1)]
    else:
        # Not splitlines(): JSON strings may hold line separators such as U+2028 as they are.
        lines = enumerate((line.strip(BLANK) for line in text.split("\n")), 1)
        pairs = [_pair(line, f"{path}, line {number}") for number, line in lines if line]
    if not pairs:
        raise LiftError(f"{path} holds no question-answer pairs")
    return Deduplicator().fresh(pairs)


def keep(pairs: Iterable[Pair], file: Path) -> None:
    """Writes pairs as read_pairs() and kept() read them."""
    lines = (json.dumps(asdict(pair), ensure_ascii=False) + "\n" for pair in pairs)
    file.write_text("".join(lines), "utf-8")


def kept(file: Path) -> list[Pair]:
    """The pairs that keep() wrote, windows and groups included. Raises LiftError for a file that
    is damaged."""
    try:
        entries = [json.loads(line) for line in file.read_text("utf-8").split("\n") if line]
        pairs = [Pair(**entry) for entry in entries]
        if not all(isinstance(p.window, int) and isinstance(p.group, str) for p in pairs):
            raise TypeError("another type")
    except (OSError, TypeError, ValueError, RecursionError) as error:
        raise LiftError(f"{file} is damaged: {first_line(error)}") from error
    for number, pair in enumerate(pairs, 1):
        as_pair(asdict(pair), f"{file}, line {number}")
    return pairs


def _whole(text: str) -> list | None:
    """The pairs of a file that is one JSON array; None when it is not."""
    if not text.lstrip(BLANK).startswith("["):
        return None
    with contextlib.suppress(ValueError, RecursionError):
        entries = json.loads(text.strip(BLANK))
        # An array of words is none of pairs: as a line it gets the error of one.
        return entries if any(isinstance(each, (dict, list)) for each in entries) else None
    return None


def _pair(line: str, where: str) -> Pair:
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{where}: not JSON ({error})") from error
    if not isinstance(entry, dict):
        raise UsageError(f"{where}: not a JSON object with question and answer")
    return as_pair(entry, where)


def as_pair(entry: Any, where: str) -> Pair:
    """A Pair of a Pair, a dict or (question, answer). Raises UsageError that begins with `where`
    for anything else, and for a pair without words."""
    if isinstance(entry, Pair):
        return entry
    if isinstance(entry, (tuple, list)) and len(entry) == 2:
        entry = {"question": entry[0], "answer": entry[1]}
    if not isinstance(entry, dict):
        raise UsageError(f"{where}: not a question and an answer: {entry!r}")
    for key in ("question", "answer"):
        if not isinstance(entry.get(key), str) or not entry[key].strip():
            raise UsageError(f"{where}: {key} is missing, empty or not a string")
    if not has_words(entry["question"]):
        raise UsageError(f"{where}: the question has no words")
    evidence = entry.get("evidence") or ""
    if not isinstance(evidence, str):
        raise UsageError(f"{where}: evidence is not a string")
    for text in (entry["question"], entry["answer"], evidence):
        check_text(text, where)
    return Pair(entry["question"].strip(), entry["answer"].strip(), evidence.strip())
