"""One source of question-answer pairs for several objectives."""

from __future__ import annotations

from liftcore.questions.pairs import Pair, PairSource


class SharedPairs:
    """Readers of one source, each of which is a source itself and gets every pair."""

    def __init__(self, source: PairSource):
        self.source = source
        self.pairs: list[Pair] = []

    def reader(self) -> Reader:
        return Reader(self)


class Reader:
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

    def __getattr__(self, name: str):
        # expected, seconds, failures, close(), window_text() ... are the source's own.
        return getattr(self._shared.source, name)
