"""The samples of all objectives as the steps of one run: weighted, packed, in epochs.

An epoch takes every sample that is known when it begins, shuffled, those of like length together.
What arrives while it runs is trained in the order of arrival, in turns with what was planned. The
epoch in the middle ends when nothing more arrives, so that every sample gets half of the passes;
those before it do not wait, unless there is nothing else to go on with. All randomness derives from
(seed, epoch), so that an epoch can be gone through again up to any step: that is how a run goes on,
exactly without streams, and with them as far as they give the same samples in the same order again.
"""

from __future__ import annotations

import warnings
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from liftcore.config import LiftConfig
from liftcore.objectives import Objective
from liftcore.objectives.sample import Sample

# Tokens of a sample of which none is known yet.
GUESS = 64


@dataclass(frozen=True)
class Step:
    """What one step trains on."""

    samples: list[Sample]
    epoch: int
    normaliser: float  # of the epoch: what the sum of the losses is divided by
    before: float  # share of the run's token-passes done before this step, and after it
    after: float

    @property
    def tokens(self) -> int:
        return _tokens(self.samples)

    @property
    def weight(self) -> float:
        return _weight(self.samples)


class Mix:
    """Draws the steps of a run one after the other.

    Each objective's token weights are multiplied by its γ. A step has room for the rows of
    config.target_tokens tokens with a prefix of `prefix` tokens each. Samples of more than
    `window` tokens are left out, and so are those without a target.
    """

    def __init__(
        self,
        objectives: Sequence[Objective],
        weights: Sequence[float],
        config: LiftConfig,
        window: int,
        prefix: int = 0,
    ):
        self.objectives, self.weights = list(objectives), list(weights)
        self.config, self.window = config, window
        rows = config.target_tokens // config.segment_length
        self.target = config.target_tokens + rows * prefix
        self.left_out = 0
        self.trained = 0  # tokens of the steps drawn so far
        self._share = 0.0
        self.epoch, self.drawn = -1, 0  # the running epoch, and its steps drawn so far
        self.known = [0] * len(self.objectives)  # samples when the epoch began
        self.arrivals: list[tuple[int, int, int]] = []  # since then: steps drawn, objective, count
        self.planned: deque[list[Sample]] = deque()
        self.arrived: deque[Sample] = deque()
        self.normaliser = 0.0
        self._turn = True  # whether a step of arrivals comes next, where there is one
        self._waiting = 0  # tokens of what is planned or has arrived
        self._epoch_tokens = [0] * len(self.objectives)
        self._again: dict | None = None  # what is to be gone through again

    @property
    def seconds(self) -> float:
        """How long making the samples took so far, where that can run beside training."""
        return max((objective.seconds for objective in self.objectives), default=0.0)

    @property
    def done(self) -> bool:
        """No objective will have more samples."""
        return all(objective.done for objective in self.objectives)

    @property
    def finished(self) -> bool:
        """There is no further step, now or later."""
        last = self.epoch >= self.config.epochs - 1
        return last and self.done and not (self.planned or self.arrived or self._again)

    def draw(self) -> Step | None:
        """The next step; None when there is none yet, or no more."""
        if self._again is not None and not self._go_through_again():
            return None
        if self.epoch < 0:
            self._begin(0)
        while True:
            self._take_arrivals()
            before = self._share_drawn()
            samples = self._next()
            if samples:
                self.trained += _tokens(samples)
                after = self._share_drawn()
                return Step(samples, self.epoch, self.normaliser, before, after)
            # None: an epoch that waits for more.
            if samples is None or self.epoch >= self.config.epochs - 1:
                return None
            self._begin(self.epoch + 1)

    def _share_drawn(self) -> float:
        """The share of the run's token-passes that is drawn, in [0, 1]: an estimate that never
        goes back, and takes later epochs to be as long as this one."""
        all_of_it = self.trained + self.left()
        self._share = max(self._share, self.trained / all_of_it if all_of_it else 1.0)
        return self._share

    def left(self) -> float:
        """Token-passes that are still to be drawn, as far as is known."""
        left = float(self._waiting)
        arrived = [0] * len(self.objectives)
        for _, i, count in self.arrivals:
            arrived[i] += count
        for i, objective in enumerate(self.objectives):
            known, missing = self.known[i] + arrived[i], 0.0
            mean = self._epoch_tokens[i] / known if known else GUESS
            if not objective.done:
                missing = mean * max(0, objective.expected - known)
            begin = max(self.epoch + 1, self._first_epoch(i))
            later = max(0, self.config.epochs - begin)
            left += later * (self._epoch_tokens[i] + missing)
            left += missing if self._takes_part(i, self.epoch) else 0.0
        return left

    def _takes_part(self, i: int, epoch: int) -> bool:
        return epoch >= self._first_epoch(i)

    def _first_epoch(self, i: int) -> int:
        return 0 if self.objectives[i].name == "segments" else self.config.segment_epochs

    def _begin(self, epoch: int, known: Sequence[int] | None = None) -> None:
        """Plans an epoch of all samples there are, or of the first `known` of each objective."""
        self.epoch, self.drawn, self._turn = epoch, 0, True
        self.arrivals, self.arrived = [], deque()
        samples: list[Sample] = []
        for i, objective in enumerate(self.objectives):
            found = objective.samples(epoch)[: None if known is None else known[i]]
            self.known[i] = len(found)
            self._epoch_tokens[i] = sum(map(len, found))
            if self._takes_part(i, epoch):
                samples += self._weighted(found, i)
        rng = np.random.default_rng([self.config.seed, epoch, 2])
        self.planned = deque(pack(samples, self.target, rng))
        self._waiting = sum(map(_tokens, self.planned))
        total = sum(map(_weight, self.planned))
        self.normaliser = total / len(self.planned) if self.planned else 0.0

    def _weighted(self, samples: Sequence[Sample], i: int) -> list[Sample]:
        gamma, found = np.float32(self.weights[i]), []
        for sample in samples:
            if len(sample) > self.window:
                self._leave_out(sample)
            elif sample.weights.any():
                found.append(
                    sample if gamma == 1 else replace(sample, weights=sample.weights * gamma)
                )
        return found

    def _leave_out(self, sample: Sample) -> None:
        if not self.left_out:
            warnings.warn(
                f"a sample of {sample.source} has {len(sample)} tokens, more than the model's "
                f"window of {self.window}: such samples are left out",
                stacklevel=2,
            )
        self.left_out += 1

    def _take_arrivals(self) -> None:
        for i, objective in enumerate(self.objectives):
            if self._takes_part(i, self.epoch) and (new := objective.poll()):
                self._arrive(i, new)

    def _arrive(self, i: int, new: Sequence[Sample]) -> None:
        self.arrivals.append((self.drawn, i, len(new)))
        self._epoch_tokens[i] += sum(map(len, new))
        new = self._weighted(new, i)
        self.arrived += new
        self._waiting += _tokens(new)

    def _next(self) -> list[Sample] | None:
        """The samples of the epoch's next step; [] at its end, None when it waits for more."""
        samples: list[Sample] = []
        if self.arrived and (self._turn or not self.planned):
            samples = self._first_arrived()
        self._turn = not samples
        if not samples and self.planned:
            samples = self.planned.popleft()
        if not samples:
            return None if self._waits() else []
        self.drawn += 1
        self._waiting -= _tokens(samples)
        if not self.normaliser:
            self.normaliser = _weight(samples)
        return samples

    def _first_arrived(self) -> list[Sample]:
        """Arrivals that fill a step; at the end of an epoch also fewer."""
        count = longest = 0
        for sample in self.arrived:
            longest = max(longest, len(sample))
            if count and (count + 1) * longest > self.target:
                break
            count += 1
        full = count < len(self.arrived) or (count + 1) * longest > self.target
        if not full and (self.planned or self._waits()):
            return []
        return [self.arrived.popleft() for _ in range(count)]

    def _waits(self) -> bool:
        """Whether the running epoch goes on until nothing more arrives."""
        middle = self.epoch >= (self.config.epochs - 1) // 2
        others = any(o.done and self.known[i] for i, o in enumerate(self.objectives))
        return not self.done and (middle or not others)

    def state(self) -> dict[str, np.ndarray]:
        """What restore() needs to go on behind the steps drawn so far."""
        return {
            "mix_at": np.array([self.epoch, self.drawn, self.trained], dtype=np.int64),
            "mix_known": np.array(self.known, dtype=np.int64),
            "mix_arrivals": np.array(self.arrivals, dtype=np.int64).reshape(-1, 3),
            "mix_float": np.array([self._share, self.normaliser], dtype=np.float64),
        }

    def restore(self, state: dict[str, np.ndarray]) -> None:
        """Goes on where state() was taken, as soon as the samples that it knew are there."""
        self._again = {k: v.tolist() for k, v in state.items()}

    def _go_through_again(self) -> bool:
        """Draws the steps of the broken-off epoch once more; False while samples are missing."""
        epoch, drawn, trained = self._again["mix_at"]
        known, arrivals = self._again["mix_known"], self._again["mix_arrivals"]
        if epoch >= 0:
            counts = list(known)
            for _, i, count in arrivals:
                counts[i] += count
            for objective, count in zip(self.objectives, counts, strict=True):
                if not objective.done and len(objective.samples(epoch)) < count:
                    return False
            self._begin(epoch, known)
            lists = [o.samples(epoch) for o in self.objectives]
            for at, i, count in [*arrivals, (drawn, -1, 0)]:
                while self.drawn < at and self._next():
                    pass
                if i >= 0:
                    begin, known[i] = known[i], known[i] + count
                    self._arrive(i, lists[i][begin : known[i]])
            for i, found in enumerate(lists):
                if self._takes_part(i, epoch) and len(found) > counts[i]:
                    self._arrive(i, found[counts[i] :])
        self.trained = trained
        self._share, self.normaliser = self._again["mix_float"]
        self._again = None
        return True

    def close(self) -> None:
        for objective in self.objectives:
            objective.close()


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


def _tokens(samples: Sequence[Sample]) -> int:
    return sum(map(len, samples))


def _weight(samples: Sequence[Sample]) -> float:
    return float(sum(s.weights.sum(dtype=np.float64) for s in samples))
