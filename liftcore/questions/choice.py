"""Which of many documents a question is about, if any (BM25)."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from zipfile import ZIP_STORED, ZipFile

from liftcore.files import write_atomically
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
        bm25 = None
        tokens = words(list(texts))
        # bm25s fails on texts without a word.
        if any(len(ids) for ids in tokens.ids):
            bm25 = bm25s.BM25()
            bm25.index(tokens, show_progress=False)
        self._set(bm25, len(texts))

    def _set(self, bm25: Any, count: int) -> None:
        self.bm25, self.count = bm25, count
        self.unit = math.log(1 + (count - 0.5) / 1.5)

    def ranked(self, question: str) -> list[tuple[int, float]]:
        """(number, score) of each document, the best first; equal ones in their order."""
        asked = words([question], return_ids=False)[0]
        if self.bm25 is None or not asked:
            return [(number, 0.0) for number in range(self.count)]
        scores = self.bm25.get_scores(asked) / self.unit
        return [(int(i), float(scores[i])) for i in (-scores).argsort(kind="stable")]

    def keep(self, file: Path, key: str) -> None:
        """Writes what kept() reads. Raises LiftError where it cannot; texts without a word are not
        worth a file."""
        if self.bm25 is None:
            return
        with tempfile.TemporaryDirectory() as folder:
            self.bm25.save(folder, show_progress=False)

            def write(to: Path) -> None:
                with ZipFile(to, "w", ZIP_STORED) as archive:
                    archive.comment = key.encode()
                    for part in sorted(Path(folder).iterdir()):
                        archive.write(part, part.name)

            write_atomically(file, write)

    @classmethod
    def kept(cls, file: Path, key: str, count: int) -> Documents | None:
        """The `count` documents that were kept in the file under this key; None without them. The
        file may come from anybody: nothing in it is run, and it is no larger than it looks."""
        bm25s = library()
        try:
            with tempfile.TemporaryDirectory() as folder, ZipFile(file) as archive:
                packed = any(part.compress_type != ZIP_STORED for part in archive.infolist())
                if packed or archive.comment != key.encode():
                    return None
                archive.extractall(folder)
                bm25 = bm25s.BM25.load(folder, show_progress=False)
            if bm25.scores["num_docs"] != count:
                return None
        except Exception:  # whatever is wrong with it, it can be made anew
            return None
        documents = cls.__new__(cls)
        documents._set(bm25, count)
        return documents
