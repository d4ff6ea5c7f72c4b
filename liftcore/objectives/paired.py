"""Objectives whose samples are made of question-answer pairs."""

from __future__ import annotations

from collections.abc import Sequence

from liftcore.objectives import Objective
from liftcore.objectives.sample import Sample
from liftcore.questions.pairs import Pair, PairSource


class Paired(Objective):
    """The samples of the pairs of one or more sources, as the pairs arrive."""

    def __init__(self, sources: Sequence[PairSource]):
        self.sources = list(sources)
        self.known: list[Sample] = []

    def made_of(self, pairs: Sequence[tuple[PairSource, Pair]]) -> list[Sample]:
        """One sample of each pair; a pair comes with the source that it is from."""
        raise NotImplementedError

    def samples(self, epoch: int) -> list[Sample]:
        self.poll()
        return list(self.known)

    def poll(self) -> list[Sample]:
        new = self.made_of([(source, pair) for source in self.sources for pair in source.poll()])
        self.known += new
        return new

    @property
    def done(self) -> bool:
        return all(source.done for source in self.sources)

    @property
    def expected(self) -> int:
        return sum(source.expected for source in self.sources)

    @property
    def seconds(self) -> float:
        return max((source.seconds for source in self.sources), default=0.0)

    def close(self) -> None:
        for source in self.sources:
            source.close()
