"""What the ops know of a device: whether Triton runs there, its architecture, its processors."""

from __future__ import annotations

import functools
import importlib.util
import os
from contextlib import AbstractContextManager, nullcontext
from importlib import metadata
from typing import Any

import torch
from torch import Tensor

# Architectures that launches are planned for; the last is that of the meta device.
planned: list[int] = []
# A100, RTX 4090, H100 and H200, B200, RTX 5090
PROCESSORS = {80: 108, 89: 128, 90: 132, 100: 148, 120: 170}


def read_facts(device: torch.device) -> tuple[int, int]:
    """(architecture, processors) of a device that is there."""
    if device.type != "cuda":
        return 0, 3  # few, so that a program of the interpreter runs several tiles
    card = torch.cuda.get_device_properties(device)
    return 10 * card.major + card.minor, card.multi_processor_count


facts = functools.cache(read_facts)


def architecture(device: torch.device) -> int:
    """Compute capability as 80, 90, 100; 0 for the interpreter on a CPU."""
    if device.type == "meta":
        return planned[-1]
    # torch.compile folds the plain call into a constant and warns of a cache.
    return (read_facts if torch.compiler.is_compiling() else facts)(device)[0]


def processors(device: torch.device) -> int:
    """Streaming multiprocessors."""
    return PROCESSORS[planned[-1]] if device.type == "meta" else facts(device)[1]


def on_device(x: Tensor) -> AbstractContextManager[Any]:
    """Triton launches on the current device: make it the one of x."""
    if x.device.type == "cuda" and x.device.index != torch.cuda.current_device():
        return torch.cuda.device(x.device)
    return nullcontext()


# TRITON_INTERPRET=1 asks for the Triton path on CPU tensors; Triton reads it when imported.
INTERPRET = os.environ.get("TRITON_INTERPRET", "0") == "1"


def _has_triton() -> bool:
    """Whether Triton 3.6 or newer targets NVIDIA GPUs here; the kernels run on no older one."""
    if torch.version.hip is not None or importlib.util.find_spec("triton") is None:
        return False
    try:
        version = metadata.version("triton")
    except metadata.PackageNotFoundError:  # a distribution of another name
        import triton

        version = triton.__version__
    return tuple(int(part) for part in version.split(".")[:2]) >= (3, 6)


HAS_TRITON = _has_triton()


def interpreting() -> bool:
    """True when CPU tensors take the Triton path."""
    return INTERPRET and HAS_TRITON
