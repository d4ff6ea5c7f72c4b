"""Segments as data sets for somebody else's training loop, and the collator that pads them.

    data = SegmentDataset(tokens, LiftConfig(...))
    Trainer(model, args, train_dataset=data, data_collator=Collator(tokenizer))

An item holds input_ids and labels, both int64 [n]. The labels are those of transformers: they
stand at the token's own place, and the model shifts them. -100 is not scored. There is no
attention mask: padding stands on the right, where causal attention never looks.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset, IterableDataset, get_worker_info

from liftcore.batch import IGNORE
from liftcore.config import LiftConfig
from liftcore.errors import UsageError
from liftcore.segments import Segments, cut


class Collator:
    """A list of items -> a batch.

    input_ids, attention_mask, labels and weights are padded on the right to the longest of the
    batch, with the pad token (the end token where there is none), 0, -100 and 0.0. Everything
    else stays a list, one entry an item.
    """

    def __init__(self, tokenizer):
        pad = getattr(tokenizer, "pad_token_id", None)
        pad = tokenizer.eos_token_id if pad is None else pad
        self.padding = {"input_ids": pad, "attention_mask": 0, "labels": IGNORE, "weights": 0.0}

    def __call__(self, items: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        found = {}
        for key in items[0]:
            values = [item[key] for item in items]
            if key in self.padding:
                rows = [torch.as_tensor(v) for v in values]
                found[key] = pad_sequence(rows, batch_first=True, padding_value=self.padding[key])
            else:
                found[key] = values
        return found


class _Segments:
    """The segments of one epoch as items."""

    def __init__(
        self,
        tokens: Sequence[int],
        config: LiftConfig | None = None,
        *,
        prefix: Sequence[int] = (),
        weights: bool = False,
    ):
        self.tokens = np.asarray(tokens, dtype=np.int64)
        self.config, self.prefix = config or LiftConfig(), list(prefix)
        self.weights, self.epoch = weights, 0
        if self.config.overlap_loss == "mean" and not weights:
            raise UsageError(
                'overlap_loss "mean" weighs every token, which labels cannot say: take "all" or '
                '"new", or weights=True with a loss that uses them'
            )

    def set_epoch(self, epoch: int) -> None:
        """Cuts the segments anew: a jittered schedule has other boundaries every epoch."""
        self.epoch = epoch

    def _cut(self, epoch: int) -> tuple[Segments, np.ndarray]:
        """The segments of an epoch, and the numbers of those that score anything."""
        found = cut(len(self.tokens), self.config, epoch)
        first = 0 if self.prefix else 1
        return found, np.flatnonzero([weights[first:].any() for weights in found.weights])

    def _item(self, segments: Segments, i: int) -> dict[str, Tensor]:
        text = self.tokens[segments.start[i] : segments.stop[i]]
        ids = np.concatenate([np.asarray(self.prefix, dtype=np.int64), text])
        weights = np.zeros(len(ids), dtype=np.float32)
        weights[len(self.prefix) :] = segments.weights[i]
        # Without a prefix the first token has nothing before it to be predicted from.
        weights[0] = 0.0
        labels = np.where(weights > 0, ids, IGNORE)
        item = {"input_ids": torch.from_numpy(ids), "labels": torch.from_numpy(labels)}
        if self.weights:
            item["weights"] = torch.from_numpy(weights)
        return item


class SegmentDataset(_Segments, Dataset):
    """The segments of a document, in the order they stand in it.

    tokens: int [L]; prefix: what the tokenizer puts before any text (liftcore.model.prefix_ids).
    weights=True adds weights, float32 [n], to the items. Trainer and Accelerate call
    set_epoch() by themselves; another loop does so before each epoch. With a jittered schedule
    the length may differ by one from epoch to epoch. Raises UsageError for overlap_loss "mean"
    without weights.
    """

    def __init__(self, *args, **settings):
        super().__init__(*args, **settings)
        self.set_epoch(0)

    def set_epoch(self, epoch: int) -> None:
        super().set_epoch(epoch)
        self.segments, self.rows = self._cut(epoch)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return self._item(self.segments, self.rows[index])


class SegmentStream(_Segments, IterableDataset):
    """The segments of a document, shuffled, with those of like length side by side, so that
    batches of config.batch_size items hold little padding.

    Every pass is the next epoch; set_epoch() says which. Trainer needs max_steps for a stream:
    steps(batch_size). The arguments are those of SegmentDataset.
    """

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        segments, rows = self._cut(self.epoch)
        rows = self._shuffled(rows, (segments.stop - segments.start)[rows])
        self.epoch += 1
        worker = get_worker_info()
        if worker is not None:
            rows = rows[worker.id :: worker.num_workers]
        return (self._item(segments, i) for i in rows)

    def _shuffled(self, rows: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        """Batches of like length in random order, the one that is short last."""
        rng = np.random.default_rng([self.config.seed, self.epoch, 2])
        mixed = rng.permutation(len(rows))
        ranked = rows[mixed[np.argsort(-lengths[mixed], kind="stable")]]
        size = self.config.batch_size
        full = len(ranked) // size * size
        batches = rng.permutation(ranked[:full].reshape(-1, size))
        return np.concatenate([batches.reshape(-1), ranked[full:]])

    def steps(self, batch_size: int | None = None) -> int:
        """Batches in all config.epochs epochs."""
        size = batch_size or self.config.batch_size
        return sum(-(-len(self._cut(e)[1]) // size) for e in range(self.config.epochs))
