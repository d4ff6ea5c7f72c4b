"""Which of many documents a question is about, if any (BM25)."""

from __future__ import annotations

import math
from collections.abc import Sequence

from liftcore.questions.retrieval import library, words

# From here on a question is taken to be about a document (python -m bench selection).
MATCH = 0.8


class Documents:
    """Whole documents, ranked with the library bm25s (Lucene's BM25).

    A score is measured by what a word is worth that one document alone holds, so that it means the
    same among few documents and among many. Raises LiftError when bm25s is not installed.
    """

    def __init__(self, texts: Sequence[str]):
        bm25s = library()
        self.count, self.bm25 = len(texts), None
        tokens = words(list(texts))
        # bm25s fails on texts without a word.
        if any(len(ids) for ids in tokens.ids):
            self.bm25 = bm25s.BM25()
            self.bm25.index(tokens, show_progress=False)
        self.unit = math.log(1 + (self.count - 0.5) / 1.5)

    def ranked(self, question: str) -> list[tuple[int, float]]:
        """(number, score) of each document, the best first; equal ones in their order."""
        asked = words([question], return_ids=False)[0]
        if self.bm25 is None or not asked:
            return [(number, 0.0) for number in range(self.count)]
        scores = self.bm25.get_scores(asked) / self.unit
        return [(int(i), float(scores[i])) for i in (-scores).argsort(kind="stable")]
