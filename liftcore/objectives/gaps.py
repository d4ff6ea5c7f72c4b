"""Questions made from a document's own sentences by rule, without a model and in no time.

What can be asked for are dates, years, numbers and names. The sentence up to it, with a question
word in its place, is the question; what stood there is the answer, so that it is always right:

    ... and the bridge was opened in 1887.    ... and the bridge was opened in which year?  1887
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from liftcore.objectives.pairs import Deduplicator, Pair
from liftcore.objectives.windows import every_sentence

FORMS = ("quiz", "tail", "head", "blank")
# Words before the gap: with fewer there is nothing to ask about.
LEAST = 4
# Words before the gap that a "tail" and a "head" keep.
TAIL, HEAD = 8, 14

_MONTH = "(?:January|February|March|April|May|June|July|August|September|October|November|December)"
_DATE = re.compile(rf"\b\d{{1,2}} {_MONTH} \d{{4}}\b|\b{_MONTH} \d{{1,2}}, \d{{4}}\b")
_YEAR = re.compile(r"\b1\d{3}\b|\b20\d{2}\b")
_NUMBER = re.compile(r"\b\d[\d,.]*\d\b|\b\d\b")
_UNIT = re.compile(r" ([a-z]+)(?!\w)")
# Several capitalised words, or one that does not open a sentence or a quotation.
_NAME = re.compile(r"\b[A-Z][\w’'-]*(?: [A-Z][\w’'-]*)+|(?<=[\w,;:] )[A-Z][\w’'-]+")
_SMALL = {"the", "of", "in", "and", "or", "to", "by", "on", "at", "when", "from", "with"}


@dataclass(frozen=True)
class Gap:
    """Something to ask for in a sentence, and the words that ask for it."""

    start: int
    stop: int
    word: str


def gaps(sentence: str) -> list[Gap]:
    """The dates, years, numbers with their units, and names of a sentence, in order."""
    found: list[Gap] = []

    def add(start: int, stop: int, word: str) -> None:
        if all(stop <= g.start or g.stop <= start for g in found):
            found.append(Gap(start, stop, word))

    for match in _DATE.finditer(sentence):
        add(*match.span(), "which date")
    for match in _YEAR.finditer(sentence):
        unit = _UNIT.match(sentence, match.end())
        if unit is None or unit.group(1) in _SMALL:
            add(*match.span(), "which year")
    for match in _NUMBER.finditer(sentence):
        unit = _UNIT.match(sentence, match.end())
        if unit is not None and unit.group(1) not in _SMALL:
            add(match.start(), unit.end(), f"how many {unit.group(1)}")
        else:
            add(*match.span(), "how many")
    for match in _NAME.finditer(sentence):
        add(*match.span(), "who or what")
    return sorted(found, key=lambda gap: gap.start)


def ask(sentence: str, gap: Gap, form: str) -> str | None:
    """The question of one form; None where the gap has too few words before it.

    quiz    the sentence up to the gap, and the question word
    tail    the last words of that
    head    the question word first, then the words before the gap
    blank   the whole sentence with a blank
    """
    words = sentence[: gap.start].split()
    if form == "blank":
        return f"Fill in the blank: {sentence[: gap.start]}___{sentence[gap.stop :]}"
    if len(words) < LEAST or (form == "tail" and len(words) <= TAIL):
        return None
    if form == "quiz":
        return f"{' '.join(words)} {gap.word}?"
    if form == "tail":
        return f"... {' '.join(words[-TAIL:])} {gap.word}?"
    return f"{gap.word.capitalize()}: {' '.join(words[-HEAD:])} ...?"


def gap_pairs(text: str, forms: Sequence[str] = FORMS) -> list[Pair]:
    """The pairs of all sentences, in the document's order; `forms` are of FORMS."""
    found = []
    for window in every_sentence(text, before=0):
        sentence = " ".join(window.sentence.split())
        for gap in gaps(sentence):
            words = sentence[gap.start : gap.stop]
            for form in forms:
                if question := ask(sentence, gap, form):
                    found.append(Pair(question, words, sentence, window.number))
    return Deduplicator().fresh(found)
