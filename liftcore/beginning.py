"""How an adapter begins where a document decides it, and what is kept of the model for that."""

from __future__ import annotations

import hashlib
import time
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from weakref import WeakKeyDictionary

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from liftcore import locks
from liftcore.config import LiftConfig
from liftcore.embedded import cache_folder
from liftcore.errors import LiftError
from liftcore.files import write_atomically
from liftcore.layers import document_init
from liftcore.layers.document_init import Against
from liftcore.layers.inputs import input_groups
from liftcore.layers.lora import Adapter, without_adapter
from liftcore.model import prefix_ids
from liftcore.questions import own_words
from liftcore.questions.cache import fingerprint
from liftcore.questions.own_words import OwnWords
from liftcore.segments import cut
from liftcore.tokens import Tokenizer

# What is known of a model's own words is kept on disk up to this size, and for each model for as
# long as it lives: reading them takes longer than a short run.
LARGEST_FILE = 256 * 2**20
VERSION = 2  # of what a key stands for
# Rows of own words that are read: more of them take longer than they help.
ROWS = 128
_known: WeakKeyDictionary[nn.Module, dict[str, dict[str, Against]]] = WeakKeyDictionary()


def begin(
    adapter: Adapter,
    tokenizer: Tokenizer,
    documents: Sequence[np.ndarray],
    config: LiftConfig,
    *,
    own: Sequence[OwnWords] | None = None,
    say: Callable[[str, int, int], None] = lambda what, done, of: None,
) -> float:
    """Has a fresh adapter begin as config.adapter_init says; the seconds that it took.

    documents   token ids of those to be trained on, int64 [L] each
    own         rows of the base model's own words, ROWS are enough; None: so many, made where they
                are not known; none of them: what the document says most. `say` hears of their
                making, whose seconds do not count, nor do those of reading them
    """
    if config.adapter_init == "random":
        return 0.0
    against = known(adapter, tokenizer, config, own=own, say=say)
    started, prefix = time.perf_counter(), np.array(prefix_ids(tokenizer), dtype=np.int64)
    rows = []
    for tokens in documents:
        segments = cut(len(tokens), config)
        parts = zip(segments.start, segments.stop, strict=True)
        rows += [np.concatenate([prefix, tokens[start:stop]]) for start, stop in parts]
    document_init.begin(adapter, rows, against, skip=len(prefix))
    return time.perf_counter() - started


def known(
    adapter: Adapter,
    tokenizer: Tokenizer,
    config: LiftConfig,
    *,
    own: Sequence[OwnWords] | None = None,
    say: Callable[[str, int, int], None] = lambda what, done, of: None,
) -> dict[str, Against]:
    """What a beginning needs to know of the model alone; kept with the model and on disk."""
    if own is None:
        own = own_words.rows(adapter.model, tokenizer, ROWS, say=say)
    return known_words(adapter, [each.tokens for each in own], config.init_damping)


def known_words(adapter: Adapter, rows: Sequence[np.ndarray], damping: float) -> dict[str, Against]:
    """document_init.own_words(), kept with the model and on disk."""
    model = adapter.model
    with without_adapter(model):
        key = hashlib.sha256(f"{VERSION} {fingerprint(model)} {damping}".encode())
    for part in (*map(repr, input_groups(adapter)), *(r.tobytes() for r in rows)):
        key.update(part.encode() if isinstance(part, str) else part)
    kept = _known.setdefault(model, {})
    name = key.hexdigest()[:32]
    if name not in kept:
        # One at a time: they are large.
        kept.clear()
        file = cache_folder() / "own-words" / f"{name}.safetensors"
        with locks.making(file):
            kept[name] = _read(file, adapter) or _made(file, adapter, rows, damping)
    return kept[name]


def _made(
    file: Path, adapter: Adapter, rows: Sequence[np.ndarray], damping: float
) -> dict[str, Against]:
    made = document_init.own_words(adapter, rows, damping)
    tensors: dict[str, Tensor] = {}
    for path, against in made.items():
        if against.factor is None:
            return made
        largest = against.factor.abs().max()
        lower = torch.ones_like(against.factor, dtype=torch.bool).tril()
        tensors[path] = (against.factor / largest).half()[lower].cpu()
        tensors[f"{path} scale"] = torch.stack([largest.cpu(), torch.tensor(against.delta)])
    if sum(t.nbytes for t in tensors.values()) <= LARGEST_FILE:
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(file, lambda to: save_file(tensors, to))
        except (LiftError, OSError) as error:
            warnings.warn(f"{error}; the next run computes it anew", stacklevel=4)
    return made


def _read(file: Path, adapter: Adapter) -> dict[str, Against]:
    """What _made() kept; empty when there is no whole file of this adapter."""
    read: dict[str, Against] = {}
    with suppress(OSError, SafetensorError, LookupError, ValueError, RuntimeError):
        tensors = load_file(file)
        for path, *_ in input_groups(adapter):
            largest, delta = tensors[f"{path} scale"].tolist()
            size = int((2 * tensors[path].numel()) ** 0.5)
            factor = torch.zeros(size, size)
            lower = torch.ones_like(factor, dtype=torch.bool).tril()
            factor[lower] = tensors[path].float() * largest
            read[path] = Against(delta, factor.to(adapter.values.device))
        return read
    return {}
