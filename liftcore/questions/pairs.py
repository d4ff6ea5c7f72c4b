"""Questions and answers about a document: what a pair is, the user's own, and what is the same."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from liftcore.document import read_text
from liftcore.errors import LiftError, UsageError
from liftcore.questions.words import goes_on, has_words, normalised, question_key
from liftcore.tokens import check_text

# What may stand around JSON: white space, and the byte order marks of files put together.
BLANK = " \t\r\n\ufeff"


@dataclass(frozen=True)
class Pair:
    """A question and its answer.

    evidence   words of the document that show the answer, or ""
    window     number of the window of the document that it was made from; -1: the user's
    """

    question: str
    answer: str
    evidence: str = ""
    window: int = -1


class PairSource(Protocol):
    """Pairs that arrive over time. All members may be used from any thread.

    poll()     the pairs that are ready since the last call, in the document's order; never waits
               for others to work, though a source may work itself for one batch
    done       nothing more will come
    expected   pairs in all; an estimate until done
    seconds    time that making them took so far
    failed     windows of the document that gave no answer at all
    failures   why they failed -> how often
    rejected   why single pairs were thrown away -> how often
    """

    seconds: float
    failed: int
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

    seconds, failed = 0.0, 0

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


class Deduplicator:
    """Knows the questions seen so far; the same ones are those of equal question_key()."""

    def __init__(self):
        self._seen: set[str] = set()

    def fresh(self, pairs: Iterable[Pair]) -> list[Pair]:
        """Those of the pairs that ask something new."""
        found = []
        for pair in pairs:
            key = question_key(pair.question)
            if key not in self._seen:
                self._seen.add(key)
                found.append(pair)
        return found


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
    """The user's pairs: a text file (see document.decode) with one JSON object a line, or an array
    of such objects, keys question and answer, and evidence if wanted; others are ignored. A
    question asked twice counts once.

    Raises UsageError that names the line or the pair, and LiftError for a file without pairs.
    """
    path = Path(path)
    text = read_text(path)
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


def _whole(text: str) -> list | None:
    """The pairs of a file that is one JSON array; None when it is not."""
    if not text.lstrip(BLANK).startswith("["):
        return None
    with contextlib.suppress(ValueError, RecursionError):
        found = json.loads(text.strip(BLANK))
        # An array of words is none of pairs: as a line it gets the error of one.
        return found if any(isinstance(each, (dict, list)) for each in found) else None
    return None


def _pair(line: str, where: str) -> Pair:
    try:
        found = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{where}: not JSON ({error})") from error
    if not isinstance(found, dict):
        raise UsageError(f"{where}: not a JSON object with question and answer")
    return as_pair(found, where)


def as_pair(found, where: str) -> Pair:
    """A Pair of a Pair, a dict or (question, answer). Raises UsageError that begins with `where`
    for anything else, and for a pair without words."""
    if isinstance(found, Pair):
        return found
    if isinstance(found, (tuple, list)) and len(found) == 2:
        found = {"question": found[0], "answer": found[1]}
    if not isinstance(found, dict):
        raise UsageError(f"{where}: not a question and an answer: {found!r}")
    for key in ("question", "answer"):
        if not isinstance(found.get(key), str) or not found[key].strip():
            raise UsageError(f"{where}: {key} is missing, empty or not a string")
    if not has_words(found["question"]):
        raise UsageError(f"{where}: the question has no words")
    evidence = found.get("evidence") or ""
    if not isinstance(evidence, str):
        raise UsageError(f"{where}: evidence is not a string")
    for text in (found["question"], found["answer"], evidence):
        check_text(text, where)
    return Pair(found["question"].strip(), found["answer"].strip(), evidence.strip())
