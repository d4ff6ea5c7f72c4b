"""The understanding benchmark: what is asked, how it is scored, equal time, and resuming."""

import dataclasses
import json
import re

import numpy as np
import pytest
import torch
from extras import needs
from tiny import tiny_model

from bench.understand import analysis as understand_analysis
from bench.understand import documents
from bench.understand import main as understand
from bench.understand import run as understand_run
from bench.understand.answers import answers, score
from bench.understand.general import GENERAL
from bench.understand.lines import CHATS, EXTRA, KEEPING, LINES, MAIN, Case, Line, cases
from bench.understand.train import STEP, TOKEN, Worked, share_of_work, train_for
from liftcore import answer
from liftcore.config import LiftConfig
from liftcore.fiction.documents import Question
from liftcore.layers import depth
from liftcore.layers.lora import Adapter
from liftcore.objectives import Objective
from liftcore.objectives.sample import Sample
from liftcore.questions import own_words
from liftcore.questions.own_words import OwnWords
from liftcore.questions.quizzes import content_words


@pytest.fixture
def model(tokenizer):
    return tiny_model(vocab_size=len(tokenizer), pad_token_id=2, hidden_size=24)


def told(name, tokenizer):
    return documents.read(name, tokenizer)


def words(text):
    return {w for w in content_words(text) if not w[0].isdigit()}


def test_six_documents_with_four_kinds_of_questions(tokenizer):
    documents_told = [told(name, tokenizer) for name in documents.NAMES]
    assert len(documents_told) >= 6 and len({t.document.sha256 for t in documents_told}) == len(
        documents_told
    )
    for one in documents_told:
        assert {q.kind for q in one.questions} == {"single", "two", "timeline", "unanswerable"}
        assert 400 <= len(one.document.text.split()) <= 550


def test_questions_ask_in_words_that_do_not_stand_in_the_text(tokenizer):
    """Names and a few plain nouns recur; on average at least half of a question's words do not."""
    for name in documents.NAMES:
        one = told(name, tokenizer)
        single = [q.question for q in one.questions if q.kind == "single"]
        text = words(one.document.text)
        # Names must recur: without them nobody knows what is asked about.
        asked = [{w for w in words(q) if w not in _names(one.document.text)} for q in single]
        assert np.mean([len(a - text) / max(1, len(a)) for a in asked]) >= 0.5
        assert not any(q.rstrip("?") in one.document.text for q in single)


def _names(text):
    return {w.lower() for w in re.findall(r"[A-Z]\w+", text)}


def test_given_pairs_hold_each_fact_once_in_other_words_than_the_test(tokenizer):
    for name in documents.NAMES:
        one = told(name, tokenizer)
        tested = {q.answer: q.question for q in one.questions if q.kind == "single"}
        assert sorted(p.answer for p in one.given) == sorted(tested)
        for pair in one.given:
            assert pair.answer in one.document.text
            given, test = words(pair.question), words(tested[pair.answer])
            assert pair.question != tested[pair.answer]
            assert len(given & test) <= len(given | test) / 2, (pair.question, tested[pair.answer])


@pytest.mark.parametrize("shared", [9, 10])
def test_batched_answers_are_those_of_one_prompt_at_a_time(model, rng, shared, monkeypatch):
    monkeypatch.setattr(answer, "SHARED", shared)
    head = rng.integers(3, 200, 9).tolist()
    prompts = [head + rng.integers(3, 200, n).tolist() for n in (1, 7, 4)]
    prompts.append(rng.integers(3, 200, 5).tolist())

    class Ids:
        eos_token_id = pad_token_id = 2

        def decode(self, ids, skip_special_tokens):
            return " ".join(map(str, ids))

    for chosen in (prompts[:3], prompts):
        one_by_one = []
        for p in chosen:
            out = model.generate(
                input_ids=torch.tensor([p]), max_new_tokens=6, do_sample=False, pad_token_id=2
            )
            new = out[0, len(p) :].tolist()
            new = new[: new.index(2)] if 2 in new else new
            one_by_one.append(" ".join(map(str, new)))
        assert answers(model, Ids(), chosen, 6) == one_by_one


@pytest.mark.parametrize(
    ("kind", "question", "answer", "reply", "right"),
    [
        ("single", "When?", "14 June 1855", "It was on 14 June, 1855.", 1),
        ("single", "When?", "14 June 1855", "On 14 July 1855", 0),
        ("single", "What?", "an ebony shoehorn", "The ebony shoehorn", 1),
        ("timeline", "Which came first, the fire or the flood?", "the fire", "the fire", 1),
        ("timeline", "Which came first, the fire or the flood?", "the fire", "the flood", 0),
        ("timeline", "Which came first, the fire or the flood?", "the fire",
         "The fire and the flood came", 0),
        ("unanswerable", "How deep?", "not stated", "The text does not say.", 1),
        ("unanswerable", "How deep?", "not stated", "40 spans", 0),
    ],
)  # fmt: skip
def test_scores(kind, question, answer, reply, right):
    assert score(Question(question, answer, kind), reply)[0] == right


def test_f1_gives_part_of_the_credit():
    right, f1 = score(Question("When?", "14 June 1855", "single"), "14 July 1855")
    assert right == 0 and f1 == pytest.approx(2 / 3)


class Rows(Objective):
    """Ten rows of random tokens."""

    name = "rows"

    def __init__(self, rng):
        ones = np.array([0.0] + [1.0] * 11, dtype=np.float32)
        self.rows = [
            Sample(rng.integers(3, 200, 12).astype(np.int32), ones, source="rows")
            for _ in range(10)
        ]

    def samples(self, epoch):
        return self.rows


def test_work_ends_a_run_and_its_rate(rng):
    config = LiftConfig(segment_length=12, batch_size=1, epochs=1000, warmup=0.1)
    step_work = STEP + 12 * TOKEN
    source = Worked(25 * step_work, [Rows(rng)], config, 256)
    steps = []
    while step := source.draw():
        steps.append(step)
    assert len(steps) == 25 and source.finished and source.epoch == 2
    assert 0 < steps[0].rate < steps[1].rate < steps[2].rate == config.learning_rate
    assert [s.done for s in steps[1:]] == pytest.approx([n / 25 for n in range(2, 26)])
    assert source.by_objective["rows"] == 25 * 12


def test_steps_of_the_upper_half_cost_three_quarters(model, rng):
    config = LiftConfig(segment_length=12, batch_size=1, epochs=1000)
    blocks = len(depth.decoder_layers(model))
    upper = Adapter(model, 2, 4.0, 0, numbers=range(blocks // 2, blocks))
    cost = share_of_work(model, upper)
    assert cost == 0.75 and share_of_work(model, Adapter(model, 2, 4.0, 0)) == 1
    source = Worked(30 * (STEP + 12 * TOKEN), [Rows(rng)], config, 256, cost=cost)
    assert len(list(iter(source.draw, None))) == 40


def test_training_does_the_work_that_it_is_given(model, tokenizer):
    one = told("fiction-0", tokenizer)
    config = LINES["segments"].config(0).replace(rank=2)
    adapter = Adapter(model, 2, 4.0, 0)
    adapter.install()
    try:
        trained = train_for(2.0, model, tokenizer, adapter, one.document, config)
    finally:
        adapter.remove()
    # The last step begins before the work is done.
    assert 2.0 <= trained.work <= 2.0 + STEP + config.target_tokens * TOKEN + 0.01
    assert trained.steps > 0 and trained.tokens["segments"] > 0


def test_lines_are_what_they_are_called(tokenizer):
    assert not LINES["base"].trained
    for line in (*MAIN, *CHATS, *KEEPING, *EXTRA):
        config = line.config(3)
        assert config.objectives == tuple(line.objectives) and config.seed == 3
        assert config.weights == tuple(line.objectives.values())
        assert ("qa" in line.objectives) <= bool(line.pairs)
    todo = list(cases())
    assert len({c.key for c in todo}) == len(todo)
    # Each document meets every line before the second seed begins.
    first = [c for c in todo if c.seed == 0 and c.line not in (*CHATS, *KEEPING, *EXTRA)]
    assert todo[: len(first)] == first


def test_the_lines_of_what_keeps_change_one_thing():
    preset = LINES["understand"].config(0)
    for line in (*CHATS, *KEEPING):
        config = dataclasses.asdict(line.config(0))
        others = {k for k, v in dataclasses.asdict(preset).items() if config[k] != v}
        assert len(others) == (line.own is None), line.name


def test_what_is_asked_for_is_not_practised(tokenizer, model, monkeypatch):
    texts = [
        "Name a river.",
        "Say Tokyo.",
        "Count the sheep.",
        "Who has bees?",
        "What about JAPAN?",
    ]
    rows = [OwnWords(np.array(tokenizer(text)["input_ids"]), 1) for text in texts]
    monkeypatch.setattr(own_words, "rows", lambda *args: rows)
    apart = understand_run.own_apart(model, tokenizer, 2)
    assert [tokenizer.decode(row.tokens) for row in apart] == ["Count the sheep.", "Who has bees?"]


class Rising:
    """Forgetting that is within the budget at the first two checks alone."""

    def __init__(self):
        self.rises = iter([0.0, 0.0])

    def rise(self):
        return next(self.rises, 1.0)


def test_a_forgetting_budget_ends_a_run_for_a_given_work(tokenizer, model, rng):
    rows = [OwnWords(rng.integers(3, len(tokenizer), 9), 4) for _ in range(8)]
    config = (
        LINES["segments"]
        .config(0)
        .replace(rank=2, keep=0.1, objectives=("segments", "replay"), mix=(1.0, 1.0))
    )
    adapter = Adapter(model, 2, 4.0, 0)
    adapter.install()
    try:
        one = told("fiction-0", tokenizer).document
        more = (model, tokenizer, adapter, one, config, (), rows, Rising())
        trained = train_for(3.0, *more)
    finally:
        adapter.remove()
    assert trained.limit == "keep" and 0 < trained.kept < 0.6


def short(name="fiction-0"):
    line = Line("segments", {"segments": 1.0}, (), dict(rank=2))
    quiz = Line("+ quiz", {"segments": 1.0, "qa": 4.0}, ("self:quiz",), dict(rank=2))
    return [Case(name, 0, LINES["base"]), Case(name, 0, line), Case(name, 0, quiz)]


@needs("bm25s")
def test_a_killed_sweep_goes_on(model, tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr(understand_run, "NEW_TOKENS", 2)
    monkeypatch.setattr(understand_run, "PROBES", 2)
    file = tmp_path / "understand.jsonl"
    understand.sweep(file, short(), model, tokenizer, seconds=2.0)
    assert getattr(model, "_liftcore_adapter", None) is None
    lines = file.read_text().splitlines(keepends=True)
    rows = [json.loads(line) for line in lines]
    assert [r["line"] for r in rows] == ["base", "segments", "+ quiz"]
    assert 0 < rows[2]["training"]["samples"]["qa"] < 11, "questions share rows"
    assert rows[0]["answers"].keys() == {"none", "half", "passages", "whole"}
    file.write_text(lines[0] + lines[1] + lines[2][:50])
    ran = []
    run = understand_run.run
    monkeypatch.setattr(
        understand_run, "run", lambda case, *rest: ran.append(case.line.name) or run(case, *rest)
    )
    understand.sweep(file, short(), model, tokenizer, seconds=2.0)
    assert ran == ["+ quiz"] and file.read_text().splitlines(keepends=True)[:2] == lines[:2]
    with pytest.raises(SystemExit, match="runs of"):
        understand.sweep(file, short(), model, tokenizer, seconds=3.0)
    result = understand.report(tmp_path)
    assert json.loads((tmp_path / "understand.json").read_text()) == result
    assert result["questions"]["single"] == 11 and "+ quiz" in understand.text(result)
    pytest.importorskip("matplotlib")
    assert (tmp_path / "understand.png").stat().st_size > 10_000


def row(document, seed, line, right, replies=("", "", "")):
    """A row with two single questions and one that the text leaves open."""
    kinds = ["single", "single", "unanswerable"]
    replied = {"right": [*right, 1.0], "f1": [*right, 1.0], "replies": list(replies)}
    return {
        "document": document, "seed": seed, "line": line, "kinds": kinds,
        "answers": {"none": replied, "half": replied},
        "recall": 0.5, "general": 10, "text": 3.0, "chat": 2.0,
    }  # fmt: skip


@pytest.fixture
def asked(monkeypatch):
    """The questions on the documents of row()."""
    questions = (
        Question("Who?", "Paul Teller", "single"),
        Question("When?", "1822", "single"),
        Question("How deep?", "not stated", "unanswerable"),
    )
    monkeypatch.setattr(documents, "asked", lambda name: questions)


def test_exchanged_replies_are_right_where_everything_is_said_at_once(asked):
    for replies, share in (
        (("Paul Teller", "1822", "1822"), 0.0),
        (("1822", "Paul Teller", "1822"), 1.0),
        (("Paul Teller in 1822", "1822", ""), 0.5),
    ):
        one = row("a", 0, "x", [1, 1], replies)
        assert understand_analysis.exchanged(one) == share


def test_gains_are_paired_and_leave_out_what_the_text_does_not_say(asked):
    rows = [
        row("a", 0, "segments", [0, 0]), row("b", 0, "segments", [1, 1]),
        row("a", 0, "x", [1, 0]), row("b", 0, "x", [1, 1]), row("b", 1, "x", [0, 0]),
    ]  # fmt: skip
    segments, x = understand_analysis.summary(rows)
    assert (segments["line"], x["line"]) == ("segments", "x") and "gain" not in segments
    assert segments["none"]["right"]["mean"] == 0.5
    assert segments["none"]["unanswerable"]["mean"] == 1
    gain = x["gain"]["none"]
    # b with seed 1 has no partner.
    assert (gain["mean"], gain["better"], gain["pairs"]) == (0.25, 1, 2)
    assert (gain["low"], gain["high"]) == (0.0, 0.5)
    for each in rows[2:]:
        del each["answers"]["half"]
    assert understand_analysis.summary(rows)[1]["gain"] == {"none": gain}


def test_what_is_shown_of_a_document(tokenizer):
    one = told("fiction-1", tokenizer)
    texts = understand_run.shown(tokenizer, one, "half")
    half = texts[0]
    assert texts == [half] * len(one.questions)
    length = len(tokenizer(half, add_special_tokens=False)["input_ids"])
    assert abs(length - len(one.document.tokens) / 2) < 8
    assert half.startswith(one.document.text[:200]) and half.endswith(one.document.text[-200:])
    assert set(understand_run.shown(tokenizer, one, "none")) == {""}
    assert set(understand_run.shown(tokenizer, one, "whole")) == {one.document.text}


@needs("bm25s")
def test_the_passages_beside_a_question_are_those_of_its_words(tokenizer):
    one = told("fiction-1", tokenizer)
    texts = understand_run.shown(tokenizer, one, "passages")
    found = [
        q.answer.split("|")[0] in text
        for q, text in zip(one.questions, texts, strict=True)
        if q.kind == "single"
    ]
    assert sum(found) > len(found) / 2
    assert all(len(text) < 0.7 * len(one.document.text) for text in texts)


def test_general_questions_are_answered_by_the_base_model(embedded, monkeypatch):
    assert len({question for question, _ in GENERAL}) == len(GENERAL) >= 40
    some = GENERAL[::5]
    monkeypatch.setattr(understand_run, "GENERAL", some)
    assert understand_run.general_answered(*embedded) >= len(some) - 1
