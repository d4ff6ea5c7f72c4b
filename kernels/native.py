"""The CUDA library: where it is, whether it runs here, and a call into it.

libliftcore_cuda.so has a plain C interface (csrc/library.h) and is loaded with ctypes, so that
one build serves every version of torch and Python. LIFTCORE_CUDA_LIBRARY names another file.
Without it, or where it does not run, the ops take their twins in reference.py.
"""

from __future__ import annotations

import ctypes
import functools
import os
from pathlib import Path

import torch
from torch import Tensor

# LIFTCORE_INTERFACE of csrc/library.h.
INTERFACE = 2
NAME = "libliftcore_cuda.so"
# In a checkout; LIFTCORE_CUDA_ARCHITECTURES=90 builds for one architecture alone.
BUILD = "LIFTCORE_CUDA=1 python setup.py build_ext --inplace"

_POINTER, _LONG = ctypes.c_void_p, ctypes.c_int64
_INT, _DOUBLE = ctypes.c_int, ctypes.c_double
SIGNATURES = {
    "liftcore_probe": [_INT],
    "liftcore_segment_batch": [
        *(_POINTER, _LONG, _POINTER, _LONG),  # tokens, prefix
        *(_POINTER, _POINTER, _LONG, _LONG, _LONG, _LONG, _INT),  # tables, sizes, loss
        *(_POINTER,) * 5,  # counter, input_ids, labels, weights, row_index
        *(_LONG, _POINTER, _POINTER),  # max_rows, count, stream
    ],
    "liftcore_lora_norm": [
        *(_POINTER, _LONG, _INT),  # grad and its type
        *(_POINTER, _POINTER, _LONG),  # scratch, rates
        *(_POINTER,) * 3,  # step, norm, status
        *(_DOUBLE,) * 4,  # max_norm, beta1, beta2, weight_decay
        _POINTER,
    ],
    "liftcore_lora_update": [
        *(_POINTER,) * 5,  # master, exp_avg, exp_avg_sq, grad, shadow
        *(_LONG, _INT, _INT),  # size, types of grad and shadow
        _POINTER,
        *(_DOUBLE,) * 3,  # beta1, beta2, eps
        _POINTER,
    ],
}


def load(path: Path | str) -> ctypes.CDLL:
    """The library at `path`; raises OSError when it cannot be loaded or belongs to another
    version of this file."""
    library = ctypes.CDLL(str(path))
    try:
        library.liftcore_interface.restype = ctypes.c_int
        interface = library.liftcore_interface()
    except AttributeError as error:
        raise OSError(f"{path} is not a library of liftcore") from error
    if interface != INTERFACE:
        raise OSError(
            f"{path} has interface {interface}, this version needs {INTERFACE}: rebuild it"
        )
    library.liftcore_error.restype = ctypes.c_char_p
    library.liftcore_error.argtypes = [ctypes.c_int]
    for name, arguments in SIGNATURES.items():
        getattr(library, name).argtypes = arguments
        getattr(library, name).restype = ctypes.c_int
    return library


def file() -> Path:
    """Where the library lies, or would."""
    return Path(os.environ.get("LIFTCORE_CUDA_LIBRARY") or Path(__file__).with_name(NAME))


@functools.cache
def _library() -> tuple[ctypes.CDLL | None, str]:
    """(the library, where it is) or (None, why not)."""
    path = file()
    if not path.is_file():
        return (
            None,
            f"there is no {path.name}: it is built where nvcc and cmake are found, by {BUILD}",
        )
    try:
        return load(path), str(path)
    except OSError as error:
        return None, str(error)


@functools.cache
def _probe(device: int) -> tuple[bool, str]:
    library, where = _library()
    if library is None:
        return False, where
    # The probe makes its device the current one.
    with torch.cuda.device(device):
        code = library.liftcore_probe(device)
    if code:
        return False, f"the library does not run on CUDA device {device}: {_message(library, code)}"
    return True, where


def status(device: torch.device | None = None) -> tuple[bool, str]:
    """(whether the ops run in the library, its path or why not), on `device` or the current GPU."""
    library, where = _library()
    if library is None:
        return False, where
    if torch.version.cuda is None or not torch.cuda.is_available():
        return False, f"{where} is loaded, but there is no CUDA GPU"
    index = None if device is None else device.index
    return _probe(torch.cuda.current_device() if index is None else index)


def live(x: Tensor) -> bool:
    """Whether an op on tensors like x runs in the library. The first call on a device loads the
    kernels there, which must not happen within the capture of a CUDA graph."""
    return x.is_cuda and _probe(x.device.index)[0]


def call(name: str, device: torch.device, *arguments: Tensor | float) -> None:
    """Calls a function of the library on the device's current stream; tensors become pointers.
    Raises RuntimeError with CUDA's message when the launch fails."""
    library, why = _library()
    assert library is not None, why
    with torch.cuda.device(device):
        stream = torch.cuda.current_stream(device).cuda_stream
        values = [a.data_ptr() if isinstance(a, Tensor) else a for a in arguments]
        code = getattr(library, name)(*values, stream)
    if code:
        raise RuntimeError(f"{name} failed: {_message(library, code)}")


def _message(library: ctypes.CDLL, code: int) -> str:
    return f"CUDA error {code}, {library.liftcore_error(code).decode()}"


def need(
    op: str,
    tensors: dict[str, tuple[Tensor, torch.dtype, tuple[int, ...]]],
    device: torch.device,
) -> None:
    """Raises ValueError unless each tensor has its dtype and shape, is contiguous and lies on
    the device."""
    for name, (tensor, dtype, shape) in tensors.items():
        if tensor.dtype != dtype or tuple(tensor.shape) != shape:
            given = f"{tensor.dtype} {list(tensor.shape)}"
            raise ValueError(f"{op}: {name} is {given}, not {dtype} {list(shape)}")
        if not tensor.is_contiguous():
            raise ValueError(f"{op}: {name} is not contiguous")
        if tensor.device != device:
            raise ValueError(f"{op}: {name} is on {tensor.device}, not on {device}")
