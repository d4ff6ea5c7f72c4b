"""The profile of a step and the speed of decoding, at toy sizes on a CPU."""

import csv
from types import SimpleNamespace

import pytest
from tiny import tiny_model

from bench import decode, profile, shapes

pytest.importorskip("peft")


@pytest.fixture
def toy(monkeypatch, tmp_path):
    monkeypatch.setattr(shapes, "build", lambda *args: (tiny_model(), None))

    def run(benchmark, name, *options):
        code = benchmark.main(["--device", "cpu", *options, "--out", str(tmp_path)])
        with (tmp_path / f"{name}.csv").open() as file:
            return code, list(csv.DictReader(file))

    return run


def test_a_profile_lists_what_a_step_runs_the_longest_first(toy, capsys):
    options = ("--tokens", "32", "--segment-length", "16", "--rank", "4", "--steps", "2")
    code, rows = toy(profile, "profile", *options)
    spent = [float(r["milliseconds"]) for r in rows]
    assert code == 0 and spent == sorted(spent, reverse=True) and spent[0] > 0
    names = {r["kernel"] for r in rows}
    assert "aten::mm" in names and not any("profiler" in n.lower() for n in names)
    assert 0 < sum(float(r["share"]) for r in rows) <= 1.05, "the ops run within the wall time"
    out = capsys.readouterr().out
    assert "a step takes" in out and "busy" in out and "ncu" not in out


def test_a_kernel_is_known_by_its_bare_name():
    for full, bare in (
        ("chain_kernel", "chain_kernel"),
        ("void at::native::reduce_kernel<512, 1, at::native::Sum<float>>(int)", "reduce_kernel"),
        ("nvjet_tst_128x256_64x4_1x2_h_bz_coopA_NTN", "nvjet_tst_128x256_64x4_1x2_h_bz_coopA_NTN"),
    ):
        assert profile.function_name(full) == bare


def test_ncu_looks_at_one_launch_of_the_hottest_kernel(tmp_path, monkeypatch):
    asked, args = [], SimpleNamespace(model="llama-3-8b", tokens=8192)

    def run(command, **options):
        asked.append((command, options["timeout"]))
        return SimpleNamespace(returncode=0, stdout="the counters", stderr="")

    monkeypatch.setattr(profile.shutil, "which", lambda name: None)
    assert "not on the path" in profile.ncu("chain_kernel", args, tmp_path, 60)
    monkeypatch.setattr(profile.shutil, "which", lambda name: f"/opt/{name}")
    monkeypatch.setattr(profile.subprocess, "run", run)
    assert profile.ncu("void a::chain_kernel<1>(int)", args, tmp_path, 60).startswith("ncu: ")
    (command, seconds), *rest = asked
    assert not rest and seconds == 60 and "regex:^chain_kernel$" in command
    assert command[command.index("--clock-control") + 1] == "none" and "--once" in command
    assert (tmp_path / "ncu.txt").read_text() == "the counters"


def test_decoding_measures_the_model_alone_and_with_adapters(toy, monkeypatch, capsys):
    def fails(model, config):
        raise RuntimeError("no such peer")

    monkeypatch.setitem(decode.VARIANTS, "absent", fails)
    code, rows = toy(decode, "decode", "--prompt", "5", "--new", "7", "--rounds", "2")
    assert code == 1 and [r["variant"] for r in rows] == list(decode.VARIANTS)
    *ran, absent = rows
    assert all(float(r["slowest"]) <= float(r["tokens_per_second"]) for r in ran)
    # The adapters start at zero: in fp32 all of them say the same.
    assert {r["same"] for r in ran} == {"1.0"}
    assert "no such peer" in absent["note"] and not absent["same"]
    assert "absent: not run" in capsys.readouterr().out


def test_an_adapter_that_says_something_else_shows(toy, monkeypatch):
    def wrong(model, config):
        model.lm_head.weight.data = -model.lm_head.weight.data
        return model

    monkeypatch.setattr(decode, "VARIANTS", {"model alone": decode.alone, "wrong": wrong})
    monkeypatch.setattr(shapes, "twin", lambda model: tiny_model())
    code, rows = toy(decode, "decode", "--prompt", "5", "--new", "7", "--rounds", "1")
    assert code == 0 and float(rows[1]["same"]) < 0.5
