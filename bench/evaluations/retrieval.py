"""BM25 over sentence windows: what a question is most likely about."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable
from types import ModuleType
from typing import Any

from liftcore.errors import LiftError
from liftcore.questions import windows

# Sentences a window, and from the start of one to the next.
WINDOW, STEP = 5, 2
GAP = "\n...\n"


def sentence_ends(text: str) -> list[int]:
    """Offsets just behind the last character of each sentence."""
    return [stop for _, stop in windows.sentences(text)]


def sentences(text: str) -> list[str]:
    """The sentences in order, without the white space between them."""
    return [text[start:stop] for start, stop in windows.sentences(text)]


class SentenceIndex:
    """The windows of a document's sentences, ranked with the library bm25s (Lucene's BM25)."""

    def __init__(self, text: str, window: int = WINDOW, step: int = STEP):
        self.bm25s = library()
        self.text, self.sentences = text, sentences(text)
        self.starts = _starts(text, self.sentences)
        last = max(1, len(self.sentences) - window + step)
        self.windows = [
            range(i, min(i + window, len(self.sentences))) for i in range(0, last, step)
        ]
        self.bm25 = self.bm25s.BM25()
        texts = [" ".join(self.sentences[i] for i in w) for w in self.windows]
        self.bm25.index(self._words(texts), show_progress=False)

    def ranked(self, question: str) -> list[range]:
        """The windows, the best first; equal ones as in the document."""
        words = self._words([question], return_ids=False)[0]
        if not words:
            return list(self.windows)
        scores = self.bm25.get_scores(words)
        return [self.windows[i] for i in (-scores).argsort(kind="stable")]

    def passages(self, question: str, room: int, count: Callable[[str], int]) -> str:
        """As many of the best windows as fit into `room` tokens, in the document's order, with
        "..." where something is left out. `count` gives a text's tokens. Where none fits, the
        beginning of the best."""
        chosen: set[int] = set()
        for window in self.ranked(question):
            more = chosen | set(window)
            if count(self._joined(more)) <= room:
                chosen = more
            elif chosen:
                break
        if not chosen and self.sentences:
            best = self._joined(set(self.ranked(question)[0]))
            length = bisect_right(range(len(best)), room, key=lambda n: count(best[:n])) - 1
            return best[: max(0, length)].rstrip()
        return self._joined(chosen)

    def _joined(self, chosen: set[int]) -> str:
        """The sentences with what stands between neighbours in the document."""
        text, end = "", None
        for i in sorted(chosen):
            start = self.starts[i]
            if i - 1 in chosen:
                text += self.text[end:start]
            elif end is not None:
                text += GAP
            end = start + len(self.sentences[i])
            text += self.text[start:end]
        return text

    def _words(self, texts: list[str], return_ids: bool = True) -> Any:
        return self.bm25s.tokenize(
            texts, stopwords="en", return_ids=return_ids, show_progress=False
        )


def _starts(text: str, in_order: list[str]) -> list[int]:
    """Where each sentence begins in the text."""
    starts, at = [], 0
    for sentence in in_order:
        starts.append(text.index(sentence, at))
        at = starts[-1] + len(sentence)
    return starts


def library() -> ModuleType:
    """The package bm25s. Raises LiftError when it is not installed."""
    try:
        import bm25s
    except ImportError as error:
        raise LiftError("the method rag needs bm25s: pip install 'liftcore[eval]'") from error
    return bm25s
