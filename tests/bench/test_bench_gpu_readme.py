"""The one command for a GPU machine, and the figures of docs/measurements.md."""

import json
import os
import re
import tarfile
import time
from pathlib import Path

import pytest
import torch

from bench import gpu
from bench.__main__ import BENCHMARKS
from bench.readme import main as readme
from bench.readme import measured as readme_measured
from liftcore import embedded


def test_without_a_gpu_every_part_is_named_as_skipped(capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu.main(["--minutes", "1"]) == 0
    out = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in out] == [p.name for p in gpu.PARTS]
    assert all("skipped" in line for line in out)


@pytest.fixture
def card(monkeypatch, tmp_path):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Test Card")
    monkeypatch.setattr(gpu, "RESULTS", tmp_path)
    return tmp_path / "test-card"


def test_results_are_kept_as_they_come_and_failures_are_told(card, monkeypatch, capsys):
    parts = (
        gpu.Part("good", ("-c", "print('fine')"), 0.4),
        gpu.Part("bad", ("-c", "raise SystemExit('no room')"), 0.4),
        gpu.Part("absent", ("-c", ""), 0.1, ("no_such_module",)),
        gpu.Part("writes", ("-c", "import os; open(os.environ['MADE'], 'w')"), 0.1),
    )
    monkeypatch.setattr(gpu, "PARTS", parts)
    monkeypatch.setenv("MADE", str(card / "made-1.csv"))
    assert gpu.main(["--minutes", "5"]) == 1
    parts_run = json.loads((card / "gpu.json").read_text())["parts"]
    assert [p["ran"] for p in parts_run] == [True, True, False, True]
    assert (card / "good.log").read_text() == "fine\n" and (card / "made-1.csv").exists()
    out = capsys.readouterr().out
    assert "failed: no room" in out and "no_such_module not installed" in out


def test_recall_needs_the_embedded_model(tmp_path, monkeypatch):
    (recall,) = [p for p in gpu.PARTS if p.name == "recall"]
    monkeypatch.setenv("LIFTCORE_CACHE", str(tmp_path))
    monkeypatch.setattr(embedded, "GGUF", "no such file")
    result = gpu.run(recall, 0.01, tmp_path)
    assert not result["ran"] and gpu.EMBEDDED in result["reason"]
    embedded._converted().mkdir()
    (embedded._converted() / "config.json").touch()
    assert gpu.is_there(gpu.EMBEDDED) and gpu.is_there("json") and not gpu.is_there("no_such_one")


def test_a_part_that_hangs_is_cut_off_with_what_it_started(tmp_path):
    child = (
        "import subprocess as s; p = s.Popen(['sleep', '60']); print(p.pid, flush=True); p.wait()"
    )
    result = gpu.run(gpu.Part("hangs", ("-c", child), 1.0), 0.05, tmp_path)
    assert result["code"] is None and result["seconds"] < 30 and "cut off" in gpu.said(result)
    state = Path(f"/proc/{(tmp_path / 'hangs.log').read_text().strip()}/stat")
    # Gone, or dead and not yet collected.
    for _ in range(100):
        if not state.exists() or state.read_text().split()[2] == "Z":
            break
        time.sleep(0.05)
    else:
        raise AssertionError("what a part started lives on")


def test_the_tests_come_first_and_those_of_steps_before_all_others():
    first, *rest = gpu.PARTS
    files = [a for a in first.command if a.startswith("tests/")]
    assert first.name == "tests" and files[0] == "tests/gpu/test_steps_gpu.py"
    assert {*files} == {f"tests/gpu/{f.name}" for f in (gpu.ROOT / "tests/gpu").glob("test_*.py")}
    assert [p.minutes for p in rest] == sorted((p.minutes for p in rest), key=lambda m: m == 0)
    # Every part is a benchmark that there is, with options that it takes.
    for part in rest:
        assert part.command[:2] == ("-m", "bench") and part.command[2] in BENCHMARKS


def test_boxes_share_the_time_and_what_is_left_goes_to_parts_without_one():
    parts = [gpu.Part("a", (), 6), gpu.Part("b", (), 3), gpu.Part("c", (), 0)]
    assert gpu.boxes(parts, 18) == {"a": 12, "b": 6, "c": 0}
    assert gpu.boxes(parts[1:], 3) == {"b": 3, "c": 0} and gpu.boxes(parts[2:], 3) == {"c": 0}


def test_the_same_command_goes_on_where_it_was(card, monkeypatch, capsys):
    """What is done is left out; what failed, was cut off or had no time runs again."""
    begun, ends = [], {"a": 0, "b": 1, "c": None}

    def run(part, minutes, folder, fresh):
        begun.append((part.name, round(minutes), fresh))
        return {"part": part.name, "ran": True, "seconds": 1.0, "code": ends[part.name],
                "last_line": "no", "command": ""}  # fmt: skip

    monkeypatch.setattr(gpu, "run", run)
    monkeypatch.setattr(gpu, "PARTS", [gpu.Part("a", (), 6), gpu.Part("b", (), 3),
                                       gpu.Part("c", (), 0)])  # fmt: skip
    assert gpu.main(["--minutes", "18"]) == 1
    assert begun == [("a", 12, False), ("b", 6, False), ("c", 18, False)]
    ends["b"] = 0
    begun.clear()
    assert gpu.main(["--minutes", "18"]) == 0 and [name for name, *_ in begun] == ["b", "c"]
    assert "done before" in capsys.readouterr().out
    begun.clear()
    assert gpu.main(["--minutes", "18", "--fresh"]) == 0
    assert [(name, fresh) for name, _, fresh in begun] == [("a", True), ("b", True), ("c", True)]
    begun.clear()
    monkeypatch.setattr(gpu, "versions", lambda: {"torch": "another"})
    gpu.main(["--minutes", "18"])
    assert [name for name, *_ in begun] == ["a", "b", "c"]


def test_resuming_and_measuring_anew_are_options_of_the_part(tmp_path):
    part = gpu.Part("says", ("-c", "import sys; print(sys.argv[1:])", "{folder}"), 1, (),
                    ("--resume",), ("--fresh",))  # fmt: skip
    gpu.run(part, 1, tmp_path)
    assert (tmp_path / "says.log").read_text() == f"['{tmp_path}', '--resume']\n"
    gpu.run(part, 1, tmp_path, fresh=True)
    assert "'--fresh'" in (tmp_path / "says.log").read_text()


def test_the_archive_fits_and_names_what_it_leaves_out(tmp_path):
    folder = tmp_path / "card"
    (folder / "deeper").mkdir(parents=True)
    (folder / "rows.csv").write_text("a,b\n1,2\n")
    (folder / "deeper" / "more.jsonl").write_text("{}\n" * 1000)
    (folder / "trace.bin").write_bytes(os.urandom(2**20))
    archive = tmp_path / "card.tar.gz"
    assert gpu.pack(folder, archive, 16) == []
    assert gpu.pack(folder, archive, 0.5) == ["card/trace.bin"]
    assert archive.stat().st_size < 2**19
    with tarfile.open(archive) as tar:
        assert sorted(tar.getnames()) == ["card/deeper/more.jsonl", "card/rows.csv"]


def test_no_part_is_begun_when_the_time_is_over(card, capsys):
    assert gpu.main(["--minutes", "0.1"]) == 0
    assert "the time is over" in capsys.readouterr().out
    assert not list(card.glob("*.log"))


def test_the_page_of_measurements_agrees_with_the_results():
    text = readme.PAGE.read_text()
    assert readme.rewritten(text) == text
    names = [name for _, name, _ in readme.MARKED.findall(text)]
    assert sorted(names) == sorted(readme.TABLES)


def test_the_pictures_of_the_page_are_there():
    pictures = re.findall(r"!\[.*?\]\((.*?)\)", readme.PAGE.read_text())
    assert pictures and all((readme.PAGE.parent / picture).exists() for picture in pictures)


def test_a_task_of_one_question_and_a_score_of_zeros_are_left_out(tmp_path):
    def group(task: str, cases: int, f1: float) -> dict:
        scores = {"token_f1": f1, "exact_match": 0.0, "bleu_1": None}
        return {
            "group": task, "method": "lift", "cases": cases, "fit": cases, "scores": scores
        }  # fmt: skip

    groups = [group("many", 6, 0.25), group("none right", 2, 0.0), group("one", 1, 1.0)]
    (tmp_path / "loogle.json").write_text(json.dumps({"groups": groups}))
    assert readme.TABLES["loogle"](tmp_path).splitlines() == [
        "| task | method | questions | F1 |",
        "| --- | --- | --- | --- |",
        "| many | lift | 6 | 25.0 |",
        "| none right | lift | 2 | 0.0 |",
    ]


def test_a_marked_table_is_replaced_and_the_rest_is_left(tmp_path):
    part = [
        {"passes": 8, "difference": 0.21, "low": 0.1, "high": 0.3, "better": 5, "pairs": 6,
         "verdict": "confirmed"}
    ]  # fmt: skip
    (tmp_path / "recall.json").write_text(json.dumps({"findings": {"a beats b": part}}))
    text = "before\n<!-- bench: recall-findings -->\nold 0.99\n<!-- /bench -->\nafter 0.99\n"
    made = readme.rewritten(text, tmp_path)
    assert "old" not in made and made.startswith("before\n") and made.endswith("after 0.99\n")
    assert "| a beats b | 8 | +0.21 (+0.10 to +0.30) | 5 of 6 | confirmed |" in made
    assert readme.rewritten(made, tmp_path) == made
    with pytest.raises(KeyError, match="unknown"):
        readme.rewritten("<!-- bench: unknown -->\n<!-- /bench -->", tmp_path)


def test_the_measured_table_follows_the_files(tmp_path):
    run = {"seed": 0, "recall_before": 0.02, "recall_after": 0.99, "facts_before": 0, "facts": 40,
           "facts_after": 37, "training_seconds": 46.4, "seconds": 89, "tokens": 1983,
           "token_passes": 23796}  # fmt: skip
    runs = [run, {**run, "training_seconds": 50.8}, {**run, "seed": 1, "recall_after": 0.5}]
    (tmp_path / "demo.json").write_text(json.dumps({"command": "bench demo", "runs": runs}))
    rows = {what: figure for what, figure, _ in readme_measured.rows(tmp_path)}
    assert rows["training (23,796 token-passes)"] == "46 to 51 s"
    assert rows["another document (seed 1): recall and facts after"] == "50.0 %; 37 of 40"
    (tmp_path / "kernels.csv").write_text(
        "op,model,tokens,masked,variant,milliseconds,correct,command\n"
        'head,m,128,0.0,"ours, rows known",5,True,c\nhead,m,512,0.0,"ours, rows known",12,True,c\n'
        "head,m,512,0.0,plain torch,9,True,c\nhead,m,512,0.0,torch op,1,False,c\n"
    )
    _, figure, _ = readme_measured.rows(tmp_path)[-1]
    # The larger size only, and nothing that computed wrong numbers.
    assert figure == "12, 9 ms"
