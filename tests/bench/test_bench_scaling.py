"""The scaling benchmark: fits, crossings, points in processes of their own, and a redraw."""

import csv
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tiny import tiny_model

from bench.scaling import fit as scaling_fit
from bench.scaling import main as scaling
from bench.scaling import report as scaling_report
from bench.scaling import run as scaling_run
from bench.scaling.fit import Fit, Line
from liftcore.config import LiftConfig
from liftcore.errors import LiftError

LENGTHS = [1024, 2048, 4096, 8192, 16384]


@pytest.mark.parametrize("degree", [1, 2])
def test_a_fit_finds_the_coefficients(degree, rng):
    known = rng.uniform(0.5, 2, size=degree + 1) * np.array([1.0, 1e-3, 1e-7])[: degree + 1]
    values = sum(c * np.array(LENGTHS, dtype=float) ** i for i, c in enumerate(known))
    fitted = scaling_fit.fit(LENGTHS, values, degree)
    assert np.allclose(fitted.coefficients, known, rtol=1e-6) and fitted.r2 > 1 - 1e-9
    assert fitted(3000) == pytest.approx(sum(c * 3000.0**i for i, c in enumerate(known)))


def test_a_line_does_not_pass_for_a_parabola(rng):
    values = 1 + 1e-7 * np.array(LENGTHS) ** 2.0
    assert scaling_fit.fit(LENGTHS, values, 1).r2 < 0.99
    with pytest.raises(ValueError, match="do not determine"):
        scaling_fit.fit(LENGTHS[:2], values[:2], 2)


def test_crossings_of_known_curves():
    line, parabola = Fit((10.0, 2.0), 1.0), Fit((0.0, 1.0, 0.5), 1.0)
    # 0.5 n² + n = 2 n + 10 at n = 1 + sqrt(21).
    assert scaling_fit.crossing(line, parabola) == pytest.approx(1 + 21**0.5)
    # (n - 2) (n - 5): between the two LIFT is dearer, so that only the second one counts.
    twice = scaling_fit.crossing(Fit((0.0, 7.0), 1.0), Fit((10.0, 0.0, 1.0), 1.0))
    assert twice == pytest.approx(5)
    assert scaling_fit.crossing(Fit((1.0, 0.5), 1.0), Fit((2.0, 0.6), 1.0)) == 0.0
    assert scaling_fit.crossing(Fit((1.0, 0.5), 1.0), Fit((9.0, 0.4), 1.0)) is None


def test_lines_that_share_no_length_cross_beyond_what_was_measured():
    def line(way, lengths, *first):
        rows = [{"tokens": n} for n in lengths]
        made = Line(way, rows, None, lengths=lengths, first=Fit(first, 1.0))
        made.question = made.token = Fit((0.0,), 1.0)
        return made

    lift = line("jitter", [1024, 2048], 10.0, 2e-3)
    for lengths, within in (([4096, 8192], False), ([1024, 8192], False), ([1024, 2048], True)):
        lines = {"jitter": lift, "icl": line("icl", lengths, 0.0, 0.0, 5.5e-6)}
        cross = scaling_report.crossings(lines)
        once = [c for c in cross if c["epochs"] == 1 and not c["questions"]]
        assert 1024 < once[0]["tokens"] < 2048 and once[0]["within_measured_lengths"] == within


def test_a_model_that_cannot_be_had_is_measured_as_a_shape(monkeypatch):
    """The embedded model needs a package; its cost does not depend on its weights."""

    def absent(name, device):
        raise LiftError("the embedded model is not installed")

    monkeypatch.setattr(scaling_run.shapes.models, "load", absent)
    monkeypatch.setattr(scaling_run.shapes, "config", lambda *a: tiny_model().config)
    model = scaling_run.load("smollm2-135m", torch.device("cpu"))
    assert model.config.hidden_size == 48 and not model.training
    with pytest.raises(LiftError):
        scaling_run.load("a-folder", torch.device("cpu"))


def test_the_cost_of_questions():
    first, question, token = Fit((1.0, 2.0), 1.0), Fit((0.5, 0.1), 1.0), Fit((0.01, 0.001), 1.0)
    answer = scaling_fit.ANSWER - 1
    for q, epochs in ((0, 1), (1, 1), (10, 12)):
        asked = max(q, 1) * (0.5 + 0.1 * 7) + q * answer * (0.01 + 0.001 * 7)
        seconds = scaling_fit.cost(first, question, token, q, epochs)(7)
        assert seconds == pytest.approx(epochs * (1 + 2 * 7) + asked)


@pytest.fixture(scope="module")
def tiny():
    return tiny_model(dtype=torch.float32, max_position_embeddings=512)


def test_chunked_prefill_answers_like_one_piece(tiny, monkeypatch):
    """The honest baseline must be in-context learning: its cache holds the whole document."""
    said = []
    head = scaling_run.models.head(tiny)
    monkeypatch.setattr(type(head), "logits", _listening(type(head).logits, said))
    ids = np.random.default_rng(5).integers(3, 200, size=90)
    for chunk in (16, 512):
        monkeypatch.setitem(scaling_run.CHUNK, "cpu", chunk)
        scaling_run._icl(tiny, ids, LiftConfig())
    half = len(said) // 2
    assert half == 1 + scaling_run.STEPS
    for a, b in zip(said[:half], said[half:], strict=True):
        assert torch.allclose(a, b, atol=1e-4)
    question = torch.from_numpy(np.concatenate([ids, ids[: scaling_run.QUESTION]])[None])
    assert torch.allclose(said[0], tiny(input_ids=question).logits[:, -1], atol=1e-4)


def _listening(logits, said):
    def listen(self, hidden):
        said.append(logits(self, hidden))
        return said[-1]

    return listen


def test_a_point_of_lift_trains_one_epoch_and_leaves_the_model(tiny):
    config = LiftConfig(segment_length=32, rank=2)
    point = scaling_run.measure("overlap", tiny, 100, config)
    assert point["passes"] > 200 and point["first_seconds"] > 0 and not point["oom"]
    assert scaling_run.measure("jitter", tiny, 100, config)["passes"] <= 100
    assert getattr(tiny, "_liftcore_adapter", None) is None


def test_memory_that_ends_is_a_result_and_any_other_error_is_not(tiny, monkeypatch):
    def fails(message):
        def run(*args):
            raise RuntimeError(message)

        return run

    monkeypatch.setattr(scaling_run, "_naive", fails("DefaultCPUAllocator: can't allocate memory"))
    assert scaling_run.measure("naive", tiny, 64, LiftConfig()) == {"oom": True}
    monkeypatch.setattr(scaling_run, "_naive", fails("shapes do not fit"))
    with pytest.raises(RuntimeError, match="shapes"):
        scaling_run.measure("naive", tiny, 64, LiftConfig())


@pytest.mark.parametrize("code, said", [(-9, None), (0, True)])
def test_a_point_is_told_its_memory_and_one_that_is_killed_had_too_little(code, said, monkeypatch):
    asked = []

    def run(command, **options):
        asked.extend(command)
        text = "a warning\n" + json.dumps({"oom": True}) if said else ""
        return SimpleNamespace(returncode=code, stdout=text, stderr="")

    monkeypatch.setattr(scaling.subprocess, "run", run)
    args = SimpleNamespace(device="cpu", model="test", memory_gib=2.5)
    assert scaling.point("naive", 64, args, 1.0) == {"oom": True}
    assert asked[asked.index("--memory-gib") + 1] == "2.5"


def test_points_are_measured_once_and_in_processes_of_their_own(tiny_folder, tmp_path, monkeypatch):
    options = ["--device", "cpu", "--model", str(tiny_folder), "--out", str(tmp_path)]
    options += ["--lengths", "64", "--only", "naive"]
    assert scaling.main(options) == 0
    rows = scaling.read_rows(tmp_path / "scaling.csv")
    assert [(r["way"], r["tokens"], r["oom"]) for r in rows] == [("naive", 64, False)]
    # Far less than this process holds, which has more than a tiny model in it.
    assert all(0 < r["peak_bytes"] < 3 * 2**30 and r["first_seconds"] > 0 for r in rows)
    asked = []
    monkeypatch.setattr(
        scaling, "point", lambda way, n, *a: asked.append((way, n)) or {"oom": True}
    )
    options += ["icl", "--lengths", "64", "128"]
    scaling.main(options)
    again = scaling.read_rows(tmp_path / "scaling.csv")
    # Memory ended at the first length of ICL: no longer one is tried, then or later.
    assert asked == [("icl", 64), ("naive", 128)]
    assert again[0] == rows[0] and [r["oom"] for r in again] == [False, True, True]
    scaling.main(options)
    assert len(asked) == 2


def test_the_cheapest_point_comes_first_and_none_that_would_not_fit(tmp_path, monkeypatch):
    asked = []

    def point(way, tokens, args, limit):
        asked.append((way, tokens))
        slow = 3.0 if way == "icl" else 1.0
        return {"first_seconds": slow * tokens, "oom": False}

    monkeypatch.setattr(scaling, "point", point)
    args = SimpleNamespace(
        only=["icl", "jitter"], lengths=[1, 2, 4, 8], model="test", device=torch.device("cpu")
    )
    rows = SimpleNamespace(add=lambda **row: None)
    # jitter needs at most 2 and 4 for the next two, ICL 12, then jitter 8.
    scaling.climb(args, rows, {}, 9.0)
    assert asked == [("icl", 1), ("jitter", 1), ("jitter", 2), ("jitter", 4), ("jitter", 8)]


def made_rows():
    rows = []
    for n in LENGTHS:
        lift = {"question_seconds": 0.2, "token_seconds": 0.05, "peak_bytes": 2e9}
        rows += [
            {"way": "jitter", "tokens": n, "first_seconds": 1 + 2e-3 * n, **lift},
            {"way": "overlap", "tokens": n, "first_seconds": 1 + 5e-3 * n, **lift},
            {
                "way": "icl", "tokens": n, "first_seconds": 1 + 1e-3 * n + 1e-7 * n * n,
                "question_seconds": 0.1 + 1e-5 * n, "token_seconds": 0.05 + 1e-6 * n,
                "peak_bytes": 1e9 + 1e5 * n,
            },
            {"way": "naive", "tokens": n, "first_seconds": 1 + 2e-3 * n + 1e-7 * n * n,
             "peak_bytes": 1e9 + 3e5 * n} if n < 16384 else {"way": "naive", "tokens": n},
        ]  # fmt: skip
    fixed = {"model": "test", "device": "test", "versions": "", "command": "", "config": ""}
    return [{**fixed, **r, "oom": "first_seconds" not in r} for r in rows]


def test_crossings_of_a_whole_table():
    lines = scaling_report.lines_of(made_rows())
    assert lines["naive"].oom == 16384 and lines["icl"].oom is None
    crossed = {
        (c["schedule"], c["epochs"], c["questions"]): c for c in scaling_report.crossings(lines)
    }
    # 1 + 2e-3 n + 0.2 = 1 + 1e-3 n + 1e-7 n² + 0.1 + 1e-5 n
    expected = max(np.roots([1e-7, 1e-5 - 1e-3, -0.1]))
    assert crossed["jitter", 1, 0]["tokens"] == pytest.approx(expected, abs=2)
    assert crossed["jitter", 1, 0]["within_measured_lengths"]
    assert crossed["overlap", 1, 0]["tokens"] > crossed["jitter", 1, 0]["tokens"]
    assert not crossed["jitter", 12, 0]["within_measured_lengths"]
    assert crossed["jitter", 1, 100]["tokens"] < crossed["jitter", 1, 1]["tokens"]


def test_plot_only_redraws_from_the_csv(tmp_path, capsys, monkeypatch):
    pytest.importorskip("matplotlib")
    with (tmp_path / "scaling.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, [*scaling.COLUMNS, "device", "versions", "command"])
        writer.writeheader()
        writer.writerows(made_rows())
    monkeypatch.setattr(scaling, "point", None)
    assert scaling.main(["--plot-only", "--device", "cpu", "--out", str(tmp_path)]) == 0
    assert (tmp_path / "scaling.png").stat().st_size > 10_000
    result = json.loads((tmp_path / "scaling.json").read_text())
    assert result["lines"]["naive"]["out_of_memory_at"] == 16384
    out = capsys.readouterr().out
    assert "no memory at 16,384" in out and len(out.split("right:")[0].strip().splitlines()) == 5
    crossings = [c["tokens"] for c in result["crossings"]
                 if c["schedule"] == "jitter" and c["questions"] == 1]  # fmt: skip
    assert len(crossings) == 2 and " / ".join(f"{n:,}" for n in crossings) in out


@pytest.mark.parametrize("fits", [True, False])
def test_a_length_without_memory_is_a_red_cross_on_a_dashed_line(fits):
    """Also where too few points ran for a fit to place it."""
    scaling_plot = pytest.importorskip("bench.scaling.plot")
    rows = [r for r in made_rows() if fits or r["way"] != "naive" or r["tokens"] > 4096]
    lines = scaling_report.lines_of(rows)
    assert (lines["naive"].first is not None) == fits
    figure = scaling_plot.draw(rows, lines, scaling_report.crossings(lines))
    expected = [1 + 2e-3 * 16384 + 1e-7 * 16384**2, (1e9 + 3e5 * 16384) / 2**30]
    for axis, value in zip(figure.axes, expected, strict=False):
        (cross,) = [line for line in axis.lines if line.get_marker() == "x"]
        assert list(cross.get_xdata()) == [16384] and cross.get_color() == scaling_plot.RED
        assert list(cross.get_ydata()) == pytest.approx([value if fits else 1.0])
        dashed = [line for line in axis.lines if line.get_linestyle() == "--"]
        naive = [d for d in dashed if d.get_color() == scaling_plot.COLOURS["naive"]]
        assert [min(d.get_xdata()) for d in naive] == ([8192] if fits else [])
        named = [text.get_text() for text in axis.get_legend().get_texts()]
        assert named.count("extrapolated") == named.count("out of memory") == 1
    scaling_plot.plt.close(figure)


def test_answers_beyond_the_measured_lengths_are_dashed_too():
    scaling_plot = pytest.importorskip("bench.scaling.plot")
    rows = [r for r in made_rows() if r["way"] != "icl" or r["tokens"] < 16384]
    lines = scaling_report.lines_of(rows)
    figure = scaling_plot.draw(rows, lines, scaling_report.crossings(lines))
    drawn = [line for line in figure.axes[2].lines if len(line.get_xdata()) > 10]
    for way, longest in (("icl", 8192), ("jitter", 16384)):
        own = [d for d in drawn if d.get_color() == scaling_plot.COLOURS[way]]
        assert {max(d.get_xdata()) for d in own if d.get_linestyle() == "-"} == {longest}
        assert [min(d.get_xdata()) for d in own if d.get_linestyle() == "--"] == [longest] * 3
    scaling_plot.plt.close(figure)


def test_memory_of_training_is_a_constant_and_that_of_a_prompt_a_line(rng):
    rows = made_rows()
    peaks = 2e9 + rng.normal(0, 1e6, size=len(LENGTHS))
    for row, peak in zip((r for r in rows if r["way"] == "jitter"), peaks, strict=True):
        row["peak_bytes"] = peak
    lines = scaling_report.lines_of(rows)
    assert lines["jitter"].memory.coefficients == (np.median(peaks),)
    assert lines["icl"].memory.coefficients == pytest.approx((1e9, 1e5))
    described = {way: scaling_report._described(lines[way])["memory"] for way in ("jitter", "icl")}
    assert described["jitter"]["form"].startswith("constant") and "r2" not in described["jitter"]
    assert described["icl"]["form"] == "straight line" and described["icl"]["r2"] > 0.999


def test_where_memory_ends_is_told_by_the_peaks():
    def rows(way, peaks):
        lengths = [8192 * 2**i for i in range(len(peaks))]
        costs = dict(first_seconds=1.0, question_seconds=1.0, token_seconds=1.0, oom=False)
        return [
            dict(way=way, tokens=n, peak_bytes=peak, **costs)
            for n, peak in zip(lengths, peaks, strict=True)
        ]

    given = rows("icl", [15 * 2**30 + n * 2**17 for n in (8192, 16384, 32768)])
    given += rows("jitter", [37.0 * 2**30, 37.1 * 2**30, 37.0 * 2**30])
    given += [*rows("naive", [2.0**30]), dict(way="naive", tokens=16384, oom=True)]
    given += rows("overlap", [2.0**30])
    icl, jitter, naive, overlap = scaling_report.memory_ends(
        scaling_report.lines_of(given), 78 * 2**30
    )
    assert "16.0 GiB at 8,192 tokens, 19.0 at 32,768" in icl
    assert icl.endswith(f"{round(63 * 2**13, -3):,}")
    assert "does not grow" in jitter and "at 16,384" in naive and "too few" in overlap


def test_rows_of_another_model_stay_out(tmp_path):
    other = [{**r, "model": "other", "first_seconds": 9.0} for r in made_rows() if not r["oom"]]
    result = scaling_report.report([*other, *made_rows()], tmp_path)
    assert result["model"] == "test"
    assert result["lines"]["jitter"]["first"]["coefficients"] == pytest.approx((1, 2e-3))
    result = scaling_report.report([*other, *made_rows()], tmp_path, "other")
    assert result["lines"]["jitter"]["first"]["coefficients"] == pytest.approx((9, 0), abs=1e-6)
    with pytest.raises(SystemExit, match="no rows of third"):
        scaling_report.report(other, tmp_path, "third")


def test_a_torn_row_is_left_out(tmp_path):
    file = tmp_path / "scaling.csv"
    file.write_text("way,tokens,passes,first_seconds,question_seconds,token_seconds,peak_bytes,oom\n"
                    "icl,64,64,1.5,0.1,0.2,100,False\nicl,128,12")  # fmt: skip
    (row,) = scaling.read_rows(file)
    assert row["tokens"] == 64 and row["first_seconds"] == 1.5 and row["oom"] is False
