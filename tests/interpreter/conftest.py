"""These tests need TRITON_INTERPRET=1 before Triton is imported: test_interpreter.py runs them."""

import functools
import os
from dataclasses import replace
from importlib.metadata import version
from types import SimpleNamespace

import numpy as np
import pytest
import torch

if os.environ.get("TRITON_INTERPRET") != "1":
    collect_ignore_glob = ["test_*.py"]


@pytest.fixture(autouse=True)
def poisoned():
    """Memory that an op allocates and does not write holds NaN."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    assert torch.empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)


def _let_triton_3_6_read_numpy_2_4():
    """Triton 3.6 turns arrays of one element into an int, which NumPy refuses since 2.4."""
    from triton.runtime import interpreter

    patch = interpreter._patch_lang_tensor

    def patched(tensor, scope):
        patch(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.squeeze()))

    interpreter._patch_lang_tensor = patched


def _interpret_quickly():
    """Leaves out what the interpreter does again and again: most of the time of a kernel.

    It looks through all of Triton's language at every call of a device function, to put its own
    functions there; it makes a table for every dtype that it asks for; and it computes each sum
    and product of integers a second time in int64, to see one overflow that matrices as small as
    these cannot have.
    """
    import triton.language as tl
    from triton.runtime import interpreter

    patch = interpreter._patch_lang

    @functools.cache
    def everywhere():
        patch(SimpleNamespace(__globals__={"tl": tl, "core": tl.core}))

    def patched(fn):
        everywhere()
        return interpreter._LangPatchScope()  # nothing to take back

    interpreter._patch_lang = patched
    of_scalar = functools.cache(interpreter._get_np_dtype)

    def of_any(dtype):
        dtype = dtype.scalar
        return np.dtype(np.uint64) if dtype.is_ptr() else of_scalar(dtype)

    interpreter._get_np_dtype = of_any
    builder = interpreter.interpreter_builder
    builder.options = replace(builder.options, sanitize_overflow=False)


if os.environ.get("TRITON_INTERPRET") == "1":
    if version("triton").startswith("3.6."):
        _let_triton_3_6_read_numpy_2_4()
    _interpret_quickly()
