"""These tests need TRITON_INTERPRET=1 before Triton is imported: test_interpreter.py runs them."""

import os
from importlib.metadata import version

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


if os.environ.get("TRITON_INTERPRET") == "1" and version("triton").startswith("3.6."):
    _let_triton_3_6_read_numpy_2_4()
