"""Replay: the base model's own words are trained on beside the document, so that what the model
knew stays (experience replay; self-distillation on the model's own outputs).

A row is a short question and reply of the model's own (questions/own_words.py). The reply alone is
scored, with the likeliest tokens of the model without its adapter as targets, or with the reply
itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from torch import nn

from liftcore.config import LiftConfig
from liftcore.objectives import Repeated
from liftcore.objectives.sample import Sample, SoftTargets, prompted
from liftcore.objectives.teacher import K, Reading, Teacher
from liftcore.questions.own_words import OwnWords

# Rows that the teacher reads together, always the same ones: another batch would round otherwise,
# and a run that goes on would not end with the same bits.
BLOCK = 8


class Replay(Repeated):
    """The rows in an order of the epoch's own, as many as the share of the settings needs.

    rows    at least one
    k, cache   of liftcore.objectives.teacher; with config.replay_targets "hard" there is none
    """

    name = "replay"

    def __init__(
        self,
        model: nn.Module,
        rows: Sequence[OwnWords],
        config: LiftConfig,
        *,
        k: int = K,
        cache: str | Path | None = None,
    ):
        self.rows, self.seed, self.share = list(rows), config.seed, config.shared_by_replay
        soft = config.replay_targets == "soft"
        self.teacher = Teacher(model, k, cache) if soft else None
        self._taught: dict[int, SoftTargets] = {}

    def order(self, epoch: int) -> list[int]:
        """The numbers of the rows, block by block: few rows need few blocks."""
        rng = np.random.default_rng([self.seed, epoch, 3])
        rows = np.arange(len(self.rows))
        blocks = np.split(rows, range(BLOCK, len(rows), BLOCK))
        return [int(n) for b in rng.permutation(len(blocks)) for n in rng.permutation(blocks[b])]

    def lengths(self, epoch: int) -> list[int]:
        return [len(self.rows[n].tokens) for n in self.order(epoch)]

    def drawn(self, epoch: int, start: int, stop: int) -> list[Sample]:
        order = self.order(epoch)
        wanted = [order[n % len(order)] for n in range(start, stop)]
        for block in {n // BLOCK: None for n in wanted if n not in self._taught}:
            self._teach(block)
        return [self._sample(n, self._taught.get(n)) for n in wanted]

    def samples(self, epoch: int) -> list[Sample]:
        """Each row once, with hard targets: what it costs, not what is trained on."""
        return [self._sample(n, None) for n in self.order(epoch)]

    @property
    def longest(self) -> int:
        return max(len(row.tokens) for row in self.rows)

    def _teach(self, block: int) -> None:
        if self.teacher is None:
            return
        numbers = range(block * BLOCK, min(len(self.rows), (block + 1) * BLOCK))
        rows = [self.rows[n] for n in numbers]
        readings = [Reading(row.tokens.astype(np.int32), row.reply_start) for row in rows]
        self._taught |= zip(numbers, self.teacher.targets(readings), strict=True)

    def _sample(self, number: int, soft: SoftTargets | None) -> Sample:
        row = self.rows[number]
        prompt, reply = np.split(row.tokens, [row.reply_start])
        return prompted(prompt, reply, self.name, soft=soft)
