"""What a run has done so far: what a step reports, what the whole run gives, its state on disk."""

from __future__ import annotations

import time
import warnings
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from torch import Tensor

from liftcore.errors import LiftError
from liftcore.training import checkpoint, losses
from liftcore.training.budget import Budget
from liftcore.training.checkpoint import Position
from liftcore.training.parallel import Followed
from liftcore.training.runner import Runner
from liftcore.training.source import StepSource
from liftcore.training.step import Step
from liftcore.training.together_runner import TogetherRunner


@dataclass(frozen=True)
class Progress:
    """What a step reports."""

    epoch: int
    step: int
    steps: int  # of the whole run, as far as can be said
    tokens: int  # token-passes since the (re)start
    seconds: float  # since the (re)start
    loss: float  # on a GPU of a step shortly before
    rate: float  # learning rate


@dataclass(frozen=True)
class Result:
    seconds: float  # training time of the whole run, interruptions left out
    steps: int
    token_passes: int
    loss: float  # mean of the last epoch
    how: str = ""  # the memory plan, and whether CUDA graphs ran
    # Of samples that are made while training runs: seconds that making them took, how many of
    # these training went on beside, and how many training waited.
    making: float = 0.0
    hidden: float = 0.0
    waited: float = 0.0
    questions: list[dict] = field(default_factory=list)  # of each source: counts, failures
    own_words: float = 0.0  # seconds that making the model's own words took
    starting: float = 0.0  # seconds that fitting A to the document took, before the training
    # What ended the run: "epochs", or "keep" where the adapter is the last one within the
    # forgetting budget, behind the share `kept` of the token-passes.
    limit: str = "epochs"
    kept: float = 1.0
    curve: list[float] = field(default_factory=list)  # mean losses of equal parts of the steps
    start: str = ""  # SHA-256 of the adapter that the run began from; "" for none


class Log:
    """What a run has done so far, and its state on disk."""

    def __init__(
        self,
        runner: Runner,
        source: StepSource | Followed,
        state_file: Path | None,
        run: dict[str, str],
        budget: Budget | None = None,
        starting: float = 0.0,
    ) -> None:
        self.runner, self.source, self.file, self.run = runner, source, state_file, run
        self.budget, self.starting = budget, starting
        self.started = self.saved = time.perf_counter()
        self.epochs: list[int] = []
        self.tokens: list[int] = []
        self.seconds_before, self.said, self.warned = 0.0, "", False
        self.cut: tuple[int, int] | None = None  # of a run that goes on on as many ranks
        # Where the source stood behind the last whole step: a rank may be lost within the next.
        self.drawn: dict[str, np.ndarray] = {}
        if state_file is not None and state_file.exists():
            self._load(state_file)
        self.token_passes = self.tokens_before = sum(self.tokens)

    def share(self) -> None:
        """Has every rank stand where rank 0 does."""
        runner, ranks = self.runner, self.runner.ranks
        if ranks.size == 1:
            return
        told = self.epochs, self.tokens, self.losses.cpu(), self.cut
        self.epochs, self.tokens, losses, cut = ranks.tell(told)
        state = runner.state()
        ranks.give(*state.values())
        if not ranks.first:
            runner.load_state(state, losses)
            if cut is not None:
                runner.use(runner.plan.cut(runner.rows, *cut))

    def _load(self, file: Path) -> None:
        state, at = checkpoint.read(file, self.run)
        runner = self.runner
        try:
            checkpoint.compare(state, self._state())
            checkpoint.check_log(state, at)
            if at.ranks == runner.ranks.size:
                self.cut = at.micro_batch or 1, at.recompute
                runner.use(runner.plan.cut(runner.rows, *self.cut))
            runner.load_state(state, state["losses"])
            self.epochs, self.tokens = state["log"].tolist()
            assert isinstance(self.source, StepSource)  # rank 0 alone has a file
            self.source.restore(checkpoint.source_of(state))
            if self.budget is not None:
                self.budget.restore(state)
        except (LookupError, TypeError, ValueError, RuntimeError) as error:
            raise checkpoint.damaged(file) from error
        self.seconds_before, self.starting = at.seconds, at.starting

    def add(self, step: Step) -> None:
        self.epochs.append(step.epoch)
        self.tokens.append(step.tokens)
        self.token_passes += step.tokens
        if self.runner.ranks.size > 1:
            self.drawn = self._drawn()

    @property
    def steps(self) -> int:
        return len(self.epochs)

    @property
    def seconds(self) -> float:
        """Training time of the whole run so far, interruptions left out."""
        return self.seconds_before + time.perf_counter() - self.started

    @property
    def losses(self) -> Tensor:
        return self.runner.losses[: self.steps]

    def progress(self, step: Step, loss: float) -> Progress:
        tokens = self.token_passes - self.tokens_before
        seconds, total = time.perf_counter() - self.started, self.source.expected_steps
        return Progress(step.epoch, self.steps, total, tokens, seconds, loss, step.rate)

    def save(self) -> None:
        """A full disk must not end a run that goes well, nor lose one that is done."""
        plan = self.runner.plan
        at = Position(
            *(self.steps, self.seconds, plan.micro_batch, plan.recompute),
            ranks=self.runner.ranks.size,
            starting=self.starting,
        )
        try:
            if isinstance(self.runner, TogetherRunner):
                self.runner.save_each()
            if self.file is not None:
                checkpoint.save(self.file, self._state(), at, self.run)
        except LiftError as error:
            if not self.warned:
                warnings.warn(f"{error}; the run goes on", stacklevel=3)
            self.warned = True
        self.saved = time.perf_counter()

    def _state(self) -> dict[str, Tensor]:
        drawn = self.drawn or self._drawn()
        state = checkpoint.whole(self.runner.state(), self.losses, self.epochs, self.tokens, drawn)
        return {**state, **({} if self.budget is None else self.budget.state())}

    def _drawn(self) -> dict[str, np.ndarray]:
        return self.source.state() if isinstance(self.source, StepSource) else {}

    def check(self) -> None:
        """Raises LiftError for the first step whose loss is no number."""
        kept = ""
        if self.file is not None and self.file.exists():
            kept = f" The last saved state is kept in {self.file}."
        losses.check(self.losses, kept)

    def result(self, made_before: float) -> Result:
        losses.check_some(self.steps)
        source = self.source
        return Result(
            seconds=self.seconds,
            steps=self.steps,
            token_passes=self.token_passes,
            **losses.told_by(self.losses, self.epochs),
            how=self.runner.how,
            making=source.seconds,
            hidden=max(0.0, source.seconds - made_before - source.waited),
            waited=source.waited,
            starting=self.starting,
        )
