"""One epoch: the steps that are planned when it begins, in turns with those of what arrives."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence

from liftcore.objectives.sample import Sample
from liftcore.training.step import tokens_of, weight_of


class Epoch:
    """Gives the samples of its steps one after the other.

    known     samples that each objective had when it began
    planned   the samples of each step that is planned
    target    tokens that a step has room for
    """

    def __init__(
        self, number: int, known: list[int], planned: Sequence[list[Sample]], target: int
    ) -> None:
        self.number, self.known, self.target = number, known, target
        self.drawn = 0  # steps so far
        self.arrivals: list[tuple[int, int, int]] = []  # since then: steps drawn, objective, count
        self.arrived: deque[Sample] = deque()
        self.planned = deque(planned)
        self.waiting = sum(map(tokens_of, planned))  # tokens of what is planned or has arrived
        self.normaliser = sum(map(weight_of, planned)) / max(1, len(planned))
        self._turn = True  # whether a step of arrivals comes next, where there is one

    @property
    def empty(self) -> bool:
        return not (self.planned or self.arrived)

    def arrive(self, objective: int, count: int, samples: Sequence[Sample]) -> None:
        """Takes `count` new samples of an objective, of which `samples` are trained on."""
        self.arrivals.append((self.drawn, objective, count))
        self.arrived += samples
        self.waiting += tokens_of(samples)

    def next(self, waits: Callable[[], bool]) -> list[Sample] | None:
        """The samples of the next step; [] at the end, None when the epoch waits for more, which
        `waits` tells."""
        samples: list[Sample] = []
        if self.arrived and (self._turn or not self.planned):
            samples = self._first_arrived(waits)
        self._turn = not samples
        if not samples and self.planned:
            samples = self.planned.popleft()
        if not samples:
            return None if waits() else []
        self.drawn += 1
        self.waiting -= tokens_of(samples)
        if not self.normaliser:
            self.normaliser = weight_of(samples)
        return samples

    def _first_arrived(self, waits: Callable[[], bool]) -> list[Sample]:
        """Arrivals that fill a step; at the end of an epoch also fewer."""
        count = longest = 0
        for sample in self.arrived:
            longest = max(longest, len(sample))
            if count and (count + 1) * longest > self.target:
                break
            count += 1
        full = count < len(self.arrived) or (count + 1) * longest > self.target
        if not full and (self.planned or waits()):
            return []
        return [self.arrived.popleft() for _ in range(count)]
