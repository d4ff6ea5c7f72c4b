"""What one step trains on, how samples share steps, and at which rate a step is taken."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

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
