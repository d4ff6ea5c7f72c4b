"""The recall benchmark: curves, bands, comparisons, and a sweep that goes on where it was."""

import json

import numpy as np
import pytest
import torch
from tiny import tiny_model

from bench import recall, recall_analysis, recall_official, recall_run, recall_settings
from bench.recall_settings import Case, Setting
from liftcore import batch, segments

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
    for budget, seen in zip(recall_run.BUDGETS, passes, strict=False):
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
    _, passes = batch.count(len(sample.tokens), config)
    assert row["curve"][-1]["passes"] == passes > 4 * len(sample.tokens)
    assert row["seed"] == row["config"]["seed"] == 1


def _fiction(tokenizer):
    from bench import recall_documents

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


def test_padded_rows_of_the_official_recipe_are_masked():
    rows = [torch.tensor([5, 6, 7]), torch.tensor([8])]
    made = recall_official.collate(rows)
    assert made["input_ids"].tolist() == [[5, 6, 7], [8, 0, 0]]
    assert made["labels"].tolist() == [[5, 6, 7], [8, -100, -100]]
    assert made["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]


def row(recalls, setting="jitter/all", document="a", seed=0, rate=100.0, chat=1.0, start=0.0):
    points = [
        {"passes": 200 * (i + 1), "recall": r, "cpu_seconds": 200 * (i + 1) / rate}
        for i, r in enumerate(recalls)
    ]
    return {
        "setting": setting, "line": "schedule", "document": document, "seed": seed, "tokens": 100,
        "curve": points, "before": {"recall": start, "text": 3.0, "chat": 1.0}, "probes": 16,
        "after": {"text": 3.5, "chat": 1.0 + chat}, "facts": 4, "facts_after": 3,
        "config": {"lr_schedule": "constant"}, "device": "test", "versions": {},
    }  # fmt: skip


def test_passes_to_a_target_lie_on_the_line_between_two_points():
    assert recall_analysis.passes_to(row([0.5, 1.0])) == pytest.approx(2 + 2 * 0.4 / 0.5)
    assert recall_analysis.passes_to(row([0.5, 0.89])) == float("inf")
    assert recall_analysis.passes_to(row([0.95], start=0.85)) == pytest.approx(1.0)
    cosine = {**row([0.5, 1.0]), "config": {"lr_schedule": "cosine"}}
    assert recall_analysis.passes_to(cosine) == 4


def test_a_run_that_was_stopped_keeps_its_recall_and_another_is_unknown():
    grid = np.array([0.0, 1.0, 2.0, 9.0])
    assert recall_analysis.recall_at(row([0.5, 1.0]), grid).tolist() == [0, 0.25, 0.5, 1.0]
    open_end = recall_analysis.recall_at(row([0.5, 0.6]), grid)
    assert open_end[:3].tolist() == [0, 0.25, 0.5] and np.isnan(open_end[3])


def test_a_band_holds_the_spread_of_documents_not_only_of_seeds(rng):
    """Seeds that agree within documents that differ must still give a wide band."""
    rows = [row([0.5], document=d, seed=s) for d in "abcd" for s in range(3)]
    values = np.repeat(rng.permutation(4).astype(float), 3)
    mean, low, high = recall_analysis.bootstrap(rows, values)
    # Twelve independent runs would give a band of about 1.3.
    assert low < mean < high and mean == 1.5 and high - low > 1.7
    infinite = np.full(12, np.inf)
    assert recall_analysis.bootstrap(rows, infinite, np.median)[2] == np.inf


def test_settings_are_compared_on_the_same_documents_and_seeds():
    ours = [row([0.2 * s, 0.9], document=d, seed=s) for d in "ab" for s in range(3)]
    theirs = [row([0.2 * s - 0.1, 0.9], "overlap/all", d, s) for d in "ab" for s in range(2)]
    found = recall_analysis.compare(ours, theirs, 2)
    assert (found["pairs"], found["documents"], found["better"]) == (4, 2, 4)
    assert found["difference"] == pytest.approx(0.1)
    assert recall_analysis.compare(ours, [], 2) is None


@pytest.mark.parametrize("gap, expected", [(0.2, "confirmed"), (-0.2, "refuted"), (0.0, "open")])
def test_the_verdict_follows_the_band(gap, expected, rng):
    base = rng.uniform(0.3, 0.5, size=12)
    wobble = rng.permutation(np.repeat([-0.05, 0.05], 6))
    cases = [(d, s) for d in "abcdef" for s in range(2)]
    rows = [row([b] * 6, document=d, seed=s) for b, (d, s) in zip(base, cases, strict=True)]
    others = base - gap + wobble
    rows += [row([b] * 6, "overlap/all", d, s) for b, (d, s) in zip(others, cases, strict=True)]
    part = recall_analysis.findings(rows)["jitter beats overlap"]
    assert [f["verdict"] for f in part] == [expected] * len(recall_analysis.AT)
    assert [f["passes"] for f in part] == list(recall_analysis.AT)
    few = [r for r in rows if r["document"] in "ab"]
    part = recall_analysis.findings(few)["jitter beats overlap"]
    assert {f["verdict"] for f in part} == {"open"}


def test_seconds_use_the_rate_that_was_measured_alone():
    rows = [row([0.9], rate=50.0), row([0.9], "overlap/all", rate=50.0)]
    found = {s["setting"]: s for s in recall_analysis.summary(rows, {"jitter/all": 400.0})}
    assert found["jitter/all"]["seconds_to_90"] == pytest.approx(2 * 100 / 400)
    assert found["overlap/all"]["seconds_to_90"] == pytest.approx(2 * 100 / 50)
    assert found["overlap/all"]["timed"] != found["jitter/all"]["timed"] == "alone"
    assert found["jitter/all"]["facts"] == 0.75 and found["jitter/all"]["text_loss"] == 0.5


def test_the_pareto_front_has_what_nothing_beats():
    def setting(name, seconds, chat):
        return {"setting": name, "seconds_to_90": seconds, "chat_loss": chat}

    settings = [
        setting("fast", 1, 0.5), setting("kept", 3, 0.1), setting("worse", 3, 0.6),
        setting("never", None, 0.0), setting("tied", 1, 0.5),
    ]  # fmt: skip
    assert recall_analysis.front(settings) == ["fast", "kept", "tied"]


def test_a_peer_that_never_arrives_gets_a_lower_bound():
    peer = {**row([0.1, 0.2], "official 5e-5", rate=50.0), "line": "official"}
    settings = recall_analysis.summary([row([0.9]), peer], {})
    (found,) = recall_analysis.against(settings, "official")
    assert not found["reached"] and "more than" in found["text"]
    assert found["ratio"] == pytest.approx((4 / 2) * (100 / 50))
    sooner = {**row([0.9], "rate 2e-3", rate=200.0), "line": "rate"}
    settings = recall_analysis.summary([row([0.9]), peer, sooner], {})
    ratios = {f["base"]: f["ratio"] for f in recall_analysis.against(settings, "official")}
    assert ratios == pytest.approx({"jitter/all": 4, "rate 2e-3": 8})


def test_plot_only_draws_from_the_file(tmp_path, capsys, rng):
    pytest.importorskip("matplotlib")
    names = [s.name for s in recall_settings.SCHEDULES]
    rows = [
        row([*rng.uniform(0, 0.8, 3), 0.96], n, document=d, seed=s)
        for n in names
        for d in "ab"
        for s in range(2)
    ]
    rows += [{**row([0.3] * 8, "official 3e-4", rate=50.0), "line": "official"}]
    rows += [{**row([0.97] * 3, "rate 2e-3", chat=0.2), "line": "rate"}]
    (tmp_path / "recall.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    assert recall.main(["--plot-only", "--device", "cpu", "--out", str(tmp_path)]) == 0
    assert (tmp_path / "recall.png").stat().st_size > 10_000
    found = json.loads((tmp_path / "recall.json").read_text())
    assert found["rows"] == len(rows) and "rate 2e-3" in found["pareto"]
    assert "all tokens beat new ones" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="no rows"):
        recall.main(["--plot-only", "--device", "cpu", "--out", str(tmp_path / "empty")])


def test_the_grid_is_balanced_when_it_is_cut_short():
    keys = [(c.document, c.seed, c.setting.name) for c in recall_settings.cases()]
    assert len(set(keys)) == len(keys)
    grid = {s.name for s in recall_settings.SCHEDULES}
    assert len([k for k in keys if k[2] in grid]) == 6 * 3 * 5
    for count in (3, 18, 35, 61):
        runs = [k[2] for k in keys[:count]]
        main = [runs.count(n) for n in ("jitter/all", "overlap/all", "trivial/all")]
        assert len(set(main)) == 1
