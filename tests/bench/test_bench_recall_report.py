"""What the recall benchmark makes of its rows: bands, comparisons, tables and the picture."""

import json

import numpy as np
import pytest

from bench import common, plot_names
from bench.recall import analysis as recall_analysis
from bench.recall import compare as recall_compare
from bench.recall import main as recall
from bench.recall import settings as recall_settings
from liftcore import segments
from liftcore.config import LiftConfig


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
    comparison = recall_compare.compare(ours, theirs, 2)
    assert (comparison["pairs"], comparison["documents"], comparison["better"]) == (4, 2, 4)
    assert comparison["difference"] == pytest.approx(0.1)
    assert recall_compare.compare(ours, [], 2) is None


@pytest.mark.parametrize("gap, expected", [(0.2, "confirmed"), (-0.2, "refuted"), (0.0, "open")])
def test_the_verdict_follows_the_band(gap, expected, rng):
    base = rng.uniform(0.3, 0.5, size=12)
    wobble = rng.permutation(np.repeat([-0.05, 0.05], 6))
    cases = [(d, s) for d in "abcdef" for s in range(2)]
    rows = [row([b] * 6, document=d, seed=s) for b, (d, s) in zip(base, cases, strict=True)]
    others = base - gap + wobble
    rows += [row([b] * 6, "overlap/all", d, s) for b, (d, s) in zip(others, cases, strict=True)]
    part = recall_compare.findings(rows)["jitter beats overlap"]
    assert [f["verdict"] for f in part] == [expected] * len(recall_compare.AT)
    assert [f["passes"] for f in part] == list(recall_compare.AT)
    few = [r for r in rows if r["document"] in "ab"]
    part = recall_compare.findings(few)["jitter beats overlap"]
    assert {f["verdict"] for f in part} == {"open"}


def test_seconds_use_the_rate_that_was_measured_alone():
    rows = [row([0.9], rate=50.0), row([0.9], "overlap/all", rate=50.0)]
    by_setting = {s["setting"]: s for s in recall_analysis.summary(rows, {"jitter/all": 400.0})}
    assert by_setting["jitter/all"]["seconds_to_90"] == pytest.approx(2 * 100 / 400)
    assert by_setting["overlap/all"]["seconds_to_90"] == pytest.approx(2 * 100 / 50)
    assert by_setting["overlap/all"]["timed"] != by_setting["jitter/all"]["timed"] == "alone"
    assert (
        by_setting["jitter/all"]["facts"] == 0.75 and by_setting["jitter/all"]["text_loss"] == 0.5
    )


def test_the_pareto_front_has_what_nothing_beats():
    def setting(name, seconds, chat):
        return {"setting": name, "seconds_to_90": seconds, "chat_loss": chat}

    settings = [
        setting("fast", 1, 0.5), setting("kept", 3, 0.1), setting("worse", 3, 0.6),
        setting("never", None, 0.0), setting("tied", 1, 0.5),
    ]  # fmt: skip
    assert recall_analysis.front(settings) == ["fast", "kept", "tied"]


def test_settings_are_compared_after_the_same_number_of_scored_tokens():
    """Where "new" scores 2 of 5 tokens that it reads, "all" is compared after 4 passes with it
    after 10, and a run of "new" that ends before is left out."""
    overlap = {"schedule": "overlap", "segment_length": 8, "lr_schedule": "constant"}
    new = {**overlap, "overlap_loss": "new"}
    share = recall_compare.scored_share({**row([0]), "config": new})
    cut = segments.cut(100, LiftConfig(**new))
    # Every token counts once.
    assert share == pytest.approx(100 / cut.tokens) and 0.3 < share < 0.5
    assert recall_compare.scored_share({**row([0]), "config": overlap}) == 1
    rows = [{**row([0.3, 0.6, 0.9], "overlap/all", d), "config": overlap} for d in "abc"]
    slow = [0.1 * i for i in range(8)]
    rows += [{**row(slow, "overlap/new", d), "config": new} for d in "ab"]
    rows += [{**row(slow[:3], "overlap/new", "c"), "config": new}]
    (finding,) = recall_compare.findings(rows)["all tokens beat new ones, per scored token"]
    then = 0.1 * (4 / share / 2 - 1)
    assert (finding["passes"], finding["scored"], finding["pairs"]) == (4, True, 2)
    assert finding["difference"] == pytest.approx(0.6 - then, abs=1e-4)
    assert finding["verdict"] == "open"


def official(*args, **about):
    return {**row(*args, **about), "line": "official"}


def test_the_official_recipe_is_compared_on_the_same_documents_and_seeds():
    """ours: 2 passes on a, 4 on b, 3.8 on c; theirs: 4 on a, 20 on b, at half the speed."""
    rows = [row([0.9], document="a"), row([0.5, 0.9], document="b"), row([0, 1.0], document="c")]
    rows += [official([0.5, 0.9], "official", "a", rate=50.0)]
    rows += [official([0.1] * 9 + [0.9], "official", "b", rate=50.0)]
    settings = recall_analysis.summary(rows, {})
    (ratio,) = recall_compare.against(rows, settings, "official")
    assert (ratio["base"], ratio["pairs"], ratio["reached"]) == ("jitter/all", 2, True)
    assert ratio["ratio"] == pytest.approx(2 * np.median([4 / 2, 20 / 4]))
    assert "7.0 times the seconds of jitter/all" in ratio["text"] and "2 pairs" in ratio["text"]
    # A base that fails on b cannot look better for it.
    rows[1] = row([0.5, 0.6], document="b")
    settings = recall_analysis.summary(rows, {})
    (ratio,) = recall_compare.against(rows, settings, "official")
    assert ratio["ratio"] == pytest.approx(2 * np.median([4 / 2, 0]))


def test_a_peer_that_never_arrives_gets_a_lower_bound():
    rows = [row([0.9]), official([0.1, 0.2], "official 5e-5", rate=50.0)]
    (ratio,) = recall_compare.against(rows, recall_analysis.summary(rows, {}), "official")
    assert not ratio["reached"] and "more than" in ratio["text"] and "1 pair " in ratio["text"]
    assert ratio["ratio"] == pytest.approx((4 / 2) * (100 / 50))
    # The soonest setting is a base only when it has enough runs.
    for count, bases in ((3, {"jitter/all": 4}), (4, {"jitter/all": 4, "rate 2e-3": 8})):
        sooner = [{**row([0.9], "rate 2e-3", seed=s, rate=200.0), "line": "rate"}
                  for s in range(count)]  # fmt: skip
        settings = recall_analysis.summary(rows + sooner, {})
        ratios = recall_compare.against(rows + sooner, settings, "official")
        assert {f["base"]: f["ratio"] for f in ratios} == pytest.approx(bases)


def many_rows(rng):
    names = [s.name for s in recall_settings.SCHEDULES]
    rows = [row([*rng.uniform(0, 0.8, 3), 0.96], n, d, s, chat=rng.uniform(1, 1.05))
            for n in names for d in "ab" for s in range(2)]  # fmt: skip
    rows += [official([0.3] * 8, "official 3e-4", rate=50.0)]
    rows += [official([0.3] * 4 + [0.95], "official 1e-3", rate=50.0, chat=1.02)]
    return [*rows, {**row([0.97] * 3, "rate 2e-3", chat=0.2), "line": "rate"}]


def test_the_picture_names_what_is_few_and_what_never_arrived(rng):
    recall_plot = pytest.importorskip("bench.recall.plot")
    from matplotlib.text import Text

    rows = many_rows(rng)
    figure = recall_plot.draw(rows, recall_analysis.summary(rows, {}))
    passes, seconds, soonest, price = figure.axes
    # A band for each schedule, and none for the single runs of the official recipe.
    assert len(passes.collections) == len(seconds.collections) == 5 and len(seconds.lines) == 8
    said = [t.get_text() for t in soonest.texts]
    assert "never in 16 passes, n = 1" in said and any(t.endswith(" s, n = 1") for t in said)
    labels = [t.get_text() for t in soonest.get_yticklabels()]
    assert len(labels) == 8 and "official 3e-4" in labels
    figure.canvas.draw()
    # Of the words alone, without the line to the dot.
    boxes, frame = [Text.get_window_extent(t) for t in price.texts], price.bbox
    assert len(boxes) == 7 and "official 1e-3 (n = 1)" in [t.get_text() for t in price.texts]
    for i, box in enumerate(boxes):
        assert frame.x0 <= box.x0 and box.x1 <= frame.x1
        assert frame.y0 <= box.y0 and box.y1 <= frame.y1
        assert not any(box.overlaps(other) for other in boxes[:i])
    for axis in (passes, seconds):
        assert axis.get_legend().get_window_extent().y1 < axis.bbox.y0
    recall_plot.plt.close(figure)


@pytest.mark.parametrize("name", ["recall", "understand"])
def test_the_committed_summary_is_of_all_rows(name):
    """A summary that is older than its rows is to be made anew with --plot-only."""
    for file in common.RESULTS.glob(f"*/{name}.jsonl"):
        result = json.loads(file.with_suffix(".json").read_text())
        assert result["rows"] == len(file.read_text().splitlines()), file.parent.name


def test_plot_only_draws_from_the_file(tmp_path, capsys, rng):
    pytest.importorskip("matplotlib")
    rows = many_rows(rng)
    (tmp_path / "recall.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    assert recall.main(["--plot-only", "--device", "cpu", "--out", str(tmp_path)]) == 0
    assert (tmp_path / "recall.png").stat().st_size > 10_000
    result = json.loads((tmp_path / "recall.json").read_text())
    assert result["rows"] == len(rows) and "rate 2e-3" in result["pareto"]
    assert "all tokens beat new ones" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="no rows"):
        recall.main(["--plot-only", "--device", "cpu", "--out", str(tmp_path / "empty")])


@pytest.mark.parametrize("value", [0.0, 0.5, 1.0])
def test_names_are_moved_apart_and_stay_within_the_axes(value):
    moved = plot_names.apart([value] * 20, gap=0.04)
    assert min(np.diff(sorted(moved))) > 0.0399 and 0 < min(moved) < max(moved) < 1


def test_the_library_default_is_one_of_the_settings():
    default = recall_settings.SETTINGS[recall_compare.DEFAULT]
    assert default.config(seed=0, epochs=1) == LiftConfig()
