"""The flags of deterministic algorithms: on for CUDA only, and put back."""

import os

import pytest
import torch

from liftcore.determinism import WORKSPACE, deterministic


def flags():
    return (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
        torch.utils.deterministic.fill_uninitialized_memory,
        os.environ.get(WORKSPACE),
    )


@pytest.fixture
def clean(monkeypatch):
    monkeypatch.delenv(WORKSPACE, raising=False)
    before = flags()
    yield
    torch.use_deterministic_algorithms(before[0], warn_only=before[1])
    torch.utils.deterministic.fill_uninitialized_memory = before[2]


def test_a_cpu_is_left_alone(clean):
    before = flags()
    with deterministic("cpu"):
        assert flags() == before


@pytest.mark.parametrize("workspace", [None, ":16:8"])
def test_cuda_flags_are_set_and_come_back(clean, monkeypatch, workspace):
    if workspace:
        monkeypatch.setenv(WORKSPACE, workspace)
    before = flags()
    with pytest.raises(ZeroDivisionError), deterministic(torch.device("cuda", 0)):
        assert flags() == (True, True, False, workspace or ":4096:8")
        raise ZeroDivisionError
    assert flags() == before


def test_a_callers_strict_setting_stays_strict(clean):
    torch.use_deterministic_algorithms(True)
    before = flags()
    with deterministic("cuda"):
        assert flags()[:2] == (True, False)
    assert flags() == before
