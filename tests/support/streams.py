"""Objectives with a will of their own, for the tests of mixes."""

import numpy as np

from liftcore.objectives import Objective
from liftcore.objectives.sample import Sample


def sample(length, scored, source="a", first=3):
    """A row of `length` tokens whose last `scored` ones are targets; its tokens count up."""
    weights = np.zeros(length, dtype=np.float32)
    weights[length - scored :] = 1
    return Sample((first + np.arange(length) % 150).astype(np.int32), weights, source=source)


class Fixed(Objective):
    """The same samples in every epoch."""

    def __init__(self, samples, name="segments"):
        self.all, self.name = list(samples), name

    def samples(self, epoch):
        return list(self.all)


class Stream(Objective):
    """Gives batches[i] at the i-th poll, None for nothing, and is done behind the last."""

    name = "qa"

    def __init__(self, batches, expected=None, cached=0):
        self.batches, self.known, self.closed = list(batches), [], False
        self.guess = expected
        for _ in range(cached):
            self.poll()

    def poll(self):
        new = (self.batches.pop(0) or []) if self.batches else []
        self.known += new
        return new

    def samples(self, epoch):
        self.poll()
        return list(self.known)

    @property
    def done(self):
        return not self.batches

    @property
    def expected(self):
        return len(self.known) if self.done or self.guess is None else self.guess

    def close(self):
        self.closed = True
