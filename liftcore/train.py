"""The training loop: steps in, adapter out."""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Callable
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from liftcore import checkpoint
from liftcore.attention import own_attention
from liftcore.checkpoint import Position
from liftcore.config import LiftConfig
from liftcore.determinism import deterministic
from liftcore.errors import LiftError, NothingToLearnError
from liftcore.graph import DeviceSteps
from liftcore.interrupt import Interrupt
from liftcore.lora import Adapter, only_adapter_trains
from liftcore.steps import EagerSteps
from liftcore.trial import fastest

# A kill loses at most this much and a step; the writing of the file must fit in 30 seconds too.
SAVE_SECONDS = float(os.environ.get("LIFTCORE_SAVE_SECONDS", 20))


@dataclass(frozen=True)
class Progress:
    """What a step reports."""

    epoch: int
    step: int
    steps: int
    tokens: int  # token-passes since the (re)start
    seconds: float  # since the (re)start
    loss: float  # on a GPU of a step shortly before


@dataclass(frozen=True)
class Result:
    seconds: float  # training time of the whole run, interruptions left out
    steps: int
    token_passes: int
    loss: float  # mean of the last epoch
    how: str = ""  # the memory plan, and whether a CUDA graph ran
    # Of samples that are made while training runs: seconds that making them took, how many of
    # these training went on beside, and how many training waited.
    making: float = 0.0
    hidden: float = 0.0
    waited: float = 0.0
    questions: list[dict] = field(default_factory=list)  # of each source: counts, failures


@contextmanager
def prepared(model: nn.Module, adapter: Adapter, length: int):
    """Within it the model trains its adapter only, deterministically, on segments of at most
    `length` tokens, with the fastest attention and norms that its device has and that agree with
    its own; yields a line for each that was left out. Raises LiftError when it cannot train."""
    with ExitStack() as stack:
        stack.enter_context(deterministic(adapter.values.device))
        stack.enter_context(only_adapter_trains(adapter))
        yield stack.enter_context(fastest(model, adapter, length))


def make_steps(
    model: nn.Module, adapter: Adapter, tokens: np.ndarray, config: LiftConfig, prefix: list[int]
) -> EagerSteps:
    """The steps of a run as the adapter's device does them best."""
    kind = DeviceSteps if adapter.values.is_cuda else EagerSteps
    return kind(model, adapter, tokens, config, prefix)


def train(
    model: nn.Module,
    adapter: Adapter,
    tokens: np.ndarray,
    config: LiftConfig,
    *,
    prefix: list[int],
    **options,
) -> Result:
    """Trains the adapter on the segments of a document's tokens, int64 [L]; options: of follow."""
    return follow(
        lambda: make_steps(model, adapter, tokens, config, prefix),
        adapter,
        len(prefix) + config.segment_length,
        **options,
    )


def follow(
    make: Callable[[], EagerSteps],
    adapter: Adapter,
    length: int,
    *,
    state_file: Path | None = None,
    run: dict[str, str] | None = None,
    on_step: Callable[[Progress], None] = lambda progress: None,
    say: Callable[[str], None] = lambda text: None,
) -> Result:
    """Trains the adapter by the steps of make(), on rows of at most `length` tokens.

    With a state_file the state is saved there every 20 seconds and on an interrupt, and a run
    found there goes on, bit for bit on a CPU; `run` says what must be the same. `say` hears how
    the steps will run. Raises LiftError when the loss is no longer a number (the last saved state
    stays) and when not even one segment fits into memory.
    """
    started = saved = time.perf_counter()
    with ExitStack() as stack:
        interrupt = stack.enter_context(Interrupt())
        left = stack.enter_context(prepared(adapter.model, adapter, length))
        steps = make()
        order, at = steps.order, Position()
        if state_file is not None and state_file.exists():
            state, at = checkpoint.read(state_file, run or {})
            steps.use(steps.plan.cut(order.most, at.micro_batch, at.recompute))
            steps.load_state(state, at.step)
        stack.callback(steps.close)
        said, before, first, passes = None, at.seconds, at.step, 0

        def save() -> None:
            if state_file is not None:
                at.seconds = before + time.perf_counter() - started
                at.micro_batch, at.recompute = steps.plan.micro_batch, steps.plan.recompute
                checkpoint.save(state_file, steps.state(), at, run or {})

        for n in steps.numbers(first, lambda: interrupt.asked):
            if _how(steps, left) != said:
                said = _how(steps, left)
                say(said)
            steps.run(n)
            loss, at.step = steps.latest(n), n + 1
            due = interrupt.asked or time.perf_counter() - saved > SAVE_SECONDS
            if due or not np.isfinite(loss):
                # On a GPU the latest loss may be of a step before one that failed.
                _check(steps.losses[: n + 1], state_file)
            passes += int(order.tokens[n])
            now = time.perf_counter() - started
            progress = Progress(int(order.epoch[n]), n + 1, len(order), passes, now, loss)
            # Who listens may generate with the model.
            with own_attention(adapter.model):
                on_step(progress)
            if due or interrupt.asked:
                _save_or_warn(save, interrupt)
                saved = time.perf_counter()
        _check(steps.losses[: at.step], state_file)
        if interrupt.asked or time.perf_counter() - started > SAVE_SECONDS:
            save()
            interrupt.raise_if_asked()
        if not at.step:
            raise NothingToLearnError(
                "nothing to learn from: the document is too short, or no sample was made of it"
            )
        losses, epoch = steps.losses[: at.step].cpu().numpy(), np.asarray(order.epoch)
        return Result(
            before + time.perf_counter() - started,
            at.step,
            int(np.sum(order.tokens)),
            float(losses[epoch == epoch[-1]].mean()),
            _how(steps, left),
            **steps.times(),
        )


def _how(steps: EagerSteps, left: list[str]) -> str:
    """How the steps run, and what of liftcore's own was left out."""
    return "; ".join([steps.how, *left])


def _save_or_warn(save: Callable[[], None], interrupt: Interrupt) -> None:
    """Saves the state; a full disk must not end a run that still goes well."""
    try:
        save()
    except LiftError as error:
        warnings.warn(str(error), stacklevel=2)
    interrupt.raise_if_asked()


def _check(losses: Tensor, state_file: Path | None) -> None:
    """Raises LiftError for the first step whose loss is no number."""
    failed = torch.nonzero(~torch.isfinite(losses))
    if not len(failed):
        return
    kept = ""
    if state_file is not None and state_file.exists():
        kept = f" The last saved state is kept in {state_file}."
    raise LiftError(
        f"the loss is no longer a number at step {int(failed[0]) + 1}: try a learning rate 3 to "
        f"10 times smaller, or a longer warm-up.{kept}"
    )
