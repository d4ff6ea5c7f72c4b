"""The teacher of distillation: the model without its adapter, and its likeliest tokens."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from liftcore import model as models
from liftcore.model import evaluating
from liftcore.objectives.sample import SoftTargets
from liftcore.objectives.teacher_cache import TeacherCache, fingerprint

K = 20
# Tokens that go through the model at once, padding included.
BATCH_TOKENS = 4096
# Bytes of fp32 logits at once.
CHUNK_BYTES = 64 * 2**20


@dataclass(frozen=True)
class Reading:
    """What the teacher reads. Its opinion is wanted on the tokens ids[first:], each predicted from
    the tokens before it; first is at least 1."""

    ids: np.ndarray  # int32 [n]
    first: int


class Teacher:
    """The k likeliest next tokens of the model as it is without an adapter, and their
    probabilities.

    k       at most the size of the vocabulary
    cache   a folder: what was computed there for the same model, tokens and k is not computed
            again, in a later run either
    computed   readings that went through the model so far; the others came from the cache
    """

    def __init__(self, model: nn.Module, k: int = K, cache: str | Path | None = None):
        self.model, self.computed = model, 0
        self.head = models.head(model)
        self.k = min(k, self.head.weight.shape[0])
        self.cache = None
        if cache is not None:
            with without_adapter(model):
                self.cache = TeacherCache(cache, f"{fingerprint(model)} {self.k}")

    def targets(self, readings: Sequence[Reading]) -> list[SoftTargets]:
        """For each reading int32 and float16 [n − first, k], the likeliest first."""
        found: list[SoftTargets | None] = [None] * len(readings)
        if self.cache is not None:
            found = [self.cache.get(r.ids, r.first) for r in readings]
        missing = [i for i, targets in enumerate(found) if targets is None]
        # Readings of like length share a pass.
        missing.sort(key=lambda i: -len(readings[i].ids))
        with without_adapter(self.model), torch.no_grad():
            while missing:
                count = max(1, BATCH_TOKENS // len(readings[missing[0]].ids))
                batch, missing = missing[:count], missing[count:]
                fresh = self._read([readings[i] for i in batch])
                for i, targets in zip(batch, fresh, strict=True):
                    found[i] = targets
                if self.cache is not None:
                    self.cache.put([(readings[i].ids, readings[i].first, found[i]) for i in batch])
        return found

    def _read(self, readings: list[Reading]) -> list[SoftTargets]:
        size = max(len(r.ids) for r in readings)
        ids = torch.zeros(len(readings), size, dtype=torch.int64)
        for row, reading in zip(ids, readings, strict=True):
            row[: len(reading.ids)] = torch.from_numpy(reading.ids.astype(np.int64))
        # Padding stands on the right, where causal attention never looks.
        hidden = models.body(self.model)(
            input_ids=ids.to(self.head.weight.device), use_cache=False
        ).last_hidden_state
        # Token t is predicted by row t − 1.
        wanted = [hidden[b, r.first - 1 : len(r.ids) - 1] for b, r in enumerate(readings)]
        likeliest, probs = self._likeliest(torch.cat(wanted))
        self.computed += len(readings)
        ends = np.cumsum([len(w) for w in wanted])[:-1]
        split = zip(np.split(likeliest, ends), np.split(probs, ends), strict=True)
        return [SoftTargets(i.copy(), p.copy()) for i, p in split]

    def _likeliest(self, hidden: Tensor) -> tuple[np.ndarray, np.ndarray]:
        """int32 and float16 [M, k] of hidden states [M, K]."""
        rows = max(1, CHUNK_BYTES // (4 * self.head.weight.shape[0]))
        ids, probs = [], []
        for part in hidden.split(rows):
            z = self.head.logits(part)  # [m, V]
            top = z.topk(self.k, dim=-1)
            ids.append(top.indices.int())
            probs.append((top.values - z.logsumexp(-1, keepdim=True)).exp().half())
        return torch.cat(ids).cpu().numpy(), torch.cat(probs).cpu().numpy()


@contextmanager
def without_adapter(model: nn.Module):
    """Within it the model has its own layers, in evaluation mode."""
    adapter = getattr(model, "_liftcore_adapter", None)
    if adapter is not None:
        adapter.remove()
    try:
        with evaluating(model):
            yield
    finally:
        if adapter is not None:
            adapter.install()
