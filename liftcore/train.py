"""The training loop: segments in, adapter out."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import Tensor, nn

from liftcore import batch, checkpoint
from liftcore.attention import fast_cpu_attention
from liftcore.batch import Batch
from liftcore.checkpoint import Position
from liftcore.config import LiftConfig
from liftcore.errors import LiftError
from liftcore.interrupt import Interrupt
from liftcore.kernels.head_loss import linear_cross_entropy
from liftcore.lora import Adapter
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


def batch_loss(model: nn.Module, lm_head: Head, step: Batch) -> Tensor:
    """Mean loss of the scored rows of a batch (LIFT, equation 2), a fp32 scalar."""
    hidden = body(model)(input_ids=step.input_ids, use_cache=False).last_hidden_state
    return linear_cross_entropy(
        hidden.flatten(0, 1),
        lm_head.weight,
        step.labels.flatten(),
        token_weights=step.weights.flatten(),
        softcap=lm_head.softcap,
        logit_scale=lm_head.logit_scale,
        row_index=step.row_index,
    )


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
    at, losses, seen = Position(), [], 0
    if state_file is not None and state_file.exists():
        state, at = checkpoint.read(state_file, run or {})
        optimizer.load_state(state)
    started = saved = time.perf_counter()
    before = at.seconds

    def save() -> None:
        if state_file is not None:
            at.seconds = before + time.perf_counter() - started
            checkpoint.save(state_file, optimizer.state(), at, run or {})

    with Interrupt() as interrupt, fast_cpu_attention(model):
        while at.epoch < config.epochs:
            segments, steps = batch.plan(len(tokens), config, at.epoch, prefix)
            for rows in steps[at.index :]:
                step = batch.make(tokens, segments, rows, prefix).to(device)
                loss = batch_loss(model, lm_head, step)
                loss.backward()
                norm = optimizer.step(learning_rate(config, at.step, total))
                at.index, at.step, seen = at.index + 1, at.step + 1, seen + step.tokens
                losses.append(_finite(loss, norm, at.step, state_file))
                now = time.perf_counter()
                on_step(Progress(at.epoch, at.step, total, seen, now - started, losses[-1]))
                if interrupt.asked or now - saved > SAVE_SECONDS:
                    save()
                    saved = time.perf_counter()
                    interrupt.raise_if_asked()
            at.epoch, at.index = at.epoch + 1, 0
            if at.epoch < config.epochs:
                losses.clear()
    if time.perf_counter() - started > SAVE_SECONDS:
        save()
    seconds = before + time.perf_counter() - started
    return Result(seconds, total, passes, float(np.mean(losses)) if losses else float("nan"))


def _finite(loss: Tensor, norm: Tensor, step: int, state_file: Path | None) -> float:
    value = loss.item()
    if np.isfinite(value) and np.isfinite(norm.item()):
        return value
    kept = ""
    if state_file is not None and state_file.exists():
        kept = f" The state before it is kept in {state_file}."
    raise LiftError(
        f"the loss is no longer a number at step {step}: try a learning rate 3 to 10 times "
        f"smaller, or a longer warm-up.{kept}"
    )
