"""The same seed gives the same result on the same device."""

from __future__ import annotations

import os
from contextlib import contextmanager

import torch

WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"


@contextmanager
def deterministic(device: torch.device | str):
    """Within it torch picks deterministic algorithms on a CUDA device, and puts all back after.

    An op that has none warns and runs. CUBLAS_WORKSPACE_CONFIG is set where it is not; cuBLAS
    reads it once, at its first product on a stream, so enter this before that. Fresh memory is
    not filled, which would cost a pass over it. On a CPU nothing changes: liftcore's ops are
    deterministic there for one number of threads. Has not run on a GPU.
    """
    if torch.device(device).type != "cuda":
        yield
        return
    fill = torch.utils.deterministic.fill_uninitialized_memory
    enabled = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    unset = WORKSPACE not in os.environ
    os.environ.setdefault(WORKSPACE, ":4096:8")
    # A caller's own, stricter setting stays.
    torch.use_deterministic_algorithms(True, warn_only=not enabled or warn_only)
    torch.utils.deterministic.fill_uninitialized_memory = False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(enabled, warn_only=warn_only)
        torch.utils.deterministic.fill_uninitialized_memory = fill
        if unset:
            os.environ.pop(WORKSPACE, None)
