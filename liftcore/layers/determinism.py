"""The same seed gives the same result on the same device."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch


@contextmanager
def deterministic(device: torch.device | str) -> Generator[None]:
    """Within it torch picks deterministic algorithms on a CUDA device, and puts all back after.

    An op that has none raises RuntimeError: with a mere warning, torch's flash attention would
    take its other backward. Fresh memory is not filled, which would cost a pass over it. cuBLAS
    reads CUBLAS_WORKSPACE_CONFIG once, at its first product: liftcore sets it when it is imported.
    On a CPU nothing changes: liftcore's ops are deterministic there for one number of threads.
    Has not run on a GPU.
    """
    if torch.device(device).type != "cuda":
        yield
        return
    settings: Any = torch.utils.deterministic
    fill = settings.fill_uninitialized_memory
    settings.fill_uninitialized_memory = False
    try:
        with _algorithms(True):
            yield
    finally:
        settings.fill_uninitialized_memory = fill


def any_algorithm() -> AbstractContextManager[None]:
    """Within it torch takes any algorithm, for what has no deterministic one: generating, say."""
    return _algorithms(False)


@contextmanager
def _algorithms(only_deterministic: bool) -> Generator[None]:
    enabled = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(only_deterministic)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(enabled, warn_only=warn_only)


def lacks(error: BaseException) -> bool:
    """Whether an op raised this because it has no deterministic algorithm."""
    text = str(error)
    return "deterministic implementation" in text or "CUBLAS_WORKSPACE_CONFIG" in text
