"""BM25 over windows of sentences: the passages of a document that a question is most likely
about."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from liftcore.errors import LiftError
from liftcore.questions.windows import sentences
from liftcore.reading import Source

# Sentences a window, and from the start of one to the next.
WINDOW, STEP = 5, 2
MOST = 4  # windows that an answer rests on
GAP = "\n...\n"
# Scripts that write no spaces between words.
_UNSPACED = re.compile("[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff]+")


@dataclass(frozen=True)
class Evidence:
    """A passage of a document: text[start:stop] of it, and where that is, for people."""

    text: str
    start: int
    stop: int
    place: str


class SentenceIndex:
    """The windows of a document's sentences, ranked with the library bm25s (Lucene's BM25).

    Raises LiftError when bm25s is not installed.
    """

    def __init__(self, text: str, window: int = WINDOW, step: int = STEP):
        bm25s = library()
        self.text, self.sentences = text, sentences(text)
        last = max(1, len(self.sentences) - window + step)
        self.windows = [
            range(i, min(i + window, len(self.sentences))) for i in range(0, last, step)
        ]
        self.bm25 = None
        tokens = words([self._joined(set(window)) for window in self.windows])
        # bm25s fails on texts without a word.
        if any(len(ids) for ids in tokens.ids):
            self.bm25 = bm25s.BM25()
            self.bm25.index(tokens, show_progress=False)

    def ranked(self, question: str) -> list[range]:
        """The windows, the best first; equal ones as in the document."""
        asked = words([question], return_ids=False)[0]
        if self.bm25 is None or not asked:
            return list(self.windows)
        scores = self.bm25.get_scores(asked)
        return [self.windows[i] for i in (-scores).argsort(kind="stable")]

    def spans(
        self, question: str, room: int, count: Callable[[str], int], most: int | None = None
    ) -> list[tuple[int, int]]:
        """(start, stop) in characters of as many of the best windows as fit into `room` tokens,
        in the document's order; neighbours are one span.

        `count` gives a text's tokens. At most `most` windows. Where none fits, the beginning of
        the best.
        """
        chosen: set[int] = set()
        ranked = self.ranked(question)
        for window in ranked[:most]:
            more = chosen | set(window)
            if count(self._joined(more)) <= room:
                chosen = more
            elif chosen:
                break
        if chosen or not self.sentences:
            return self._spans(chosen)
        ((start, stop), *_) = self._spans(set(ranked[0]))
        best = self.text[start:stop]
        length = bisect_right(range(len(best)), room, key=lambda n: count(best[:n])) - 1
        length = len(best[: max(0, length)].rstrip())
        return [(start, start + length)] if length else []

    def passages(
        self, question: str, room: int, count: Callable[[str], int], most: int | None = None
    ) -> str:
        """The text of spans(), with "..." where something is left out."""
        spans = self.spans(question, room, count, most)
        return GAP.join(self.text[start:stop] for start, stop in spans)

    def evidence(self, question: str, most: int, source: Source | None) -> list[Evidence]:
        """The `most` best windows, in the document's order; `source` knows its pages."""
        spans = self.spans(question, len(self.text), len, most)
        return [Evidence(self.text[a:b], a, b, self._place(a, b, source)) for a, b in spans]

    def _place(self, start: int, stop: int, source: Source | None) -> str:
        """ "page 3, lines 120 to 124 of 900"."""
        first, last = (self.text.count("\n", 0, at) + 1 for at in (start, stop))
        lines = f"line {first}" if first == last else f"lines {first} to {last}"
        of = f"{lines} of {self.text.count(chr(10)) + 1}"
        part = source.place(start, stop) if source is not None else ""
        return f"{part}, {of}" if part else of

    def _joined(self, chosen: set[int]) -> str:
        return GAP.join(self.text[start:stop] for start, stop in self._spans(chosen))

    def _spans(self, chosen: set[int]) -> list[tuple[int, int]]:
        """Sentences, with what stands between neighbours in the document."""
        spans: list[tuple[int, int]] = []
        for i in sorted(chosen):
            start, stop = self.sentences[i]
            if i - 1 in chosen:
                start = spans.pop()[0]
            spans.append((start, stop))
        return spans


def words(texts: list[str], return_ids: bool = True) -> Any:
    """The words of texts, as bm25s wants them."""
    texts = [_UNSPACED.sub(_pairs, text) for text in texts]
    return library().tokenize(texts, stopwords="en", return_ids=return_ids, show_progress=False)


def _pairs(match: re.Match[str]) -> str:
    """A run of letters without spaces as its pairs of neighbours."""
    run = match[0]
    return f" {' '.join(run[i : i + 2] for i in range(max(1, len(run) - 1)))} "


def library() -> ModuleType:
    """The package bm25s. Raises LiftError when it is not installed."""
    try:
        import bm25s
    except ImportError as error:
        raise LiftError("passages need bm25s: pip install 'liftcore[documents]'") from error
    return bm25s
