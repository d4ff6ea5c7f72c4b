"""Steps on the samples of any objectives, drawn one after the other from a Mix."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from liftcore import sample_batch
from liftcore.attention import own_attention
from liftcore.config import LiftConfig
from liftcore.determinism import any_algorithm
from liftcore.kernels.head_loss import linear_cross_entropy
from liftcore.last_layer import WORTH, LastLayer
from liftcore.lora import Adapter
from liftcore.model import Head
from liftcore.objectives.mix import Mix, Step
from liftcore.objectives.sample import Sample
from liftcore.optimizer import rate_at
from liftcore.recompute import recomputed
from liftcore.sample_batch import SampleBatch
from liftcore.steps import EagerSteps, hidden_states

# Row lengths on a GPU are rounded up, so that its allocator sees few of them.
ROUND = {"cuda": 16}
# How long to sleep when every sample is trained on and more are being made.
NAP = 0.05


def sample_loss(
    model: nn.Module,
    lm_head: Head,
    batch: SampleBatch,
    normaliser: float,
    last: LastLayer | None = None,
) -> Tensor:
    """Σ weight · loss over the scored rows / normaliser, fp32: the cross entropy of the token for
    rows of the hard kind, that of the teacher's likeliest tokens for the soft."""
    hidden = hidden_states(model, batch.input_ids, last, batch.chosen).flatten(0, 1)
    hidden, weight = lm_head.detached().operands(hidden)
    options = dict(
        token_weights=batch.weights,
        reduction="sum",
        softcap=lm_head.softcap,
        logit_scale=lm_head.logit_scale,
    )
    losses = []
    if len(batch.hard_rows):
        losses.append(
            linear_cross_entropy(hidden, weight, batch.labels, row_index=batch.hard_rows, **options)
        )
    if len(batch.soft_rows):
        from liftcore.kernels.head_loss_soft import linear_soft_cross_entropy

        targets = batch.soft_ids, batch.soft_probs
        losses.append(
            linear_soft_cross_entropy(
                hidden, weight, *targets, row_index=batch.soft_rows, **options
            )
        )
    return sum(losses) / normaliser


class Drawn:
    """The steps that were drawn so far, as the loop wants to know them."""

    def __init__(self, mix: Mix, most: int):
        self.mix, self.most = mix, most
        self.epoch: list[int] = []
        self.tokens: list[int] = []
        self.weight: list[float] = []

    def append(self, step: Step) -> None:
        self.epoch.append(step.epoch)
        self.tokens.append(step.tokens)
        self.weight.append(step.weight)

    def __len__(self) -> int:
        """The steps of the whole run, as far as can be said."""
        done = len(self.epoch)
        mean = self.mix.trained / done if done else self.mix.target
        return done + round(self.mix.left() / mean)


class SampleSteps(EagerSteps):
    """EagerSteps on the steps of a Mix. On CUDA too they are made on the host; there is no graph.

    The learning rate follows the share of the token-passes that are done. A state holds which
    steps of the epoch were drawn and what had arrived, so that a resumed run goes on: bit for bit
    on a CPU without streams; with them once the stream gives the same samples again (cached
    pairs come at once), and approximately when it does not.
    """

    def __init__(self, model: nn.Module, adapter: Adapter, mix: Mix, config: LiftConfig):
        self.mix, self.waited = mix, 0.0
        with waiting_room(model):
            known = [s for o in mix.objectives for s in o.samples(0)]
        # At least a segment's length: what a stream brings is seldom longer.
        self.size = max([config.segment_length, *map(len, known)])
        self.size = min(self.size, mix.window)
        most = max(1, mix.target // self.size)
        self._prepare(model, adapter, config, Drawn(mix, most), self.size, True)
        self.round_to = ROUND.get(self.losses.device.type, 1)
        self.step: Step | None = None
        self.before = mix.seconds  # of the making, before the first step

    def numbers(self, first: int, stop: Callable[[], bool]) -> Iterator[int]:
        n = first
        while self._draw(stop):
            if n >= len(self.losses):
                more = self.losses.new_full((max(64, n),), torch.nan)
                self.losses = torch.cat([self.losses, more])
            yield n
            n += 1

    def _draw(self, stop: Callable[[], bool]) -> bool:
        """Draws the next step; False when there is none, or when `stop` ends the wait for it."""
        started, makes = time.perf_counter(), not self.mix.done
        with waiting_room(self.model):
            self.step = self._wait(stop)
        if makes:
            self.waited += time.perf_counter() - started
        if self.step is not None:
            self.order.append(self.step)
        return self.step is not None

    def _wait(self, stop: Callable[[], bool]) -> Step | None:
        while not stop() and not self.mix.finished:
            if self.config.qa_first and not self.mix.done:
                for objective in self.mix.objectives:
                    objective.poll()
            elif step := self.mix.draw():
                return step
            time.sleep(NAP)
        return None

    def _backward(self, n: int) -> Tensor:
        loss, worth = 0.0, WORTH if self.last is not None else 0.0
        for part in self._passes(self.step.samples):
            batch = sample_batch.make(part, self.round_to, worth).to(self.losses.device)
            with recomputed(self.model, self.plan.recompute):
                passed = sample_loss(self.model, self.head, batch, self.step.normaliser, self.last)
                passed.backward()
            loss = loss + passed.detach()
        return loss * (self.step.normaliser / self.step.weight)

    def _passes(self, samples: list[Sample]) -> Iterator[list[Sample]]:
        """The samples of a step in passes of as many tokens as the memory plan allows."""
        part: list[Sample] = []
        for sample in sorted(samples, key=len, reverse=True):
            if part and (len(part) + 1) * len(part[0]) > self.plan.micro_batch * self.size:
                yield part
                part = []
            part.append(sample)
        yield part

    def _rate(self, n: int) -> float:
        return rate_at(self.config, self.step.before, self.step.after)

    def state(self) -> dict[str, Tensor]:
        drawn = self.order
        mix = {k: torch.from_numpy(v) for k, v in self.mix.state().items()}
        return {
            **self.optimizer.state(),
            **mix,
            "losses": self.losses[: len(drawn.epoch)],
            "drawn_steps": torch.tensor([drawn.epoch, drawn.tokens], dtype=torch.int64),
            "drawn_weights": torch.tensor(drawn.weight, dtype=torch.float64),
        }

    def load_state(self, state: dict[str, Tensor], step: int) -> None:
        self.optimizer.load_state(state)
        self.losses = state["losses"].to(self.losses.device, copy=True)
        self.order.epoch, self.order.tokens = state["drawn_steps"].tolist()
        self.order.weight = state["drawn_weights"].tolist()
        self.mix.restore({k: v.numpy() for k, v in state.items() if k.startswith("mix_")})

    def times(self) -> dict[str, float]:
        hidden = max(0.0, self.mix.seconds - self.before - self.waited)
        return {"making": self.mix.seconds, "hidden": hidden, "waited": self.waited}

    @property
    def how(self) -> str:
        eager = "; made on the host, without a CUDA graph" if self.losses.is_cuda else ""
        return super().how + eager


@contextmanager
def waiting_room(model: nn.Module):
    """Within it the model is as its owner left it, so that samples may be made with it between
    two steps: with the attention that knows caches, and with any algorithm."""
    with any_algorithm(), own_attention(model):
        yield
