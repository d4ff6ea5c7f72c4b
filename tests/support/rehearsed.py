"""The rehearsal of what runs on a card, at toy sizes, on a stand-in for one; run by
tests/bench/test_bench_rehearsal.py."""

from types import SimpleNamespace

import pytest
import torch

from liftcore.kernels.device import HAS_TRITON, INTERPRET

if not HAS_TRITON or INTERPRET:
    pytest.skip("no Triton that compiles", allow_module_level=True)

from bench import profile, tune
from bench.common import Timer
from bench.kernels import jit
from bench.kernels import main as kernels
from bench.kernels.compile_check import SHARED_LIMIT
from bench.rehearsal.card import stand_in
from bench.rehearsal.main import compile_all, main
from liftcore.kernels.lora_triton import swiglu_backward


def rehearsed(capsys, *options):
    code = main(["--small", "--seconds", "120", *options])
    return code, capsys.readouterr().out


def test_the_kernels_and_a_step_run_to_the_end(capsys, monkeypatch):
    monkeypatch.setattr(kernels, "MASKED", (0.375,))
    code, out = rehearsed(capsys, "--only", "kernels", "profile")
    assert code == 0, out
    lines = {
        line.split()[0]: line for line in out.splitlines() if line[:7] in ("kernels", "profile")
    }
    assert "ran to the end" in out.split("kernels")[1] and lines["profile"].endswith("to the end")
    assert "ours triton: not run" not in out and "wrong" not in out
    assert not torch.cuda.is_available() and not torch.ones(1).is_cuda, "torch is as it was"


def test_what_would_end_a_run_is_told(capsys, monkeypatch):
    monkeypatch.setattr(profile, "build", lambda name, case: torch.ones(2) + case.text_there)
    monkeypatch.setattr(profile, "Case", Mixed)
    code, out = rehearsed(capsys, "--only", "profile")
    assert code == 1 and "two devices" in out


class Mixed:
    def __init__(self, *_):
        self.text_there = torch.ones(2, device="cuda")


def test_a_kernel_that_the_card_cannot_load_is_told(capsys, monkeypatch):
    sizes = iter([SHARED_LIMIT[90], SHARED_LIMIT[90] + 1])

    def compiled(launch, arch):
        return SimpleNamespace(metadata=SimpleNamespace(shared=next(sizes)))

    monkeypatch.setattr(jit, "compiled", compiled)
    with stand_in() as card:
        for rows in (64, 65):
            swiglu_backward(*(torch.empty(rows, 3 * rows, device="cuda") for _ in range(3)), False)
        (error,) = compile_all(card)
    assert "bytes of shared memory" in error


def test_the_ways_of_a_linear_are_measured(monkeypatch):
    monkeypatch.setattr(kernels, "MODELS", {"toy": kernels.Model(64, 32, 96, 128)})
    with stand_in():
        lines = tune.ways("toy", 64, Timer(torch.device("cuda"), 0.0, (1, 1)))
    assert [line[0] for line in lines] == ["toy q/o", "toy k/v", "toy gate/up", "toy down"]
    assert all("-" not in line[2:] for line in lines), "all three run"
