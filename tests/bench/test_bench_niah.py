"""The needle test: true depths, kills at any moment, and the picture."""

import json
import signal

import numpy as np
import pytest
from extras import needs
from killing import forked, kill, wait_for
from papers import docx, epub, paragraph, pdf

from bench.evaluations import cases, evaluate, niah
from bench.evaluations import niah_documents as stacks
from bench.evaluations.cases import Case, Results
from liftcore.errors import LiftError, UsageError
from liftcore.output import STATE
from liftcore.questions.windows import sentences

WORDS = ("wind", "harbour", "keeper", "lamp", "stone", "boat", "night", "water", "letter", "road")


def essays(rng, number=6):
    """Sentences of 4 to 12 words."""
    return [
        " ".join(
            " ".join(rng.choice(WORDS, size=rng.integers(4, 13))).capitalize() + "."
            for _ in range(40)
        )
        for _ in range(number)
    ]


@pytest.mark.parametrize("length", [300, 900])
def test_needles_stand_at_their_true_depths(rng, tokenizer, length):
    depths = [0, 0.1, 0.25, 0.5, 0.75, 0.9, 1]
    needles = stacks.make_needles(depths, 1, int(rng.integers(1000)))
    made = stacks.haystack(essays(rng), tokenizer, length, needles, int(rng.integers(1000)))
    text, tokens = made.document.text, len(made.document.tokens)
    size = {n: len(tokenizer(" " + n.text)["input_ids"]) for n in needles}
    hay = tokens - sum(size.values())
    assert length - 40 <= tokens <= length + len(needles)
    for i, needle in enumerate(needles):
        assert text.count(needle.text) == 1
        # Counted anew: tokens of the text before the needle, needles left out.
        before = len(tokenizer(text[: text.index(needle.text)])["input_ids"])
        alone = before - sum(size[n] for n in needles[:i])
        assert abs(alone / hay - depths[i]) <= 16 / hay, "half of the longest sentence"
        assert abs(made.positions[i] - before / tokens) <= 2 / tokens
    assert text.startswith(needles[0].text) and text.endswith(needles[-1].text)
    places = [text.index(n.text) for n in needles]
    ends = [stop for _, stop in sentences(text)]
    assert places == sorted(places) and all(p == 0 or p - 1 in ends for p in places)


def test_keys_and_numbers_are_never_twice(rng):
    seed = int(rng.integers(1000))
    needles = stacks.make_needles([0, 0.5, 1], 4, seed)
    facts = [f for n in needles for f in n.facts]
    assert len({c for c, _ in facts}) == len({n for _, n in facts}) == 12
    assert len({n.kind for n in needles}) == 3
    for n in needles:
        assert all(city in n.text and number in n.text for city, number in n.facts)
        assert n.facts[0][0] in n.question and n.text.startswith(f"{n.opening} {n.answer}")
    same = stacks.make_needles([0, 0.5, 1], 4, seed, kinds=1)
    assert len({n.kind for n in same}) == 1
    with pytest.raises(LiftError):
        stacks.make_needles([0, 0.5, 1], 20, seed)


def test_trials_differ_and_are_the_same_when_made_again(rng, tokenizer):
    texts = essays(rng)

    def made(seed):
        return stacks.haystack(texts, tokenizer, 300, stacks.make_needles([0.5], 1, seed), seed)

    assert made(0).document.text == made(0).document.text
    one, other = made(0).document.text, made(1).document.text
    assert one[:40] != other[:40] and made(0).needles != made(1).needles


def test_a_haystack_that_is_too_small_is_refused(rng, tokenizer):
    needles = stacks.make_needles([0.5], 1, 0)
    with pytest.raises(LiftError, match="fewer than"):
        stacks.haystack(essays(rng, 1), tokenizer, 5000, needles, 0)
    with pytest.raises(LiftError, match="too few"):
        stacks.haystack(essays(rng), tokenizer, 10, needles, 0)


@needs("pypdfium2")
def test_documents_of_every_kind(tmp_path):
    made = {
        "a.pdf": pdf([["Salt came by sea."]]),
        "b.docx": docx(paragraph("Rope came by land.")),
        "c.html": b"<html><p>Tar came by cart.</p></html>",
        "d.epub": epub({"a.xhtml": "<html><body><p>Oil came by air.</p></body></html>"}),
        "e.csv": b"Ship,Year\nAnna,1701\n",
        "f.md": "Wax came früh.".encode("utf-16"),
    }
    for name, content in made.items():
        (tmp_path / name).write_bytes(content)
    for flag in ("--documents", "--haystack"):
        args = niah.parsed([flag, str(tmp_path), "--model", "m"])
        assert stacks.read_texts(args.haystack) == [
            *("Salt came by sea.", "Rope came by land.", "Tar came by cart.", "Oil came by air."),
            *("Ship: Anna; Year: 1701", "Wax came früh."),
        ]
    assert stacks.read_texts(tmp_path / "a.pdf") == ["Salt came by sea."]


@pytest.fixture
def command(tiny_folder, tmp_path, rng):
    hay = tmp_path / "hay"
    hay.mkdir()
    for i, text in enumerate(essays(rng)):
        (hay / f"{i}.txt").write_text(text)

    def options(out, *more):
        return [
            "--model", str(tiny_folder), "--device", "cpu", "--documents", str(hay),
            "--out", str(tmp_path / out), "--lengths", "250", "320", "--depths", "2",
            "--trials", "2", "--reserve", "100", "--max-new-tokens", "4", "--epochs", "3",
            "--segment-length", "32", "--rank", "2", "--method", "full-icl", "truncated-icl",
            "lift", "lift-icl", *more,
        ]  # fmt: skip

    return options


def kill_when(process, ready):
    wait_for(ready, process)
    kill(process.pid)
    process.join()
    assert process.exitcode == -signal.SIGKILL, "finished before it could be killed"


def test_a_run_killed_at_any_moment_gives_the_same_file(command, tmp_path, capsys, monkeypatch):
    """Between two answers, and in the first training of the run that went on."""
    assert niah.main(command("whole", "--trials", "1")) == 0
    whole = (tmp_path / "whole" / "niah.jsonl").read_bytes()
    lines = whole.splitlines()
    assert len(lines) == 1 + 2 * 2 * 4
    folder = tmp_path / "killed"
    file, memories = folder / "niah.jsonl", folder / "niah.memories"
    for ready in (
        lambda: file.exists() and file.read_bytes().count(b"\n") > 7,
        lambda: list(memories.glob(f"*/{STATE}")),
    ):
        with monkeypatch.context() as patch:
            # A state after every step, so that a kill in the midst of training leaves one.
            patch.setenv("LIFTCORE_SAVE_SECONDS", "0")
            process = forked(niah.main, command("killed", "--trials", "1"))
        kill_when(process, ready)
        kept = file.read_bytes()
        assert whole.startswith(kept) and len(kept) < len(whole)
        # What a kill in the midst of a write leaves.
        for torn in (file, folder / "niah.seconds.jsonl"):
            with torn.open("ab") as out:
                out.write(b'{"case": "320 0')
    assert niah.main(command("killed", "--trials", "1")) == 0
    assert file.read_bytes() == whole and not memories.exists()
    rows = cases.read_rows(file)
    assert all(r["answer_seconds"] > 0 for r in rows if r["answer"] is not None)
    assert "does not fit" in capsys.readouterr().out


def test_results_hold_what_was_asked_and_refuse_other_settings(
    command, tmp_path, capsys, monkeypatch
):
    assert niah.main(command("out", "--method", "full-icl", "--limit", "3")) == 0
    file = tmp_path / "out" / "niah.jsonl"
    rows = cases.read_rows(file)
    assert [(r["length"], r["depth"], r["trial"]) for r in rows] == [
        (250, 0.0, 0), (250, 1.0, 0), (320, 0.0, 0)
    ]  # fmt: skip
    assert all(r["answers"][0] in r["needle"] for r in rows)
    fit = [r["scores"] is not None for r in rows]
    assert fit == [True, True, False] and rows[2]["answer"] is None
    assert rows[0]["prompt_tokens"] <= 252
    before = file.read_bytes()
    monkeypatch.setattr("bench.evaluations.evaluate.models.load", None)  # nothing may be loaded
    others = (("--keys", "2"), ("--rank", "3"), ("--window", "200"), ("--dtype", "fp16"))
    for more, named in zip(others, ("keys", "config", "window", "dtype"), strict=True):
        assert niah.main(command("out", *more)) == 1
        assert f"settings ({named})" in capsys.readouterr().err and file.read_bytes() == before
    summary = json.loads((tmp_path / "out" / "niah.json").read_text())
    assert [g["key"] for g in summary["groups"]] == [["full-icl", 250], ["full-icl", 320]]
    assert (tmp_path / "out" / "niah.png").stat().st_size > 5_000
    (tmp_path / "out" / "niah.png").unlink()
    assert niah.main(["--plot-only", "--device", "cpu", "--out", str(tmp_path / "out")]) == 0
    assert (tmp_path / "out" / "niah.png").exists()


def test_each_depth_can_have_a_document_of_its_own(command, tokenizer):
    args = niah.parsed(command("x", "--alone", "--depths", "3"))
    texts = stacks.read_texts(args.haystack)
    made = niah.Stacks(args, texts, tokenizer, 0)
    todo = list(made.cases())
    assert len({c.document for c in todo}) == len(todo) == 2 * 2 * 3
    for case in todo[:3]:
        stack = made.haystack(case.document)
        assert len(stack.needles) == 1 and case.about["needle"] in stack.document.text
        assert abs(stack.positions[0] - case.about["depth"]) < 0.2
        assert case.about["true_depth"] == round(stack.positions[0], 4)
    together = list(niah.Stacks(niah.parsed(command("x")), texts, tokenizer, 0).cases())
    assert len({c.document for c in together}) == 4 and len({c.id for c in together}) == 8


def test_the_score_is_the_number_as_a_word():
    case = Case("a", "d", "q", ("4712",), 4)
    assert niah.score(case, "It is 4712.")["contains"] == 1
    assert niah.score(case, "It is 47123.")["contains"] == 0


def test_every_setting_of_training_is_an_option(command):
    more = ["--objective", "segments,qa", "--mix", "1,0.5", "--qa-first", "--alpha", "3"]
    config = evaluate.config_of(niah.parsed(command("x", *more)))
    assert config.objectives == ("segments", "qa") and config.mix == (1.0, 0.5)
    assert config.qa_first and (config.alpha, config.rank) == (3.0, 2)
    assert not evaluate.config_of(niah.parsed(command("x"))).qa_first
    understand = evaluate.config_of(niah.parsed(command("x", "--preset", "understand")))
    assert (understand.objectives, understand.rank) == (("segments", "qa", "replay"), 2)


def test_impossible_options_are_refused(command):
    with pytest.raises(UsageError):
        niah.parsed(command("x", "--trials", "0"))
    with pytest.raises(SystemExit):
        niah.parsed(command("x", "--limit", "-1"))


def test_groups_average_what_fits_and_count_the_rest():
    def row(method, document, value, seconds):
        scores = None if value is None else {"contains": value}
        return {
            "method": method, "document": document, "scores": scores, "answer_seconds": seconds,
            "prepare_seconds": 10.0 if document == "a" else 20.0,
        }  # fmt: skip

    rows = [row("m", "a", 1.0, 2.0), row("m", "a", 0.0, 4.0), row("m", "b", None, None)]
    rows.append(row("n", "b", None, None))
    m, n = cases.means(rows, lambda r: (r["method"],))
    assert (m["key"], m["cases"], m["fit"]) == (["m"], 3, 2)
    assert m["scores"] == {"contains": 0.5} and m["answer_seconds"] == 3.0
    assert m["prepare_seconds"] == 15.0
    assert (n["fit"], n["scores"], n["answer_seconds"]) == (0, {}, None)


def test_a_torn_line_is_cut_and_seconds_stand_apart(tmp_path):
    file = tmp_path / "x.jsonl"
    results = Results(file, {"a": (1, 2)})
    results.add({"case": "1", "method": "m"}, {"answer_seconds": 3.0})
    whole = file.read_bytes()
    assert b"seconds" not in whole
    file.write_bytes(whole + b'{"case": "2", "me')
    again = Results(file, {"a": (1, 2)})
    assert again.done == {("1", "m")} and file.read_bytes() == whole
    assert cases.read_rows(file) == [{"case": "1", "method": "m", "answer_seconds": 3.0}]
    with pytest.raises(LiftError, match="other settings"):
        Results(file, {"a": (1, 3)})


def test_heat_maps_show_scores_and_the_window(tmp_path):
    pytest.importorskip("matplotlib")
    from bench.evaluations import niah_plot

    def cell(method, length, depth, value):
        scores = {} if value is None else {"contains": value}
        fit = 0 if value is None else 2
        return {"key": [method, length, depth], "cases": 2, "fit": fit, "scores": scores}

    cells = [cell("full-icl", 1024, 0.0, 1.0), cell("full-icl", 4096, 0.0, None)]
    cells += [cell("lift", 1024, 1.0, 0.5), cell("lift", 4096, 0.0, 0.25)]
    cells_of_lift = {tuple(c["key"][1:]): c for c in cells if c["key"][0] == "lift"}
    values = niah_plot.grid(cells_of_lift, [1024, 4096], [0.0, 1.0])
    np.testing.assert_array_equal(values, [[np.nan, 0.25], [0.5, np.nan]])
    assert niah_plot.plot(cells, 2048, "tiny", tmp_path / "x.png").stat().st_size > 5_000
    figure, axis = niah_plot.plt.subplots()
    niah_plot._window(axis, [1024, 2048, 4096], 2048)
    assert axis.lines[0].get_xdata()[0] == 1.5
    niah_plot._window(axis, [1024], 2048)
    assert len(axis.lines) == 1
    niah_plot.plt.close(figure)
