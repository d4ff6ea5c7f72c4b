"""The kernel benchmark at toy sizes: rows, reasons, and no comparison of wrong numbers."""

import csv

import pytest
import torch

from bench import head_variants, kernels


@pytest.fixture
def toy(monkeypatch, tmp_path):
    pytest.importorskip("matplotlib")
    monkeypatch.setattr(kernels, "MODELS", {"smollm2-135m": kernels.Model(48, 16, 80, 97)})
    monkeypatch.setattr(kernels, "RESULTS", tmp_path)
    return tmp_path


def run(folder, *options):
    code = kernels.main(["--device", "cpu", "--tokens", "16", "--seconds", "0", *options])
    with next(folder.glob("*.csv")).open() as file:
        return code, list(csv.DictReader(file))


def test_rows_reasons_and_plot(toy, capsys):
    code, rows = run(toy, "--rank", "4", "--dtype", "float32")
    assert code == 0 and next(toy.glob("*.png")).stat().st_size > 1000
    assert {r["op"] for r in rows} == set(kernels.OPS)
    for r in rows:
        assert bool(r["milliseconds"]) != r["note"].startswith("not run: ")
        assert r["device"] and "torch=" in r["versions"]
    out = capsys.readouterr().out
    assert "CPU figures" in out and "not run: ours triton" in out


def test_wrong_numbers_are_not_compared(toy, monkeypatch, capsys):
    good = head_variants.VARIANTS["ours, rows known"]

    def halved(problem):
        run = good(problem)
        return lambda: [x / 2 for x in run()]

    monkeypatch.setitem(head_variants.VARIANTS, "ours, rows known", halved)
    code, rows = run(toy, "--op", "head", "--dtype", "float32")
    wrong = [r for r in rows if r["correct"] == "False"]
    assert code == 1 and {r["variant"] for r in wrong} == {"ours, rows known"}
    assert " wrong" in capsys.readouterr().out


def test_the_head_problem_masks_what_it_says():
    p = head_variants.HeadProblem(64, 8, 11, 0.625, torch.device("cpu"), torch.float32)
    assert (p.labels == -100).sum() == 40 and len(p.rows) == 24
