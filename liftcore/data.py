"""Segments as data sets for somebody else's training loop, and the collator that pads them.

    tokens = text_ids(tokenizer, text)  # liftcore.tokens: words of the text stay words
    data = SegmentDataset(tokens, LiftConfig(epochs=3, ...))
    args = TrainingArguments(folder, num_train_epochs=1)
    Trainer(model, args, train_dataset=data, data_collator=Collator(tokenizer))

A data set holds the segments of all config.epochs epochs, so one pass over it is the whole run.
A jittered schedule has other boundaries every epoch, and their number varies: a trainer that
counts epochs itself would cut wrongly, and would resume at the wrong place.

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

from liftcore.config import LiftConfig
from liftcore.errors import UsageError
from liftcore.objectives.sample import IGNORE, Sample, prompted
from liftcore.segments import cut
from liftcore.tokens import Tokenizer


class Collator:
    """A list of items -> a batch.

    input_ids, attention_mask, position_ids, labels and weights are padded on the right to the
    longest of the batch, with the pad token (the end token where there is none), 0, 0, -100 and
    0.0. Everything else stays a list, one entry an item. Raises UsageError for items whose keys
    differ.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        pad = getattr(tokenizer, "pad_token_id", None)
        pad = tokenizer.eos_token_id if pad is None else pad
        self.padding = {
            "input_ids": pad,
            "attention_mask": 0,
            "position_ids": 0,
            "labels": IGNORE,
            "weights": 0.0,
        }

    def __call__(self, items: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        for n, item in enumerate(items):
            if unequal := set(item) ^ set(items[0]):
                names = ", ".join(sorted(unequal))
                raise UsageError(f"items 0 and {n} of a batch differ in their keys: {names}")
        batch: dict[str, Any] = {}
        for key in items[0]:
            values = [item[key] for item in items]
            if key in self.padding:
                rows = [torch.as_tensor(v) for v in values]
                batch[key] = pad_sequence(rows, batch_first=True, padding_value=self.padding[key])
            else:
                batch[key] = values
        return batch


class _Segments:
    """The segments of all epochs as items."""

    def __init__(
        self,
        tokens: Sequence[int],
        config: LiftConfig | None = None,
        *,
        prefix: Sequence[int] = (),
        weights: bool = False,
    ) -> None:
        self.tokens = np.asarray(tokens, dtype=np.int64)
        self.config, self.prefix = config or LiftConfig(), list(prefix)
        self.weights = weights
        if self.config.overlap_loss == "mean" and not weights:
            raise UsageError(
                'overlap_loss "mean" weighs every token, which labels cannot say: take "all" or '
                '"new", or weights=True with a loss that uses them (for Trainer a compute_loss of '
                "your own, and remove_unused_columns=False)"
            )

        self.cuts = [cut(len(self.tokens), self.config, e) for e in range(self.config.epochs)]

    def _scored(self, epoch: int) -> np.ndarray:
        """The numbers of the segments of an epoch that score anything."""
        count = len(self.cuts[epoch])
        return np.flatnonzero([self._sample(epoch, i).weights.any() for i in range(count)])

    def _sample(self, epoch: int, i: int) -> Sample:
        segments = self.cuts[epoch]
        text = self.tokens[segments.start[i] : segments.stop[i]]
        return prompted(self.prefix, text, "segments", segments.weights[i])

    def _item(self, epoch: int, i: int) -> dict[str, Tensor]:
        sample = self._sample(epoch, i)
        ids = sample.ids.astype(np.int64)
        labels = np.where(sample.weights != 0, ids, IGNORE)
        item = {"input_ids": torch.from_numpy(ids), "labels": torch.from_numpy(labels)}
        if self.weights:
            item["weights"] = torch.from_numpy(sample.weights)
        return item


class SegmentDataset(_Segments, Dataset):
    """The segments of a document for all config.epochs epochs, one epoch after the other, each in
    the order of the document. One pass is the whole run: num_train_epochs=1.

    tokens: int [L]; prefix: what the tokenizer puts before any text (liftcore.model.prefix_ids).
    weights=True adds weights, float32 [n], to the items. Trainer drops them unless it is given
    remove_unused_columns=False, and needs a compute_loss that uses them, such as that of
    examples/trainer_peft.py. A sampler that shuffles mixes the epochs; SegmentStream shuffles each
    by itself. Raises UsageError for overlap_loss "mean" without weights.
    """

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self.index = [(e, i) for e in range(self.config.epochs) for i in self._scored(e)]

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return self._item(*self.index[index])


class SegmentStream(_Segments, IterableDataset):
    """The segments of a document for all config.epochs epochs, each epoch shuffled, with those of
    like length side by side, so that batches of config.batch_size items hold little padding.

    One pass is the whole run, and every pass is the same. A DataLoader of that batch size gives
    the same batches in the same order with any number of workers. Trainer
    needs max_steps for a stream: steps(). The arguments are those of SegmentDataset.
    """

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self.index, size = [], self.config.batch_size
        for epoch in range(self.config.epochs):
            rows = self._shuffled(epoch, -len(self.index) % size)
            self.index += [(epoch, i) for i in rows]

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        worker = get_worker_info()
        share = self._share(worker.id, worker.num_workers) if worker else self.index
        return (self._item(epoch, i) for epoch, i in share)

    def _shuffled(self, epoch: int, lead: int) -> np.ndarray:
        """The lead items that fill the last batch of the epoch before, then batches of like length
        in random order, the one that is short last."""
        rng = np.random.default_rng([self.config.seed, epoch, 2])
        rows, segments = self._scored(epoch), self.cuts[epoch]
        lengths = (segments.stop - segments.start)[rows]
        mixed = rng.permutation(len(rows))
        ranked = rows[mixed[np.argsort(-lengths[mixed], kind="stable")]]
        # The short batch of an epoch holds its shortest, and so should what fills it.
        ranked, first = np.split(ranked, [max(0, len(ranked) - lead)])
        size = self.config.batch_size
        full = len(ranked) // size * size
        batches = rng.permutation(ranked[:full].reshape(-1, size))
        return np.concatenate([first, batches.reshape(-1), ranked[full:]])

    def _share(self, worker: int, workers: int) -> list[tuple[int, int]]:
        """What one worker gives: every workers-th batch, since a loader takes them in turns."""
        size = self.config.batch_size
        starts = range(worker * size, len(self.index), workers * size)
        return [item for start in starts for item in self.index[start : start + size]]

    def steps(
        self, batch_size: int | None = None, *, workers: int = 0, accumulation: int = 1
    ) -> int:
        """Optimizer steps of one process in all config.epochs epochs: Trainer's max_steps.

        batch_size: the loader's (config.batch_size); workers: its num_workers, which matter only
        for another batch size; accumulation: batches a step. Batches at the end that do not fill
        a step are left out, since Trainer would start the stream again to fill it.
        """
        size, workers = batch_size or self.config.batch_size, max(1, workers)
        batches = sum(-(-len(self._share(w, workers)) // size) for w in range(workers))
        return batches // accumulation
