"""The samples of all objectives as the steps of one run: weighted, packed, in epochs.

An epoch takes every sample that is known when it begins, shuffled, those of like length together.
What arrives while it runs is trained in the order of arrival, in turns with what was planned. The
epoch in the middle ends when nothing more arrives, so that every sample gets half of the passes;
those before it do not wait, unless there is nothing else to go on with. All randomness derives from
(seed, epoch), so that an epoch can be gone through again up to any step: that is how a run goes on,
exactly without streams, and with them as far as they give the same samples in the same order again.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext

import numpy as np

from liftcore.config import LiftConfig
from liftcore.layers.last_layer import WORTH
from liftcore.objectives import Objective, Repeated
from liftcore.objectives.sample import Sample
from liftcore.objectives.segments import Segments
from liftcore.training.step import (
    Epoch,
    Step,
    counts_of,
    learning_rate,
    pack,
    target_of,
    tokens_of,
    weighted,
)

# Tokens of a sample of which none is known yet.
GUESS = 64
# Seconds to sleep when every sample is trained on and more are being made.
NAP = 0.05


class StepSource:
    """Draws the steps of a run one after the other.

    Each objective's token weights are multiplied by its γ (default 1). A step has room for the
    rows of config.target_tokens tokens with a prefix of `prefix` tokens each. Samples of more than
    `window` tokens are left out, and so are those without a target.

    share   tells which share of the run is over, in place of the token-passes: a clock, say. The
            run then ends at 1, whatever the number of epochs

    done_steps, waited   steps drawn so far, and seconds that training waited for samples
    """

    def __init__(
        self,
        objectives: Sequence[Objective],
        config: LiftConfig,
        window: int,
        *,
        weights: Sequence[float] | None = None,
        prefix: int = 0,
        share: Callable[[], float] | None = None,
    ) -> None:
        self.objectives, self.config, self.window = list(objectives), config, window
        self.weights = [1.0] * len(self.objectives) if weights is None else list(weights)
        self.target, self._clock = target_of(config, prefix), share
        self.trained = 0  # tokens of the steps drawn so far
        self.done_steps, self.waited = 0, 0.0
        self._share, self._warned = 0.0, False
        self.running = Epoch(-1, [[] for _ in self.objectives], [], self.target)
        self._again: dict[str, np.ndarray] | None = None  # an epoch to go through again

    @property
    def epoch(self) -> int:
        return self.running.number

    @property
    def seconds(self) -> float:
        """How long making the samples took so far, where that can run beside training."""
        return max((objective.seconds for objective in self.objectives), default=0.0)

    @property
    def complete(self) -> bool:
        """No objective will have more samples."""
        return all(objective.done for objective in self.objectives)

    @property
    def length(self) -> int:
        """Tokens of the longest row, as far as is known; what a stream brings is seldom longer
        than a segment."""
        longest = max(objective.longest for objective in self.objectives)
        if not (self.complete and longest):
            longest = max(longest, self.config.segment_length)
        return min(self.window, longest)

    @property
    def rows(self) -> int:
        """Rows of that length that a step has at most."""
        most = max(1, self.target // self.length)
        known = sum(o.expected for o in self.objectives)
        return min(most, max(1, known)) if self.complete else most

    @property
    def partly_scored(self) -> bool:
        """Whether there are, or may come, rows with few targets."""
        for objective in self.objectives:
            samples = objective.samples(0)
            scored = sum(np.count_nonzero(s.weights) for s in samples)
            if not objective.done or scored < WORTH * tokens_of(samples):
                return True
        return False

    @property
    def finished(self) -> bool:
        """There is no further step, now or later."""
        if self._clock is not None:
            return self._clock() >= 1
        last = self.epoch >= self.config.epochs - 1
        return last and self.complete and self.running.empty and self._again is None

    @property
    def expected_steps(self) -> int:
        """The steps of the whole run, as far as can be said."""
        if not self.done_steps:
            return round(self.left() / self.target)
        return self.done_steps + round(self.left() * self.done_steps / self.trained)

    def steps(
        self,
        stop: Callable[[], bool] = lambda: False,
        between: Callable[[], AbstractContextManager] = nullcontext,
    ) -> Iterator[Step]:
        """The steps from here on. Waits for samples that are still being made, until `stop` says
        True. Whatever makes samples, with the model perhaps, runs inside of `between()`."""
        while True:
            started, makes = time.perf_counter(), not self.complete
            with between():
                step = self._wait(stop)
            if makes:
                self.waited += time.perf_counter() - started
            if step is None:
                return
            yield step

    def _wait(self, stop: Callable[[], bool]) -> Step | None:
        while not stop() and not self.finished:
            if self.config.qa_first and not self.complete:
                for objective in self.objectives:
                    objective.poll()
            elif step := self.draw():
                return step
            time.sleep(NAP)
        return None

    def draw(self) -> Step | None:
        """The next step; None when there is none yet, or no more."""
        if self._again is not None and not self._go_through_again(self._again):
            return None
        if self._clock is not None and self.finished:
            return None
        if self.epoch < 0:
            self._begin(0)
        while True:
            self._take_arrivals()
            before = self._share_drawn()
            samples = self.running.next(self._waits)
            if samples:
                return self._step(samples, before)
            # None: an epoch that waits for more.
            if samples is None or (self.epoch >= self.config.epochs - 1 and not self._clock):
                return None
            self._begin(self.epoch + 1)

    def _step(self, samples: list[Sample], before: float) -> Step:
        self.trained += tokens_of(samples)
        number, self.done_steps = self.done_steps, self.done_steps + 1
        after = self._share_drawn()
        if self._clock is not None:
            # As far again as the steps before it went; 0.01 for the first.
            after = min(1.0, before + (before / number if number else 0.01))
        rate = learning_rate(self.config, before, after)
        return Step(samples, number, self.epoch, self.running.normaliser, rate, after)

    def _share_drawn(self) -> float:
        """The share of the run's token-passes that is drawn, in [0, 1]: an estimate that never
        goes back, and takes later epochs to be as long as this one."""
        if self._clock is not None:
            return min(1.0, self._clock())
        all_of_it = self.trained + self.left()
        self._share = max(self._share, self.trained / all_of_it if all_of_it else 1.0)
        return self._share

    def left(self) -> float:
        """Token-passes that are still to be drawn, as far as is known."""
        left = float(self.running.waiting)
        counts = counts_of(self.running.known, self.running.arrivals)
        for i, objective in enumerate(self.objectives):
            known, missing = counts[i], 0.0
            mean = self.running.tokens[i] / known if known else GUESS
            if not objective.done:
                missing = mean * max(0, objective.expected - known)
            begin = max(self.epoch + 1, self._first_epoch(i))
            later = max(0, self.config.epochs - begin)
            left += later * (self.running.tokens[i] + missing)
            left += missing if self._first_epoch(i) <= self.epoch else 0.0
        return left

    def _first_epoch(self, i: int) -> int:
        always = self.objectives[i].name in ("segments", "replay")
        return 0 if always else self.config.segment_epochs

    def _begin(self, epoch: int, known: Sequence[int] | None = None) -> None:
        """Plans an epoch of all samples there are, or of the first `known` of each objective."""
        every: list[Sequence[Sample]] = []
        for i, objective in enumerate(self.objectives):
            samples = [] if isinstance(objective, Repeated) else objective.samples(epoch)
            every.append(samples if known is None else samples[: known[i]])
        tokens = list(map(tokens_of, every))
        for i, objective in self._repeated:
            stop = self._enough(i, objective, epoch, tokens, 0) if known is None else known[i]
            every[i] = objective.drawn(epoch, 0, stop)
        planned: list[Sample] = []
        for i, samples in enumerate(every):
            if self._first_epoch(i) <= epoch:
                planned += self._weighted(samples, i)
        rng = np.random.default_rng([self.config.seed, epoch, 1])
        self.running = Epoch(epoch, every, pack(planned, self.target, rng), self.target)

    @property
    def _repeated(self) -> list[tuple[int, Repeated]]:
        return [(i, o) for i, o in enumerate(self.objectives) if isinstance(o, Repeated)]

    def _missing(self, i: int, share: float, epoch: int, tokens: Sequence[int]) -> float:
        """Tokens that objective i, which repeats itself, lacks for its share of an epoch that has
        so many of each objective."""
        others = sum(
            count
            for j, count in enumerate(tokens)
            if not isinstance(self.objectives[j], Repeated) and self._first_epoch(j) <= epoch
        )
        return share / (1 - share) * others - tokens[i]

    def _enough(
        self, i: int, objective: Repeated, epoch: int, tokens: Sequence[int], known: int
    ) -> int:
        """How many samples of the epoch fill the share of objective i, of which `known` have been
        drawn."""
        missing = self._missing(i, objective.share, epoch, tokens)
        lengths = objective.lengths(epoch) if missing > 0 else ()
        while missing > 0:
            missing -= lengths[known % len(lengths)]
            known += 1
        return known

    def _weighted(self, samples: Sequence[Sample], i: int) -> list[Sample]:
        """The samples that are trained on, their weights times the objective's γ."""
        longest = max(samples, key=len, default=None)
        if longest is not None and len(longest) > self.window and not self._warned:
            self._warned = True
            warnings.warn(
                f"a sample of {longest.source} has {len(longest)} tokens, more than the model's "
                f"window of {self.window}: such samples are left out",
                stacklevel=2,
            )
        return weighted(samples, self.weights[i], self.window)

    def _take_arrivals(self) -> None:
        for i, objective in enumerate(self.objectives):
            if self._first_epoch(i) <= self.epoch and (new := objective.poll()):
                self._arrive(i, new)
        for i, objective in self._repeated:
            tokens = self.running.tokens
            if self._missing(i, objective.share, self.epoch, tokens) > 0:
                known = counts_of(self.running.known, self.running.arrivals)[i]
                stop = self._enough(i, objective, self.epoch, tokens, known)
                self._arrive(i, objective.drawn(self.epoch, known, stop))

    def _arrive(self, i: int, new: Sequence[Sample]) -> None:
        self.running.arrive(i, new, self._weighted(new, i))

    def _waits(self) -> bool:
        """Whether the running epoch goes on until nothing more arrives."""
        middle = self.epoch >= (self.config.epochs - 1) // 2
        others = any(
            o.done and self.running.known[i] and not isinstance(o, Repeated)
            for i, o in enumerate(self.objectives)
        )
        return not self.complete and (middle or not others)

    def state(self) -> dict[str, np.ndarray]:
        """What restore() needs to go on behind the steps drawn so far."""
        if self._again is not None:
            # Nothing was drawn since restore().
            return {name: array.copy() for name, array in self._again.items()}
        running = self.running
        at = [running.number, running.drawn, self.trained, self.done_steps]
        return {
            "source_at": np.array(at, dtype=np.int64),
            "source_known": np.array(running.known, dtype=np.int64),
            "source_arrivals": np.array(running.arrivals, dtype=np.int64).reshape(-1, 3),
            "source_float": np.array([self._share, running.normaliser], dtype=np.float64),
        }

    def restore(self, state: dict[str, np.ndarray]) -> None:
        """Goes on where state() was taken, as soon as the samples that it knew are there. Raises
        ValueError for what state() cannot have given."""
        count, arrivals = len(self.objectives), state["source_arrivals"]
        sizes = {"source_at": (4,), "source_known": (count,), "source_float": (2,)}
        fits = all(state[name].shape == size for name, size in sizes.items())
        fits = fits and arrivals.shape[1] == 3 and state["source_at"][0] <= self.config.epochs
        if not fits or not ((arrivals[:, 1] >= 0) & (arrivals[:, 1] < count)).all():
            raise ValueError("the saved state belongs to other objectives")
        self._again = {name: array.copy() for name, array in state.items()}
        self.done_steps = int(state["source_at"][3])

    def _go_through_again(self, state: dict[str, np.ndarray]) -> bool:
        """Draws the steps of the broken-off epoch once more; False while samples are missing."""
        epoch, drawn, trained, _ = state["source_at"].tolist()
        known, arrivals = state["source_known"].tolist(), state["source_arrivals"].tolist()
        if epoch >= 0:
            counts = counts_of(known, arrivals)
            for objective, count in zip(self.objectives, counts, strict=True):
                if not objective.done and len(objective.samples(epoch)) < count:
                    return False
            self._begin(epoch, known)
            for at, i, count in [*arrivals, (drawn, -1, 0)]:
                while self.running.drawn < at and self.running.next(self._waits):
                    pass
                if i >= 0:
                    begin, known[i] = known[i], known[i] + count
                    self._arrive(i, self._samples(i, epoch, begin, known[i]))
            for i, objective in enumerate(self.objectives):
                if self._first_epoch(i) > epoch or isinstance(objective, Repeated):
                    continue
                if late := objective.samples(epoch)[counts[i] :]:
                    self._arrive(i, late)
        self.trained = trained
        self._share, self.running.normaliser = state["source_float"].tolist()
        self._again = None
        return True

    def _samples(self, i: int, epoch: int, start: int, stop: int) -> list[Sample]:
        """The samples start to stop − 1 of an epoch of objective i."""
        objective = self.objectives[i]
        if isinstance(objective, Repeated):
            return objective.drawn(epoch, start, stop)
        return objective.samples(epoch)[start:stop]

    def close(self) -> None:
        for objective in self.objectives:
            objective.close()


def segments_alone(
    tokens: np.ndarray, config: LiftConfig, prefix: Sequence[int], window: int | None = None
) -> StepSource:
    """The steps of a run on a document's segments, tokens int64 [L], each behind `prefix`."""
    window = window or len(prefix) + config.segment_length
    return StepSource([Segments(tokens, config, prefix)], config, window, prefix=len(prefix))


def count(length: int, config: LiftConfig, prefix: Sequence[int] = ()) -> tuple[int, int]:
    """(steps, token-passes) of a whole run on the segments of `length` tokens."""
    source = segments_alone(np.zeros(length, dtype=np.int64), config, prefix)
    for _ in iter(source.draw, None):
        pass
    return source.done_steps, source.trained
