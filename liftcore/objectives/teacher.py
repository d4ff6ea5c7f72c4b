"""The teacher of distillation: the model without its adapter, and its likeliest tokens."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Generator, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from liftcore import model as models
from liftcore.layers.batches import by_length, padded
from liftcore.layers.lora import without_adapter
from liftcore.model import evaluating
from liftcore.objectives.sample import SoftTargets
from liftcore.questions.cache import Cache, fingerprint

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
            with as_teacher(model):
                self.cache = TeacherCache(cache, f"{fingerprint(model)} {self.k}")

    def targets(self, readings: Sequence[Reading]) -> list[SoftTargets]:
        """For each reading int32 and float16 [n − first, k], the likeliest first."""
        known: dict[int, SoftTargets] = {}
        for i, r in enumerate(readings):
            targets = None if self.cache is None else self.cache.get(r.ids, r.first)
            if targets is not None:
                known[i] = targets
        missing = [i for i in range(len(readings)) if i not in known]
        with as_teacher(self.model), torch.no_grad():
            for part in by_length([len(readings[i].ids) for i in missing], BATCH_TOKENS):
                batch = [missing[n] for n in part]
                known |= zip(batch, self._read([readings[i] for i in batch]), strict=True)
                if self.cache is not None:
                    self.cache.put([(readings[i].ids, readings[i].first, known[i]) for i in batch])
        return [known[i] for i in range(len(readings))]

    def _read(self, readings: list[Reading]) -> list[SoftTargets]:
        ids = padded([r.ids for r in readings])
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


@contextlib.contextmanager
def as_teacher(model: nn.Module) -> Generator[None]:
    """Within it the model has its own layers, in evaluation mode."""
    with without_adapter(model), evaluating(model):
        yield


class TeacherCache(Cache):
    """Targets in safetensors files of a batch each, so that a resumed run has them: <key>.ids
    int32 [m, k] and <key>.probs float16 [m, k].

    `teacher` says whose they are and how many a token has: another's count as missing.
    """

    def __init__(self, folder: str | Path, teacher: str):
        super().__init__(folder)
        self.teacher = teacher
        self.files: dict[str, Path] = {}
        for file in sorted(self.folder.glob("*.safetensors")):
            with contextlib.suppress(SafetensorError, OSError), safe_open(file, "pt") as kept:
                names = [n.removesuffix(".ids") for n in kept.keys() if n.endswith(".ids")]  # noqa: SIM118
                self.files |= dict.fromkeys(names, file)

    def get(self, ids: np.ndarray, first: int) -> SoftTargets | None:
        """The targets of the tokens ids[first:], or None."""
        key = self._key(ids, first)
        if key not in self.files:
            return None
        try:
            with safe_open(self.files[key], "pt") as kept:
                likeliest, probs = (kept.get_tensor(f"{key}.{n}").numpy() for n in ("ids", "probs"))
        except (SafetensorError, OSError):
            return None
        fits = likeliest.shape == probs.shape and len(likeliest) == len(ids) - first
        return SoftTargets(likeliest, probs) if fits else None

    def put(self, entries: Iterable[tuple[np.ndarray, int, SoftTargets]]) -> None:
        """Keeps targets, each with the tokens that the teacher read and the first it speaks of."""
        tensors, keys = {}, []
        for ids, first, targets in entries:
            keys.append(self._key(ids, first))
            tensors[f"{keys[-1]}.ids"] = torch.from_numpy(targets.ids)
            tensors[f"{keys[-1]}.probs"] = torch.from_numpy(targets.probs)
        name = hashlib.sha256("".join(keys).encode()).hexdigest()[:32]
        file = self.folder / f"{name}.safetensors"
        if self._write(file, lambda temporary: save_file(tensors, temporary)):
            self.files |= dict.fromkeys(keys, file)

    def _key(self, ids: np.ndarray, first: int) -> str:
        digest = hashlib.sha256(f"{self.teacher} {first} ".encode())
        digest.update(np.ascontiguousarray(ids, dtype=np.int32).tobytes())
        return digest.hexdigest()
