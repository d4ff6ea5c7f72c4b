"""The kernel benchmark at toy sizes: rows, reasons, and no comparison of wrong numbers."""

import csv

import pytest
import torch

from bench import common
from bench.kernels import check as kernel_check
from bench.kernels import head_variants, lora_variants
from bench.kernels import main as kernels


@pytest.fixture
def toy(monkeypatch, tmp_path):
    pytest.importorskip("matplotlib")
    monkeypatch.setattr(kernels, "MODELS", {"smollm2-135m": kernels.Model(48, 16, 80, 97)})
    return tmp_path


def run(folder, *options):
    where = ["--out", str(folder)]
    code = kernels.main(["--device", "cpu", "--tokens", "16", "--seconds", "0", *where, *options])
    with next(folder.glob("*.csv")).open() as file:
        return code, list(csv.DictReader(file))


def test_rows_reasons_and_plot(toy, capsys):
    code, rows = run(toy, "--rank", "4", "--dtype", "float32")
    assert code == 0 and next(toy.glob("*.png")).stat().st_size > 1000
    assert {r["op"] for r in rows} == set(kernels.OPS)
    for r in rows:
        assert bool(r["milliseconds"]) != r["note"].startswith("not run: ")
        assert r["device"] and "torch=" in r["versions"] and "cuda=" in r["versions"]
    widths = {(r["op"], r["shape"]): (r["k"], r["n"], r["v"]) for r in rows}
    assert widths["linear", "down"] == ("80", "48", "") and widths["head", "0.0% masked"][2] == "97"
    assert widths["qkv", "q+k+v"] == ("48", "48+16+16", "")
    out = capsys.readouterr().out
    assert "CPU figures" in out and "not run: ours triton" in out


def test_a_run_that_goes_on_measures_only_what_is_missing(toy, monkeypatch):
    options = ("--op", "linear", "head", "--rank", "4", "--dtype", "float32")
    _, rows = run(toy, *options, "--minutes", "-1")
    assert not rows
    monkeypatch.setattr(kernels, "MASKED", (0.0,))
    code, rows = run(toy, *options, "--resume")
    assert code == 0 and {r["masked"] for r in rows if r["op"] == "head"} == {"0.0"}
    code, again = run(toy, *options, "--resume")
    assert code == 0 and again == rows
    monkeypatch.setattr(kernels, "MASKED", (0.0, 0.5))
    code, more = run(toy, *options, "--resume")
    assert code == 0 and more[: len(rows)] == rows
    assert {r["masked"] for r in more[len(rows) :]} == {"0.5"}


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


def broken(problem):
    raise RuntimeError("no room")


def test_every_length_is_checked(toy, monkeypatch, capsys):
    good = lora_variants.VARIANTS["ours plain"]

    def wrong_when_long(problem):
        run = good(problem)
        return lambda: [x * (1 if len(problem.x) < 20 else 2) for x in run()]

    monkeypatch.setitem(lora_variants.VARIANTS, "ours plain", wrong_when_long)
    code, rows = run(
        toy, "--op", "linear", "--rank", "4", "--dtype", "float32", "--tokens", "16", "24"
    )
    found = {(r["tokens"], r["correct"]) for r in rows if r["variant"] == "ours plain"}
    assert code == 1 and found == {("16", "True"), ("24", "False")}


@pytest.mark.parametrize("variant, wrong", [("ours, rows known", True), ("torch op", False)])
def test_only_a_rounded_loss_of_a_peer_may_be_rough(toy, monkeypatch, variant, wrong):
    good = head_variants.VARIANTS["plain torch"]

    def rough(problem):
        def call():
            loss, *rest = good(problem)()
            return (loss * 1.008).bfloat16(), *rest

        return call

    monkeypatch.setitem(head_variants.VARIANTS, variant, rough)
    code, rows = run(toy, "--op", "head", "--dtype", "float32")
    found = {r["correct"] for r in rows if r["variant"] == variant}
    assert found == {str(not wrong)} and code == int(wrong)


@pytest.mark.parametrize("name", ["base products", "plain torch"])
def test_a_missing_floor_or_bound_ends_nothing(toy, monkeypatch, capsys, name):
    monkeypatch.setitem(lora_variants.VARIANTS, name, broken)
    code, rows = run(toy, "--op", "linear", "--rank", "4", "--dtype", "float32")
    ours = [r for r in rows if r["variant"] == "ours plain"]
    assert code == 0 and all(r["milliseconds"] for r in ours) and list(toy.glob("*.png"))
    assert {r["note"] for r in rows if r["variant"] == name} == {"not run: RuntimeError: no room"}
    if name == "plain torch":
        assert all(r["correct"] == "" and r["note"].startswith("no bound") for r in ours)
        assert " no bound" in capsys.readouterr().out


def test_what_fails_while_timed_is_left_out():
    calls = []

    def fails_late():
        calls.append(1)
        if len(calls) > 3:
            raise RuntimeError("late")

    timer = common.Timer(torch.device("cpu"), 0, (4, 4))
    times, failed = timer.compare({"good": lambda: None, "bad": fails_late})
    assert set(times) == {"good"} and str(failed["bad"]) == "late"


def test_a_dead_gpu_ends_the_run_with_what_there_is(toy, monkeypatch, capsys):
    reason_of = kernel_check.reason_of

    def dies(error, device, name):
        if name == "ours plain":
            raise kernel_check.DeadDevice("ours plain: illegal access")
        return reason_of(error, device, name)

    monkeypatch.setitem(lora_variants.VARIANTS, "ours plain", broken)
    monkeypatch.setattr(kernel_check, "reason_of", dies)
    code, _ = run(toy, "--rank", "4", "--dtype", "float32", "--op", "head", "linear")
    out = capsys.readouterr().out
    assert code == 1 and "the GPU died of ours plain" in out and "linear smollm2-135m k/v" in out
    monkeypatch.undo()

    def raises(device):
        raise RuntimeError("illegal memory access")

    monkeypatch.setattr(torch.cuda, "synchronize", raises)
    with pytest.raises(kernel_check.DeadDevice, match="a peer: ValueError: bad"):
        kernel_check.reason_of(ValueError("bad"), torch.device("cuda"), "a peer")


def test_a_gpu_is_timed_behind_a_pause(monkeypatch):
    """Launches queue up while the device waits, so that Python's own time is not measured."""
    steps = []

    class Event:
        def __init__(self, enable_timing):
            pass

        def record(self):
            steps.append("record")

        def synchronize(self):
            steps.append("synchronize")

        def elapsed_time(self, end):
            return 7.0

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "_sleep", lambda cycles: steps.append(cycles > 0))
    timer = common.Timer(torch.device("cpu"), 0, (1, 1))
    timer.device, timer.flush = torch.device("cuda"), torch.empty(1)
    assert timer._once(lambda: steps.append("run"), 1e-3) == 7e-3
    assert steps == [True, "record", "run", "record", "synchronize"]


def test_a_partial_run_has_a_file_of_its_own(toy):
    run(toy, "--op", "linear", "--rank", "4")
    run(toy, "--op", "linear", "--rank", "8", "--dtype", "float32")
    names = {p.name for p in toy.glob("*.csv")}
    assert len(names) == 2 and "kernels.csv" not in names
    assert any("rank-8" in n and "dtype-float32" in n and "tokens-16" in n for n in names)


def test_the_whole_run_lies_with_the_other_results_of_its_device(toy, monkeypatch):
    """Whatever its time limit: its name says what was measured."""
    monkeypatch.setattr(kernels, "RESULTS", toy)
    monkeypatch.setattr(kernels, "cases", lambda *args: [])
    kernels.main(["--device", "cpu", "--minutes", "1"])
    folder = common.results_name(torch.device("cpu"))
    assert [p.relative_to(toy).as_posix() for p in toy.rglob("*.csv")] == [f"{folder}/kernels.csv"]


@pytest.mark.parametrize("op, widths", [("qkv", [24, 8, 8]), ("gate_up", [40, 40])])
def test_peft_stands_for_a_group_as_separate_layers(op, widths):
    pytest.importorskip("peft")
    p = lora_variants.LoraProblem(op, 9, 16, widths, 4, torch.device("cpu"), torch.float32)
    assert p.x.is_contiguous()
    for name in ("PEFT", "PEFT bf16"):
        got = lora_variants.VARIANTS[name](p)()
        for a, b in zip(got, p.truth(), strict=True):
            assert common.relative_error(a, b) < 1e-5


def test_only_the_concatenated_product_gets_room_beside_x():
    p = lora_variants.LoraProblem("linear", 9, 16, [24], 4, torch.device("cpu"), torch.float32)
    got = lora_variants.VARIANTS["ours concat"](p)()
    assert p.x.is_contiguous()
    for a, b in zip(got, p.truth(), strict=True):
        assert common.relative_error(a, b) < 1e-5


def test_the_truth_of_the_head_does_not_depend_on_its_blocks(monkeypatch):
    p = head_variants.HeadProblem(64, 8, 11, 0.375, torch.device("cpu"), torch.float32)
    whole = p.truth()
    monkeypatch.setattr(head_variants, "TRUTH_ROWS", 7)
    for a, b in zip(p.truth(), whole, strict=True):
        assert common.relative_error(a, b) < 1e-6
