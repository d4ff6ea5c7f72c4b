"""The recall benchmark: its cases, and a sweep that goes on where it was."""

import json

import numpy as np
import pytest
import torch
from tiny import tiny_model

from bench.recall import main as recall
from bench.recall import official as recall_official
from bench.recall import run as recall_run
from bench.recall import settings as recall_settings
from bench.recall.settings import Case, Setting
from liftcore import beginning, segments
from liftcore.questions.own_words import OwnWords
from liftcore.training.source import count

SHORT = dict(segment_length=64, rank=2, learning_rate=3e-3)


@pytest.fixture
def model(tokenizer):
    return tiny_model(vocab_size=len(tokenizer), pad_token_id=2, hidden_size=24)


def two_cases(passes=2):
    settings = [
        Setting("jitter/all", "schedule", SHORT, passes),
        Setting("overlap/all", "schedule", {**SHORT, "schedule": "overlap"}, passes),
    ]
    return [Case("fiction-0", 0, s) for s in settings]


def untimed(file):
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    for row in rows:
        for point in row["curve"]:
            assert point.pop("seconds") >= 0 and point.pop("cpu_seconds") >= 0
    return rows


def sweep(file, model, tokenizer, todo=None):
    recall.sweep(file, todo or two_cases(), model, tokenizer, length=70, probes=2)


def test_a_killed_sweep_goes_on_and_gives_the_same_file(model, tokenizer, tmp_path, monkeypatch):
    whole, killed = tmp_path / "whole" / "recall.jsonl", tmp_path / "killed" / "recall.jsonl"
    sweep(whole, model, tokenizer)
    rows = untimed(whole)
    assert [r["setting"] for r in rows] == ["jitter/all", "overlap/all"]
    assert getattr(model, "_liftcore_adapter", None) is None
    killed.parent.mkdir()
    lines = whole.read_text().splitlines(keepends=True)
    killed.write_text(lines[0] + lines[1][:40])
    ran = []
    monkeypatch.setattr(recall_run, "run", _counting(recall_run.run, ran))
    sweep(killed, model, tokenizer)
    assert ran == ["overlap/all"] and untimed(killed) == rows
    sweep(killed, model, tokenizer)
    assert ran == ["overlap/all"] and untimed(killed) == rows


def _counting(run, ran):
    def counted(case, *rest):
        ran.append(case.setting.name)
        return run(case, *rest)

    return counted


def test_points_lie_at_the_budgets_and_a_run_stops_when_it_recalls_enough(
    model, tokenizer, tmp_path, monkeypatch
):
    case = Case("fiction-0", 0, Setting("jitter/all", "schedule", dict(SHORT), 6))
    sample = _fiction(tokenizer)
    said = iter([0.2, 0.96, 0.97])
    monkeypatch.setattr(recall_run.probes, "recall", lambda *a: next(said))
    row = recall_run.run(case, model, tokenizer, sample, 2)
    length, passes = len(sample.tokens), [p["passes"] for p in row["curve"]]
    assert [p["recall"] for p in row["curve"]] == [0.2, 0.96]
    for budget, seen in zip(recall_run.probes.BUDGETS, passes, strict=False):
        assert budget * length <= seen < budget * length + 64
    assert row["config"]["epochs"] == 6 and row["facts"] == len(sample.facts) > 5


def test_the_last_point_is_the_end_of_the_run(model, tokenizer, monkeypatch):
    monkeypatch.setattr(recall_run.probes, "recall", lambda *a: 0.1)
    sample = _fiction(tokenizer)
    case = Case(
        "fiction-0", 1, Setting("overlap/all", "schedule", two_cases()[1].setting.changes, 5)
    )
    row = recall_run.run(case, model, tokenizer, sample, 2)
    config = recall_run.config_of(case, tokenizer, sample)
    _, passes = count(len(sample.tokens), config)
    assert row["curve"][-1]["passes"] == passes > 4 * len(sample.tokens)
    assert row["seed"] == row["config"]["seed"] == 1


def _fiction(tokenizer):
    from bench.recall import documents as recall_documents

    return recall_documents.read("fiction-0", tokenizer, 64)


def test_the_official_recipe_sees_every_segment_and_leaves_the_model(tokenizer, monkeypatch):
    pytest.importorskip("peft")
    pytest.importorskip("accelerate")
    model = tiny_model(vocab_size=len(tokenizer), pad_token_id=2)
    before = {n: p.clone() for n, p in model.named_parameters()}
    setting = Setting(
        "official", "official", dict(segment_length=64, rank=2, learning_rate=1e-2), 4, trainer=True
    )
    sample, case = _fiction(tokenizer), Case("fiction-0", 0, setting)
    said = []
    monkeypatch.setattr(recall_run.probes, "recall", lambda m, *a: said.append(m) or 0.1)
    row = recall_run.run(case, model, tokenizer, sample, 2)
    cut = segments.cut(len(sample.tokens), setting.config(0))
    epochs = row["config"]["epochs"]
    assert row["curve"][-1]["passes"] == epochs * cut.tokens >= 4 * len(sample.tokens)
    assert row["curve"][-1]["loss"] < row["curve"][0]["loss"] and said[0] is model
    after = dict(model.named_parameters())
    assert before.keys() == after.keys()
    assert all(torch.equal(before[n], after[n]) and not after[n].requires_grad for n in before)


def test_cuts_in_turns_and_the_rows_that_a_document_is_set_against(model, tokenizer, monkeypatch):
    sample, seen, against = _fiction(tokenizer), [], []

    def looks_on(adapter, source, **options):
        seen.append([[s.ids.tolist() for s in source.objectives[0].samples(e)] for e in range(4)])

    rows = [OwnWords(np.arange(3, 12), 1) for _ in range(200)]
    monkeypatch.setattr(recall_run, "train", looks_on)
    monkeypatch.setattr(recall_run.own_words, "rows", lambda m, t, count: rows[:count])
    monkeypatch.setattr(
        recall_run.beginning, "known", lambda *a, own, **k: against.append(len(own)) or {}
    )
    monkeypatch.setattr(recall_run.beginning, "begin", lambda *args, own, **options: 0.0)
    for name in ("6 epochs, 2 cuts in turns", "6 epochs, 32 own words", "6 epochs, 0 own words"):
        setting, watch = recall_settings.SETTINGS[name], recall_run.Stopwatch([1])
        config = setting.config(0).replace(rank=2)
        with recall_run.trained(setting, config, model, tokenizer, sample.tokens, watch):
            pass
    assert seen[0][0] == seen[0][2] != seen[0][1] == seen[0][3]
    assert seen[1][0] != seen[1][2] and against == [beginning.ROWS, 32, 0]


def test_padded_rows_of_the_official_recipe_are_masked():
    rows = [torch.tensor([5, 6, 7]), torch.tensor([8])]
    made = recall_official.collate(rows)
    assert made["input_ids"].tolist() == [[5, 6, 7], [8, 0, 0]]
    assert made["labels"].tolist() == [[5, 6, 7], [8, -100, -100]]
    assert made["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]


def test_the_grid_is_balanced_when_it_is_cut_short():
    keys = [(c.document, c.seed, c.setting.name) for c in recall_settings.cases()]
    assert len(set(keys)) == len(keys)
    grid = {s.name for s in recall_settings.SCHEDULES}
    assert len([k for k in keys if k[2] in grid]) == 6 * 3 * 5
    for first in (3, 18, 35, 61):
        runs = [k[2] for k in keys[:first]]
        main = [runs.count(n) for n in ("jitter/all", "overlap/all", "trivial/all")]
        assert len(set(main)) == 1
