"""The one command for a GPU machine, and the figures of docs/measurements.md."""

import json
import re
import time
from pathlib import Path

import pytest
import torch

from bench import gpu
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
