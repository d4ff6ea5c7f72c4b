"""What the evaluations share: the summary, the picture, what is said before a run."""

import argparse
import json
import sys

import pytest

from bench.evaluations import evaluate
from bench.evaluations import plot as evaluation_plot


def test_who_draws_a_table_is_not_who_made_the_rows(tmp_path, monkeypatch):
    file, args = tmp_path / "loogle.jsonl", argparse.Namespace(device="cpu", report_only=False)
    (tmp_path / "data").mkdir()
    monkeypatch.setattr(sys, "argv", ["bench", "loogle", str(tmp_path / "data"), "--model", "org/m",
                                      "--documents", "José Luis"])  # fmt: skip
    evaluate.write_summary(args, file, [])
    made = json.loads(file.with_suffix(".json").read_text())
    assert made["command"] == "python -m bench loogle data --model org/m --documents 'José Luis'"
    monkeypatch.setattr(sys, "argv", ["bench", "loogle", "--report-only"])
    monkeypatch.setattr(evaluate, "versions", dict)
    evaluate.write_summary(argparse.Namespace(device="cpu", report_only=True), file, [{"a": 1}])
    again = json.loads(file.with_suffix(".json").read_text())
    assert again == {**made, "groups": [{"a": 1}]}


def test_bars_are_drawn_of_what_is_known(tmp_path, monkeypatch):
    plot = pytest.importorskip("matplotlib.pyplot")

    def group(name, method, **scores):
        return {"group": name, "method": method, "cases": 3, "fit": 3 * bool(scores),
                "scores": scores}  # fmt: skip

    drawn = []
    monkeypatch.setattr(plot, "close", drawn.append)
    groups = [group("a", "icl"), group("a", "lift", f1=0.5), group("cloze", "lift", exact=1.0)]
    assert evaluation_plot.bars(groups, {"f1": "F1"}, tmp_path / "a.png", "T")
    axis = drawn[0].axes[0]
    assert [bar.get_height() for bar in axis.patches] == [50.0]
    assert [t.get_text() for t in axis.get_xticklabels()] == ["a\n(3)"]
    assert "does not fit" in [t.get_text() for t in axis.texts]
