"""Samples -> one padded batch, with the scored rows of both kinds known on the host."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from liftcore.batch import IGNORE
from liftcore.objectives.sample import Sample


@dataclass(frozen=True)
class SampleBatch:
    """B rows padded on the right to S tokens, and their targets.

    Targets stand in rows of the flattened hidden states: [B·S], or [B·Q] with `chosen`, the Q
    positions of each row that are computed to the end. Row t predicts the token behind it.
    """

    input_ids: Tensor  # int64 [B, S]
    chosen: Tensor | None  # int64 [B, Q], each position at most once a row
    labels: Tensor  # int64 [B·Q], −100 where a row is not of the hard kind
    weights: Tensor  # float32 [B·Q]
    hard_rows: Tensor  # int64, the rows with a label
    soft_rows: Tensor  # int64, the rows with a teacher's targets
    soft_ids: Tensor | None  # int64 [B·Q, k]
    soft_probs: Tensor | None  # float32 [B·Q, k], 0 where a row is not of the soft kind

    def to(self, device: torch.device | str) -> SampleBatch:
        return SampleBatch(
            *(
                t if t is None else t.to(device, non_blocking=True)
                for t in (getattr(self, f.name) for f in dataclasses.fields(self))
            )
        )


def make(samples: Sequence[Sample], round_to: int = 1, worth: float = 0.0) -> SampleBatch:
    """The batch of the samples, its length rounded up to a multiple of `round_to`.

    Positions are chosen where the most that a row scores is at most `worth` of the length.
    """
    size = -(-max(map(len, samples)) // round_to) * round_to
    shape = len(samples), size
    ids, labels = np.zeros(shape, dtype=np.int64), np.full(shape, IGNORE, dtype=np.int64)
    weights = np.zeros(shape, dtype=np.float32)
    width = max((s.soft.ids.shape[1] for s in samples if s.soft is not None), default=0)
    soft_ids = np.zeros((*shape, width), dtype=np.int64)
    soft_probs = np.zeros((*shape, width), dtype=np.float32)
    soft = np.zeros(shape, dtype=bool)
    for b, sample in enumerate(samples):
        n = len(sample)
        ids[b, :n] = sample.ids
        weights[b, : n - 1] = sample.weights[1:]
        if sample.soft is None:
            labels[b, : n - 1] = sample.ids[1:]
        else:
            k = sample.soft.ids.shape[1]
            soft[b] = True
            soft_ids[b, : n - 1, :k] = sample.soft.ids[1:]
            soft_probs[b, : n - 1, :k] = sample.soft.probs[1:]
    scored = weights != 0
    labels[~scored] = IGNORE
    chosen, most = None, max(1, int(scored.sum(axis=1).max()))
    if most <= worth * size:
        # The scored positions first, filled up with others.
        chosen = np.argsort(~scored, axis=1, kind="stable")[:, :most]

    def take(x: np.ndarray) -> np.ndarray:
        """The rows that are computed to the end, flattened."""
        if chosen is not None:
            x = np.take_along_axis(x, chosen.reshape(*chosen.shape, *[1] * (x.ndim - 2)), axis=1)
        return np.ascontiguousarray(x.reshape(-1, *x.shape[2:]))

    scored, soft = take(scored), take(soft)
    arrays = ids, chosen, take(labels), take(weights)
    arrays += np.flatnonzero(scored & ~soft), np.flatnonzero(scored & soft)
    arrays += (take(soft_ids), take(soft_probs)) if width else (None, None)
    return SampleBatch(*(None if a is None else torch.from_numpy(a) for a in arrays))
