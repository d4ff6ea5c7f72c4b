"""The methods that the evaluations compare: what they put into the prompt, and one's own."""

import textwrap

import pytest
import torch
from tiny import tiny_model

import liftcore
from bench.evaluations import memories, methods
from bench.evaluations.methods import METHODS, Bench, DoesNotFit, find, set_window
from bench.evaluations.prompts import Prompt
from liftcore import document
from liftcore import model as models
from liftcore.config import LiftConfig
from liftcore.errors import UsageError
from liftcore.questions.retrieval import GAP, SentenceIndex

CONFIG = LiftConfig(segment_length=32, epochs=2, rank=4, learning_rate=2e-2)
TEXT = "".join(
    f"On day {n} the keeper wrote down a wind of {n * 7 % 60} knots and went to bed. "
    for n in range(20)
).strip()
QUESTION = "Who wrote down the wind?"


@pytest.fixture
def model(tokenizer):
    return tiny_model(vocab_size=len(tokenizer), pad_token_id=2, hidden_size=24)


@pytest.fixture
def bench(model, tokenizer):
    return Bench.of(model, tokenizer, CONFIG)


@pytest.fixture
def log(tokenizer):
    return document.from_text(TEXT, tokenizer, "The log")


def prepared(name, bench, log):
    method = METHODS[name](bench)
    method.prepare(log)
    return method


def prompt_of(method, monkeypatch, question=QUESTION, new=4, prompt=None):
    """The text that the model gets to read."""
    seen = []
    monkeypatch.setattr(methods, "generate", lambda m, t, ids, n: seen.append(ids) or "")
    method.answer(question, new, prompt)
    assert len(seen[0]) == method.prompt_tokens
    return method.bench.tokenizer.decode(seen[0])


def test_lift_answers_as_the_memory_does(bench, log):
    lift = prepared("lift", bench, log)
    answer = lift.answer(QUESTION, 6)
    assert answer == lift.memory.ask(QUESTION, max_new_tokens=6)
    assert answer != prepared("truncated-icl", bench, log).answer(QUESTION, 6)


def test_methods_that_need_no_memory_take_the_adapter_out(bench, log):
    icl = prepared("truncated-icl", bench, log)
    before = icl.answer(QUESTION, 6)
    lift = prepared("lift-icl", bench, log)
    assert lift.answer(QUESTION, 6) != before, "the adapter must do something"
    assert icl.answer(QUESTION, 6) == before
    assert lift.answer(QUESTION, 6) != before


def test_a_document_is_trained_once_for_all_methods_and_restarts(
    model, tokenizer, log, tmp_path, monkeypatch
):
    trained = []
    absorb = liftcore.absorb
    monkeypatch.setattr(
        memories.liftcore, "absorb", lambda *a, **k: trained.append(k["config"]) or absorb(*a, **k)
    )
    answers = []
    for _ in range(2):
        bench = Bench.of(model, tokenizer, CONFIG, cache=tmp_path)
        asked = [prepared(name, bench, log) for name in ("lift", "lift-icl", "lift")]
        answers.append([m.answer(QUESTION, 6) for m in asked])
        assert all(m.prepare_seconds > 0 for m in asked)
    assert trained == [CONFIG] and answers[0] == answers[1]
    other = Bench.of(model, tokenizer, CONFIG.replace(seed=1), cache=tmp_path)
    prepared("lift", other, log)
    assert len(trained) == 2
    bench.memories.drop(log)
    assert not list(tmp_path.iterdir())
    prepared("lift", bench, log)
    assert len(trained) == 3


def test_the_published_settings_fit_a_small_window(bench):
    set_window(bench.model, 100)
    config = METHODS["lift-paper"](bench).config()
    assert config == LiftConfig.paper(segment_length=100)


def test_lift_needs_room_for_the_question_alone(bench, log, monkeypatch):
    lift = prepared("lift", bench, log)
    prompt = Prompt(beside="Read this. " * 40 + "{document} {question}", alone="{question}")
    alone = len(prompt.ids(bench.tokenizer, "", "", QUESTION))
    set_window(bench.model, alone + 4)
    assert QUESTION in prompt_of(lift, monkeypatch, prompt=prompt)
    with pytest.raises(DoesNotFit):
        lift.answer(QUESTION, 5, prompt)


def test_the_white_space_of_code_stays(bench, log, monkeypatch):
    icl = prepared("truncated-icl", bench, log)
    monkeypatch.setattr(methods, "generate", lambda *_: "    return x\n")
    assert icl.answer(QUESTION, 4, Prompt(chat=False)) == "    return x\n"
    assert icl.answer(QUESTION, 4, Prompt()) == "return x"


def test_the_whole_document_goes_in_or_nothing(bench, log, monkeypatch):
    full = prepared("full-icl", bench, log)
    with pytest.raises(DoesNotFit):
        full.answer(QUESTION, 4)
    short = document.from_text(TEXT[:300], bench.tokenizer, "The log")
    full.prepare(short)
    assert short.text in prompt_of(full, monkeypatch)
    needs = full.prompt_tokens + 4
    set_window(bench.model, needs)
    assert short.text in prompt_of(full, monkeypatch)
    set_window(bench.model, needs - 1)
    with pytest.raises(DoesNotFit):
        full.answer(QUESTION, 4)


@pytest.mark.parametrize("window", [90, 100, 150, 256])
def test_a_truncated_document_fills_the_window_and_no_more(bench, log, monkeypatch, window):
    set_window(bench.model, window)
    method = prepared("truncated-icl", bench, log)
    text = prompt_of(method, monkeypatch)
    assert window - 8 <= method.prompt_tokens + 4 <= window
    assert TEXT[:20] in text and TEXT[-10:] in text and "\n...\n" in text and QUESTION in text
    head, tail = (len(bench.tokenizer(part)["input_ids"]) for part in text.split("\n...\n"))
    assert window < 150 or abs(head - tail) < 60


def test_a_question_without_room_does_not_fit(bench, log):
    set_window(bench.model, 60)
    for name in ("truncated-icl", "lift"):
        with pytest.raises(DoesNotFit):
            prepared(name, bench, log).answer("why " * 60, 4)


def test_a_window_can_only_become_smaller(model):
    set_window(model, 100)
    assert models.window(model) == 100
    for wrong in (0, 101):
        with pytest.raises(UsageError):
            set_window(model, wrong)


def test_rag_finds_the_sentence_and_keeps_the_order(bench, log, monkeypatch):
    pytest.importorskip("bm25s")
    text = f"{TEXT} The cook baked a plum cake for the harbour master. {TEXT} The end."
    log = document.from_text(text, bench.tokenizer, "The log")
    for name in ("rag", "lift-rag"):
        rag = prepared(name, bench, log)
        asked = prompt_of(rag, monkeypatch, "For whom did the cook bake a cake?")
        assert "plum cake for the harbour master" in asked and rag.prompt_tokens + 4 <= 256
        assert (rag.memory is not None) == (name == "lift-rag")
    two = SentenceIndex("Bees hum. " + "Rain falls. " * 20 + "Bees hum in Rome. Bees sleep.", 1, 1)

    def words(text):
        return len(text.split())

    assert two.passages("Do bees sleep?", 2, words) == "Bees sleep."
    assert two.passages("bees hum", 7, words) == f"Bees hum.{GAP}Bees hum in Rome."
    assert two.passages("the", 2, words) == "Bees hum."
    long = SentenceIndex("Bees hum in Rome all day. Rain falls on Rome in autumn.", 1, 1)
    assert long.passages("bees", 3, words) == "Bees hum in", "where no window fits, a part"
    assert two.passages("the", 0, words) == ""
    code = SentenceIndex("def f(x):\n    return x.\n\n\ndef g(y):\n    return y.\nEnd.", 2, 1)
    assert code.passages("def", 99, words) == code.text, "its own white space stays"


def test_every_sentence_is_in_a_window(rng):
    pytest.importorskip("bm25s")
    number = int(rng.integers(1, 30))
    text = " ".join(f"Sentence {i}." for i in range(number))
    index = SentenceIndex(text)
    assert set().union(*index.windows) == set(range(number))


def test_all_methods_get_the_same_question_and_opening(bench, log, monkeypatch):
    pytest.importorskip("bm25s")
    prompt = Prompt(
        beside="{title}|{document}|{question}", alone="{title}|{question}", opening="It was"
    )
    for name in ("truncated-icl", "rag", "lift", "lift-rag", "lift-icl"):
        text = prompt_of(prepared(name, bench, log), monkeypatch, prompt=prompt)
        assert f"|{QUESTION}" in text and text.endswith("assistant\nIt was")
        assert ("keeper" in text) == (name != "lift")


def test_without_a_chat_template_the_prompt_is_plain(tokenizer, monkeypatch):
    def text(prompt):
        return tokenizer.decode(prompt.ids(tokenizer, "T", "D", "Q?"))

    plain = Prompt(beside="{document}: {question}", opening="x", chat=False)
    assert text(plain) == "D: Q?x"
    monkeypatch.setattr(tokenizer, "chat_template", None)
    assert text(Prompt(beside="{document} {question}", opening="It is")) == "D Q?\nAnswer: It is"


def test_the_example_of_a_method_of_ones_own_runs(bench, log, tmp_path, monkeypatch):
    example = textwrap.dedent(methods.__doc__.partition("takes it:\n")[2])
    assert len(example.strip().splitlines()) <= 20
    file = tmp_path / "mine.py"
    file.write_text(example)
    method = find(f"{file}:Head")(bench)
    method.prepare(log)
    text = prompt_of(method, monkeypatch)
    assert TEXT[:200] in text and "On day 19" not in text
    monkeypatch.syspath_prepend(tmp_path)
    assert find("mine:Head").name == "head"


def test_a_method_derived_from_lift_may_read(bench, log, monkeypatch):
    class Mine(METHODS["lift"]):
        def context(self, question, room):
            return TEXT[:40]

    mine = Mine(bench)
    mine.prepare(log)
    assert TEXT[:40] in prompt_of(mine, monkeypatch)


@pytest.mark.parametrize(
    "name", ["ragg", "no.such:Thing", "bench.evaluations.methods:METHODS", "a.py:B"]
)
def test_an_unknown_method_is_refused(name):
    with pytest.raises(UsageError):
        find(name)


def test_greedy_answers_stop_at_the_end_of_the_turn(bench, log, monkeypatch):
    lift = prepared("truncated-icl", bench, log)
    generated = torch.tensor([[5, bench.tokenizer.eos_token_id]])
    monkeypatch.setattr(
        bench.model, "generate", lambda input_ids, **k: torch.cat([input_ids, generated], 1)
    )
    assert lift.answer(QUESTION, 4) == bench.tokenizer.decode([5], skip_special_tokens=True)
