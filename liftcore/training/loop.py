"""The training loop: steps in, adapter out."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from liftcore.errors import LiftError, LostError
from liftcore.kernels.device import on_device
from liftcore.layers.determinism import deterministic
from liftcore.layers.lora import Adapter, only_adapter_trains
from liftcore.layers.trial import fastest
from liftcore.model import evaluating
from liftcore.training import checkpoint
from liftcore.training.budget import Budget
from liftcore.training.graph import GraphRunner
from liftcore.training.interrupt import PATIENCE, Interrupt
from liftcore.training.log import Log, Progress, Result
from liftcore.training.parallel import ALONE, Followed, Ranks
from liftcore.training.runner import Runner, as_owned
from liftcore.training.source import StepSource
from liftcore.training.together import TogetherSource
from liftcore.training.together_runner import TogetherGraphRunner, TogetherRunner

# A kill loses at most so many seconds and a step, unless LIFTCORE_SAVE_SECONDS says another number;
# the writing of the file must fit in 30 seconds too.
SAVE_SECONDS = 20.0


def train(
    adapter: Adapter,
    source: StepSource | None,
    *,
    ranks: Ranks = ALONE,
    state_file: Path | None = None,
    run: dict[str, str] | None = None,
    budget: Budget | None = None,
    starting: float = 0.0,
    on_step: Callable[[Progress], None] = lambda progress: None,
    say: Callable[[str], None] = lambda text: None,
) -> Result:
    """Trains the adapter, which is installed, on the steps of the source.

    With a state_file the state is saved there every 20 seconds and on an interrupt, but for one
    before the first step, and a run found there goes on, bit for bit on a CPU; `run` says what must
    be the same. A state that cannot be written is a LiftError before the first step, and a warning
    later. With a `budget` the adapter ends with its last values within that. `starting`: seconds
    that fitting the adapter took, which the state keeps. `say` hears how the steps will run;
    `on_step` may generate with the model. Raises LiftError when the loss is no longer a number (the
    last saved state stays) and when not even one row fits into memory.

    Several `ranks` call it together, with adapters of one shape: all end with the same values.
    The source, the state_file and the budget are rank 0's, and None elsewhere. When one of them
    ends, the others raise LostError, and rank 0 saves the state.
    """
    save_seconds = _save_seconds()
    with ExitStack() as stack:
        # The caller may have switched gradients off.
        stack.enter_context(torch.enable_grad())
        interrupt = stack.enter_context(Interrupt(patience=PATIENCE if ranks.size > 1 else 0.0))
        with ranks.together():
            if state_file is not None and ranks.first:
                # fp32 masters and two moments.
                size = 12 * adapter.values.numel() + adapter.frozen.nbytes
                checkpoint.try_saving(state_file, size)
        steps = _followed(source, ranks)
        made_before = steps.seconds
        # The ranks of a sharded base wait for each other in every forward.
        with ranks.together(), nullcontext() if ranks.sharded else interrupt.at_once():
            left = stack.enter_context(prepared(adapter, steps.length))
            runner = make_runner(adapter, steps, ranks=ranks)
            runner.left += left
        with ranks.together():
            log = Log(runner, steps, state_file, run or {}, budget, starting)
        log.share()
        try:
            for step in ranks.steps(
                steps, lambda: interrupt.asked, lambda: as_owned(adapter.model)
            ):
                loss = log.runner.run(step)
                log.add(step)
                if not ranks.first:
                    interrupt.raise_if_alone()
                with ranks.telling():
                    if budget is not None:
                        with as_owned(adapter.model):
                            budget.after(step)
                    if not ranks.first:
                        continue
                    if log.runner.how != log.said:
                        log.said = log.runner.how
                        say(log.said)
                    due = interrupt.asked or time.perf_counter() - log.saved > save_seconds
                    if due or not np.isfinite(loss):
                        # On a GPU the latest loss may be of a step before one that failed.
                        log.check()
                    with as_owned(adapter.model):
                        on_step(log.progress(step, loss))
                    if due or interrupt.asked:
                        log.save()
                        interrupt.raise_if_asked()
        except LostError:
            # The adapter is as the last whole step left it.
            log.save()
            raise
        with ranks.together():
            result = None
            if ranks.first:
                log.check()
                if interrupt.asked or time.perf_counter() - log.started > save_seconds:
                    log.save()
                    interrupt.raise_if_asked()
                result = log.result(made_before)
            if budget is not None:
                with as_owned(adapter.model):
                    limit = budget.finish(log.steps)
                if result is not None:
                    kept = budget.best_done
                    result = replace(result, limit=limit, kept=kept, seconds=log.seconds)
        ranks.give(adapter.values)
        result = ranks.tell(result)
        assert result is not None
        return result


def _followed(source: StepSource | None, ranks: Ranks) -> StepSource | Followed:
    """The source on rank 0, and what the others must know of it there."""
    told = ranks.tell(Followed.of(source) if source is not None and ranks.size > 1 else None)
    steps = source if source is not None and ranks.first else told
    assert steps is not None
    return steps


def both(
    one: Callable[[Progress], None], two: Callable[[Progress], None]
) -> Callable[[Progress], None]:
    """An on_step for train() that tells one and then the other."""

    def on_step(at: Progress) -> None:
        one(at)
        two(at)

    return on_step


def _save_seconds() -> float:
    text = os.environ.get("LIFTCORE_SAVE_SECONDS", str(SAVE_SECONDS))
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not seconds >= 0:
        raise LiftError(f"LIFTCORE_SAVE_SECONDS must be a number of seconds: {text!r}")
    return seconds


@contextmanager
def prepared(adapter: Adapter, length: int) -> Generator[list[str]]:
    """Within it the adapter's model trains its adapter only, deterministically, with the fastest
    attention and norms that its device has and that agree with its own; yields a line for each that
    was left out. Whatever its mode was, there is no dropout, and nothing but the memory plan
    recomputes layers. `length`: tokens of the longest row, as far as is known. Raises LiftError
    when it cannot train."""
    with ExitStack() as stack:
        # torch records an event on the current device, whatever the tensors are on.
        stack.enter_context(on_device(adapter.values))
        stack.enter_context(evaluating(adapter.model))
        stack.enter_context(deterministic(adapter.values.device))
        stack.enter_context(only_adapter_trains(adapter))
        yield stack.enter_context(fastest(adapter.model, adapter, length))


def make_runner(
    adapter: Adapter,
    source: StepSource | Followed,
    mark: Callable[[str], None] = lambda part: None,
    ranks: Ranks = ALONE,
) -> Runner:
    """The runner for the adapter's device; mark, ranks: of Runner."""
    on_gpu = adapter.values.is_cuda
    if isinstance(source, TogetherSource):
        return (TogetherGraphRunner if on_gpu else TogetherRunner)(adapter, source, mark)
    return (GraphRunner if on_gpu else Runner)(adapter, source, mark, ranks)
