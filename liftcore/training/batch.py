"""Samples -> one padded batch on the device, and its loss."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from liftcore.kernels.head_loss import linear_cross_entropy, linear_soft_cross_entropy
from liftcore.layers.last_layer import WORTH, LastLayer
from liftcore.model import Head, body
from liftcore.objectives.sample import IGNORE, OwnedSample, Sample


@dataclass(frozen=True)
class Shape:
    """The sizes of a batch: what a CUDA graph is captured for."""

    rows: int  # B
    length: int  # S
    chosen: int  # Q: positions of a row that are computed to the end; 0: all S
    hard: int  # rows that the head computes for tokens as targets
    soft: int  # and for a teacher's targets
    width: int  # k: targets of such a row


@dataclass(frozen=True)
class Batch:
    """B rows padded on the right to S tokens, and their targets.

    Targets stand in rows of the flattened hidden states: [B·S], or [B·Q] with `chosen`. Row t
    predicts the token behind it. A row is scored when its weight is not 0: labels and row lists
    derive from that. Where a shape has more room than rows are scored, the lists repeat a row of
    weight 0.
    """

    input_ids: Tensor  # int64 [B, S]
    labels: Tensor  # int64 [B·Q], −100 where a row is not of the hard kind
    weights: Tensor  # float32 [B·Q]
    hard_rows: Tensor  # int64 [hard], the rows with a label
    soft_rows: Tensor  # int64 [soft], the rows with a teacher's targets
    chosen: Tensor | None = None  # int64 [B, Q], each position at most once a row
    soft_ids: Tensor | None = None  # int64 [B·Q, k]
    soft_probs: Tensor | None = None  # float32 [B·Q, k], 0 where a row is not of the soft kind
    slots: Tensor | None = None  # int32 [B], whose row each is, where several documents share it

    def map(self, function: Callable[[Tensor], Tensor]) -> Batch:
        """The batch with `function` applied to each tensor."""
        return Batch(**{name: function(tensor) for name, tensor in self._tensors()})

    def copy_to(self, other: Batch, copy: Callable[[Tensor, Tensor], None]) -> None:
        """copy(tensor, other's tensor) for each tensor."""
        for name, tensor in self._tensors():
            copy(tensor, getattr(other, name))

    def _tensors(self) -> list[tuple[str, Tensor]]:
        fields = ((field.name, getattr(self, field.name)) for field in dataclasses.fields(self))
        return [(name, tensor) for name, tensor in fields if tensor is not None]

    def to(self, device: torch.device | str) -> Batch:
        return self.map(lambda tensor: tensor.to(device, non_blocking=True))


def shape_of(samples: Sequence[Sample], worth: float = WORTH) -> Shape:
    """The smallest shape that holds the samples.

    Positions are chosen where the most that a row scores is at most `worth` of the length.
    """
    length = max(map(len, samples))
    scored = [int(np.count_nonzero(s.weights)) for s in samples]
    soft = sum(n for s, n in zip(samples, scored, strict=True) if s.soft is not None)
    most = max(1, *scored)
    return Shape(
        rows=len(samples),
        length=length,
        chosen=most if most <= worth * length else 0,
        hard=sum(scored) - soft,
        soft=soft,
        width=max((s.soft.ids.shape[1] for s in samples if s.soft is not None), default=0),
    )


def make(samples: Sequence[Sample], shape: Shape | None = None) -> Batch:
    """The batch of the samples on the host, in `shape` (default: the smallest, all positions).
    Those of several documents come sorted by their slots."""
    shape = shape or shape_of(samples, 0.0)
    size = shape.rows, shape.length
    ids, labels = np.zeros(size, dtype=np.int64), np.full(size, IGNORE, dtype=np.int64)
    weights = np.zeros(size, dtype=np.float32)
    soft_ids = np.zeros((*size, shape.width), dtype=np.int64)
    soft_probs = np.zeros((*size, shape.width), dtype=np.float32)
    soft = np.zeros(size, dtype=bool)
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
    chosen = None
    if shape.chosen:
        # The scored positions first, filled up with others.
        chosen = np.argsort(~scored, axis=1, kind="stable")[:, : shape.chosen]

    def taken(x: np.ndarray) -> np.ndarray:
        """The rows that are computed to the end, flattened."""
        if chosen is not None:
            x = np.take_along_axis(x, chosen.reshape(*chosen.shape, *[1] * (x.ndim - 2)), axis=1)
        return np.ascontiguousarray(x.reshape(-1, *x.shape[2:]))

    scored, soft = taken(scored), taken(soft)
    arrays = dict(
        input_ids=ids,
        labels=taken(labels),
        weights=taken(weights),
        hard_rows=_rows(scored & ~soft, scored, shape.hard),
        soft_rows=_rows(scored & soft, scored, shape.soft),
    )
    if chosen is not None:
        arrays["chosen"] = chosen
    if isinstance(samples[0], OwnedSample):
        owners = np.array([s.slot for s in samples if isinstance(s, OwnedSample)], dtype=np.int32)
        # What fills the shape up belongs to the last, so that the slots rise.
        arrays["slots"] = np.pad(owners, (0, shape.rows - len(samples)), mode="edge")
    if shape.width:
        arrays |= dict(soft_ids=taken(soft_ids), soft_probs=taken(soft_probs))
    return Batch(**{name: torch.from_numpy(array) for name, array in arrays.items()})


def _rows(wanted: np.ndarray, scored: np.ndarray, count: int) -> np.ndarray:
    """The numbers of the wanted rows, filled up to `count` with a row that is not scored."""
    rows = np.flatnonzero(wanted)
    if len(rows) == count:
        return rows
    return np.pad(rows, (0, count - len(rows)), constant_values=int(np.argmin(scored)))


def batch_loss(
    model: nn.Module,
    lm_head: Head,
    batch: Batch,
    normaliser: float | Tensor,
    last: LastLayer | None = None,
) -> Tensor:
    """Σ weight · loss over the scored rows / normaliser (LIFT, equation 2), fp32: the cross
    entropy of the token for rows of the hard kind, of the teacher's likeliest for the soft.

    One normaliser for all steps of an epoch keeps the weights: dividing each step by its own sum
    would undo them. `last` computes the last layer for the chosen positions only.
    """
    losses = _losses(model, lm_head, batch, last, "sum")
    return sum(losses[1:], losses[0]) / normaliser


def row_losses(
    model: nn.Module, lm_head: Head, batch: Batch, last: LastLayer | None = None
) -> Tensor:
    """Σ weight · loss over the scored positions of each row of the batch, fp32 [B]."""
    losses = _losses(model, lm_head, batch, last, "none")
    return sum(losses[1:], losses[0]).view(len(batch.input_ids), -1).sum(1)


def _losses(
    model: nn.Module, lm_head: Head, batch: Batch, last: LastLayer | None, reduction: str
) -> list[Tensor]:
    """The weighted losses of the hard and of the soft kind, of those that there are."""
    hidden = hidden_states(model, batch, last).flatten(0, 1)
    hidden, weight = lm_head.detached().operands(hidden)
    losses: list[Tensor] = []
    options: dict[str, Any] = dict(
        token_weights=batch.weights,
        reduction=reduction,
        softcap=lm_head.softcap,
        logit_scale=lm_head.logit_scale,
    )
    if len(batch.hard_rows):
        rows = batch.hard_rows
        losses.append(linear_cross_entropy(hidden, weight, batch.labels, row_index=rows, **options))
    if len(batch.soft_rows):
        assert batch.soft_ids is not None and batch.soft_probs is not None
        rows, targets = batch.soft_rows, (batch.soft_ids, batch.soft_probs)
        losses.append(
            linear_soft_cross_entropy(hidden, weight, *targets, row_index=rows, **options)
        )
    if not losses:
        # The backward of a pass without a target must run all the same where ranks wait for it.
        nothing = hidden.float().sum(-1) * 0
        return [nothing if reduction == "none" else nothing.sum()]
    return losses


def hidden_states(model: nn.Module, batch: Batch, last: LastLayer | None) -> Tensor:
    """The body's output [B, S, K]; [B, Q, K] for the chosen positions, by `last`."""
    if batch.chosen is None:
        return body(model)(input_ids=batch.input_ids, use_cache=False).last_hidden_state
    assert last is not None
    with last.rows(batch.chosen):
        return body(model)(input_ids=batch.input_ids, use_cache=False).last_hidden_state
