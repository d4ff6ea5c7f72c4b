"""The training loop: segments in, adapter out."""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import Tensor, nn

from liftcore import batch, checkpoint
from liftcore.attention import fast_attention
from liftcore.batch import Batch
from liftcore.checkpoint import Position
from liftcore.config import LiftConfig
from liftcore.errors import LiftError
from liftcore.interrupt import Interrupt
from liftcore.kernels.head_loss import linear_cross_entropy
from liftcore.lora import Adapter, only_adapter_trains
from liftcore.model import Head, body, head
from liftcore.optimizer import MasterAdamW, learning_rate

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
    loss: float


@dataclass(frozen=True)
class Result:
    seconds: float  # training time of the whole run, interruptions left out
    steps: int
    token_passes: int
    loss: float  # mean of the last epoch


def batch_loss(model: nn.Module, lm_head: Head, step: Batch, normaliser: float) -> Tensor:
    """Σ weight · loss over the scored rows of a batch / normaliser (LIFT, equation 2), fp32.

    One normaliser for all steps of an epoch keeps the weights of the overlap loss: dividing each
    step by its own sum would undo them.
    """
    hidden = body(model)(input_ids=step.input_ids, use_cache=False).last_hidden_state
    loss = linear_cross_entropy(
        hidden.flatten(0, 1),
        lm_head.weight.detach(),
        step.labels.flatten(),
        token_weights=step.weights.flatten(),
        reduction="sum",
        softcap=lm_head.softcap,
        logit_scale=lm_head.logit_scale,
        row_index=step.row_index,
    )
    return loss / normaliser


def train(
    model: nn.Module,
    adapter: Adapter,
    tokens: np.ndarray,
    config: LiftConfig,
    *,
    prefix: list[int],
    state_file: Path | None = None,
    run: dict[str, str] | None = None,
    on_step: Callable[[Progress], None] = lambda progress: None,
) -> Result:
    """Trains the adapter on the document's tokens, int64 [L].

    With a state_file the state is saved there every 20 seconds and on an interrupt, and a run
    found there goes on, bit for bit on a CPU; `run` says what must be the same. Raises LiftError
    when the loss is no longer a number; the last saved state stays.
    """
    device = adapter.values.device
    lm_head, optimizer = head(model), MasterAdamW(adapter, config)
    total, passes = batch.count(len(tokens), config, prefix)
    if not total:
        raise LiftError("the document is too short: no token of it has one before it to learn from")
    at, seen = Position(), 0
    if state_file is not None and state_file.exists():
        state, at = checkpoint.read(state_file, run or {})
        optimizer.load_state(state)
    started = saved = time.perf_counter()
    before = at.seconds

    def save() -> None:
        if state_file is not None:
            at.seconds = before + time.perf_counter() - started
            checkpoint.save(state_file, optimizer.state(), at, run or {})

    with Interrupt() as interrupt, only_adapter_trains(adapter), fast_attention(model):
        while at.epoch < config.epochs:
            segments, steps = batch.plan(len(tokens), config, at.epoch, prefix)
            normaliser = batch.weight(segments, steps, prefix) / max(1, len(steps))
            for rows in steps[at.index :]:
                step = batch.make(tokens, segments, rows, prefix).to(device)
                loss = batch_loss(model, lm_head, step, normaliser)
                loss.backward()
                norm = optimizer.clip()
                mean = _finite(loss, norm, at.step, state_file) * normaliser / step.weight
                # The state saved here has just given a finite loss, so it is known to be good.
                if interrupt.asked or time.perf_counter() - saved > SAVE_SECONDS:
                    _save_or_warn(save, interrupt)
                    saved = time.perf_counter()
                optimizer.step(learning_rate(config, at.step, total))
                at.index, at.step, seen = at.index + 1, at.step + 1, seen + step.tokens
                at.loss_sum += mean
                now = time.perf_counter() - started
                on_step(Progress(at.epoch, at.step, total, seen, now, mean))
            # Jitter may cut two tokens apart, and then an epoch scores nothing.
            if steps:
                at.loss, at.loss_sum = at.loss_sum / len(steps), 0.0
            at.epoch, at.index = at.epoch + 1, 0
        if interrupt.asked:
            save()
            interrupt.raise_if_asked()
    if time.perf_counter() - started > SAVE_SECONDS:
        save()
    return Result(before + time.perf_counter() - started, total, passes, at.loss)


def _save_or_warn(save: Callable[[], None], interrupt: Interrupt) -> None:
    """Saves the state; a full disk must not end a run that still goes well."""
    try:
        save()
    except LiftError as error:
        warnings.warn(str(error), stacklevel=2)
    interrupt.raise_if_asked()


def _finite(loss: Tensor, norm: Tensor, step: int, state_file: Path | None) -> float:
    value = loss.item()
    if np.isfinite(value) and np.isfinite(norm.item()):
        return value
    kept = ""
    if state_file is not None and state_file.exists():
        kept = f" The last good state is kept in {state_file}."
    raise LiftError(
        f"the loss is no longer a number at step {step + 1}: try a learning rate 3 to 10 times "
        f"smaller, or a longer warm-up.{kept}"
    )
