"""The sentences of a document, the windows of text that questions are made from, and the passages
that they are about."""

from __future__ import annotations

import re
from bisect import bisect_left
from collections import defaultdict
from dataclasses import dataclass

from liftcore.questions.words import words

BEFORE = 2048  # characters of the document before a sentence
LONGEST = 1000  # characters; longer sentences, such as tables, are cut between words

# Every pattern here is linear: a run is looked at from its first character alone.
# A stop, what closes around it, then space and what may open a sentence; or a stop in CJK text.
_STOP = re.compile(
    r"""(?<![.!?…])[.!?…]+["'”’»)\]]*(?=\s+["'“‘«(\[]*[^\W_a-zà-öø-ÿ])|[。！？]+["'”’」』）]*|\n\s*\n"""
)
# No sentence ends with these, nor with an initial ...
_INNER = re.compile(
    r"(?:\b(?:Mr|Mrs|Ms|Dr|Prof|St|Rev|Gen|Col|Capt|Lt|Sgt|Hon|Mt|vs|cf|e\.g|i\.e)|\b[A-Z])\.$"
)
# ... and with these only where no number follows.
_COUNTING = re.compile(
    r"\b(?:[Nn]os?|[Vv]ols?|Figs?|Eqs?|Sec|[Cc]h|pp?|ca|approx|Jan|Feb|Mar|Apr|Jun|Jul|Aug|Sept?"
    r"|Oct|Nov|Dec)\.$"
)


@dataclass(frozen=True)
class Window:
    """Sentences of a document with the text before them.

    text       what a reader is shown: text[-len(sentence):] == sentence
    sentence   what it is asked about
    start, stop   characters of the document that `sentence` stands at
    """

    number: int
    text: str
    sentence: str
    start: int
    stop: int


def sentences(text: str) -> list[tuple[int, int]]:
    """(start, stop) of every sentence, in order; only white space lies between them.

    A blank line ends a sentence, and so do . ! ? … before white space and no small letter, unless
    the dot belongs to an abbreviation or an initial. At most 1,000 characters long.
    """
    spans, start = [], 0
    for match in _STOP.finditer(text):
        stop = match.end()
        if text[match.start()] == "." and _goes_on(text, match.end()):
            continue
        spans += _pieces(text, start, stop)
        start = stop
    spans += _pieces(text, start, len(text))
    return _with_words(text, spans)


def every_sentence(text: str, before: int = BEFORE) -> list[Window]:
    """One window a sentence."""
    return blocks(text, 1, before=before)


def blocks(text: str, count: int, step: int | None = None, before: int = 0) -> list[Window]:
    """Windows of `count` sentences in a row, a new one every `step` (default: count) sentences,
    with up to `before` characters of the text before them, from the start of a sentence where one
    lies in reach.

    The last one holds the last `count` sentences.
    """
    spans, step = sentences(text), step or count
    firsts = list(range(0, max(1, len(spans) - count + 1), step)) if spans else []
    if firsts and firsts[-1] + count < len(spans):
        firsts.append(len(spans) - count)
    return [_window(text, spans, n, i, i + count, before) for n, i in enumerate(firsts)]


def _window(
    text: str, spans: list[tuple[int, int]], number: int, first: int, end: int, before: int
) -> Window:
    start, stop = spans[first][0], spans[min(end, len(spans)) - 1][1]
    reach = max(0, start - before)
    opens = spans[bisect_left(spans, (reach, 0))][0]
    if opens == start and reach < start:
        # The one sentence before is longer than that: its end is better than nothing.
        gap = re.search(r"\s+", text[reach:start])
        opens = reach + gap.end() if gap else start
    return Window(number, text[opens:stop], text[start:stop], start, stop)


def _goes_on(text: str, at: int) -> bool:
    """Whether the dot that ends at `at` belongs to an abbreviation or an initial."""
    word = text[max(0, at - 12) : at]
    number = text[at : at + 20].lstrip()[:1].isdigit()
    return bool(_INNER.search(word) or (number and _COUNTING.search(word)))


def _pieces(text: str, start: int, stop: int) -> list[tuple[int, int]]:
    """(start, stop) without white space at the ends, cut to at most LONGEST characters."""
    pieces = []
    while True:
        while start < stop and text[start].isspace():
            start += 1
        while stop > start and text[stop - 1].isspace():
            stop -= 1
        if stop - start <= LONGEST:
            return [*pieces, (start, stop)] if stop > start else pieces
        space = max(text.rfind(c, start + LONGEST // 2, start + LONGEST) for c in " \n\t")
        end = space if space > 0 else start + LONGEST
        pieces += _pieces(text, start, end)
        start = end


def _with_words(text: str, spans: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Spans without a letter or digit, such as a row of stars, joined to the one before."""
    joined: list[tuple[int, int]] = []
    for start, stop in spans:
        if re.search(r"\w", text[start:stop].replace("_", "")):
            joined.append((start, stop))
        elif joined:
            joined[-1] = (joined[-1][0], stop)
    return joined


class Passages:
    """Overlapping passages of `count` sentences each, a new one every half of that."""

    def __init__(self, text: str, count: int = 16):
        self.texts = [w.text for w in blocks(text, count, max(1, count // 2))] or [text]
        self.holding: dict[str, list[int]] = defaultdict(list)  # word -> numbers of passages
        self.words = [words(passage) for passage in self.texts]
        for number, held in enumerate(self.words):
            for word in set(held):
                self.holding[word].append(number)

    def about(self, text: str, evidence: str = "") -> str:
        """The passage with most of the words of `text`, where a rare word counts for more; one
        that holds the evidence, where there is such a passage."""
        shared: dict[int, float] = defaultdict(float, {0: 0.0})
        asked = words(evidence)
        # The last of several words may be cut off.
        wanted = f" {' '.join(asked)}{'' if len(asked) > 1 else ' '}"
        for number, held in enumerate(self.words if asked else ()):
            # More than all shared words together.
            shared[number] += (wanted in f" {' '.join(held)} ") * (len(text) + 1)
        for word in sorted(set(words(text))):
            holders = self.holding.get(word, ())
            for number in holders:
                shared[number] += 1 / len(holders)
        return self.texts[min(shared, key=lambda number: (-shared[number], number))]
