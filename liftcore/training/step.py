"""What one step trains on, and at which rate; the steps of one epoch."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from liftcore.config import LiftConfig
from liftcore.objectives.sample import Sample


@dataclass(frozen=True)
class Step:
    """One update of the adapter."""

    samples: list[Sample]
    number: int  # counted from 0 over the whole run
    epoch: int
    normaliser: float  # of the epoch: what the sum of the losses is divided by
    rate: float  # learning rate
    done: float  # share of the run's token-passes that are over after this step

    @property
    def tokens(self) -> int:
        return tokens_of(self.samples)

    @property
    def weight(self) -> float:
        return weight_of(self.samples)


def tokens_of(samples: Sequence[Sample]) -> int:
    return sum(map(len, samples))


def weight_of(samples: Sequence[Sample]) -> float:
    return float(sum(s.weights.sum(dtype=np.float64) for s in samples))


def weighted(samples: Sequence[Sample], gamma: float, window: int) -> list[Sample]:
    """Those of the samples that are trained on, their weights times γ: they have a target, and at
    most `window` tokens."""
    fitting = [s for s in samples if len(s) <= window and s.weights.any()]
    if gamma == 1:
        return fitting
    return [replace(s, weights=s.weights * np.float32(gamma)) for s in fitting]


def pack(samples: Sequence[Sample], target: int, rng: np.random.Generator) -> list[list[Sample]]:
    """Steps of at most `target` tokens, padded to the longest of each, in random order.

    Samples of like length share a step; a longer one than `target` has a step of its own.
    """
    shuffled = rng.permutation(len(samples))
    lengths = np.array([len(s) for s in samples], dtype=np.int64)
    by_length = shuffled[np.argsort(-lengths[shuffled], kind="stable")]
    steps, begin = [], 0
    while begin < len(by_length):
        fitting = max(1, target // int(lengths[by_length[begin]]))
        steps.append([samples[i] for i in by_length[begin : begin + fitting]])
        begin += fitting
    return [steps[i] for i in rng.permutation(len(steps))]


def target_of(config: LiftConfig, prefix: int) -> int:
    """Tokens that a step has room for: the settings' plus a prefix for each full segment."""
    return config.target_tokens + config.target_tokens // config.segment_length * prefix


def learning_rate(config: LiftConfig, before: float, after: float) -> float:
    """The rate of a step that begins when the share `before` of the run's token-passes is done,
    and ends at `after`: linear warm-up, then constant, or a half cosine down to 0."""
    if before < config.warmup:
        return config.learning_rate * min(1.0, after / config.warmup)
    if config.lr_schedule == "constant":
        return config.learning_rate
    done = (before - config.warmup) / (1 - config.warmup)
    return config.learning_rate * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))


def counts_of(known: Sequence[int], arrivals: Sequence[Sequence[int]]) -> list[int]:
    """Samples of each objective, with those that arrived."""
    counts = list(known)
    for _, i, count in arrivals:
        counts[i] += count
    return counts


class Epoch:
    """Gives the samples of its steps one after the other: those that are planned when it begins, in
    turns with those of what arrives.

    every     the samples of each objective that are known when it begins
    planned   the samples of each step that is planned
    target    tokens that a step has room for

    known     how many samples of each objective there were
    tokens    theirs, those of arrivals included
    """

    def __init__(
        self,
        number: int,
        every: Sequence[Sequence[Sample]],
        planned: Sequence[list[Sample]],
        target: int,
    ) -> None:
        self.number, self.target = number, target
        self.known, self.tokens = list(map(len, every)), list(map(tokens_of, every))
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

    def arrive(self, objective: int, new: Sequence[Sample], trained_on: Sequence[Sample]) -> None:
        """Takes the new samples of an objective, and those of them that are trained on."""
        self.arrivals.append((self.drawn, objective, len(new)))
        self.tokens[objective] += tokens_of(new)
        self.arrived += trained_on
        self.waiting += tokens_of(trained_on)

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
