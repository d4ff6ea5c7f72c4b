"""The flags of deterministic algorithms: on for CUDA only, and put back."""

import os
import subprocess
import sys

import pytest
import torch

from liftcore.layers.determinism import deterministic, lacks


def flags():
    return (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
        torch.utils.deterministic.fill_uninitialized_memory,
    )


@pytest.fixture
def clean():
    before = flags()
    yield
    torch.use_deterministic_algorithms(before[0], warn_only=before[1])
    torch.utils.deterministic.fill_uninitialized_memory = before[2]


def test_a_cpu_is_left_alone(clean):
    before = flags()
    with deterministic("cpu"):
        assert flags() == before


@pytest.mark.parametrize("warn_only", [False, True])
def test_cuda_flags_are_strict_and_come_back(clean, warn_only):
    torch.use_deterministic_algorithms(warn_only, warn_only=warn_only)
    before = flags()
    with pytest.raises(ZeroDivisionError), deterministic(torch.device("cuda", 0)):
        assert flags() == (True, False, False)
        raise ZeroDivisionError
    assert flags() == before


def test_what_torch_raises_is_known(clean):
    with deterministic("cuda"), pytest.raises(RuntimeError) as raised:
        torch.empty(3).put_(torch.zeros(2, dtype=torch.int64), torch.ones(2))
    assert lacks(raised.value) and not lacks(RuntimeError("shapes do not fit"))


@pytest.mark.parametrize("own", ["", ":16:8"])
def test_the_workspace_of_cublas_is_set_at_import_unless_the_user_did(own):
    environment = {k: v for k, v in os.environ.items() if k != "CUBLAS_WORKSPACE_CONFIG"}
    if own:
        environment["CUBLAS_WORKSPACE_CONFIG"] = own
    code = "import liftcore, os; print(os.environ['CUBLAS_WORKSPACE_CONFIG'])"
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == (own or ":4096:8")
