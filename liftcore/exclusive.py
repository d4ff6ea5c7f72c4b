"""One user of a model at a time: each memory puts its own adapter into the model they share."""

from __future__ import annotations

import threading
from weakref import WeakKeyDictionary

from torch import nn

# Beside the models: one that held its lock could be neither copied nor pickled.
_locks: WeakKeyDictionary[nn.Module, threading.RLock] = WeakKeyDictionary()
_guard = threading.Lock()


def alone_with(model: nn.Module) -> threading.RLock:
    """The model's lock, for a `with`: other threads wait, the same one may take it again."""
    with _guard:
        return _locks.setdefault(model, threading.RLock())
