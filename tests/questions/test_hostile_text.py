"""Nothing that is read from outside may hang: 100 kB of the worst food for every pattern."""

import json
import random
import time

import pytest
from errors_and_seeds import fresh_seed
from extras import needs
from stub_server import Stub

from bench.evaluations import metrics
from liftcore.cli.demo import is_right
from liftcore.questions import kinds as study_kinds
from liftcore.questions import prompt as qa_prompt
from liftcore.questions import quizzes as terms
from liftcore.questions import words
from liftcore.questions.client import LARGEST, ChatServer, ServerError
from liftcore.questions.forms import forms
from liftcore.questions.pairs import stands_in
from liftcore.questions.retrieval import SentenceIndex
from liftcore.questions.timeline import orders
from liftcore.questions.windows import Passages, Window, blocks, every_sentence, sentences
from liftcore.reading.html import html_text
from liftcore.reading.text import cleaned

SIZE = 100_000
FOOD = [
    ".", "!", ". ", "? a", ".'", ".\"", "'", "…", "。", ". (", ".\n", "\n", " ", "\t\n ", "\n \t",
    "a", "A", "A ", "A-", "A b ", "Ab ", "I. ", "Mr. ", "No. 1. ", "1", "1,", "1.", "1 ", "1 000 ",
    "12 ", "12 May ", "1-", "1:", "%", "1%", "-1", "$", "$1", "1a", "v1.", "(", "(\"", "_", "-",
    "<think>", "<think>{", "</think>", "[", "{", "[{", '["', '{"a":', "[1,", "[] ", '"', "\\",
    "\u0301", "e\u0301", "नि", "\ufeff", "\u200d", "ﷺ", "?", "??", "What? ", " or ", "true ",
    "the passage ", "this ", "According to ", "\r", "\u2028", "9" * 40 + " ",
]  # fmt: skip


def everything(text):
    """Every function that applies a pattern to a text from outside."""
    window = Window(0, text, text, 0, len(text))
    return {
        "sentences": lambda: sentences(text),
        "windows": lambda: every_sentence(text, 50),
        "blocks": lambda: blocks(text, 3),
        "retrieval": lambda: SentenceIndex(text).passages(text[:200], 50, len),
        "cleaned": lambda: cleaned("word " * len(text) + text, "a"),
        "page": lambda: html_text(text, "a"),
        "terms": lambda: terms.terms(text),
        "content words": lambda: terms.content_words(text),
        "language": lambda: terms.is_english(text),
        "topics": lambda: terms.Topics(text),
        "quizzes": lambda: (forms(window), terms.gaps(window)),
        "order": lambda: orders([window] * 3),
        "question word": lambda: terms.question_word(text),
        "opening": lambda: study_kinds.opening(text),
        "first question": lambda: study_kinds.first_question(text),
        "question problem": lambda: study_kinds.question_problem(text, "", "one"),
        "answer problem": lambda: study_kinds.answer_problem(text, "one", "two"),
        "words": lambda: words.words(text),
        "key": lambda: words.question_key(text),
        "stands in": lambda: (stands_in(text[:1000], text), stands_in("a" + text[:500], text)),
        "passages": lambda: Passages(text).about(text[:2000], text[:500]),
        "answer": lambda: read(text),
        "thoughts": lambda: read(text + "</think>"),
        "plain question": lambda: qa_prompt.plain_question("In the text" + text),
        "demo": lambda: is_right(text, "one"),
        "metrics": lambda: (metrics.token_f1(text, "one"), metrics.contains("one", text)),
    }


def read(text):
    try:
        return qa_prompt.read_answer(text)
    except qa_prompt.BadAnswerError:
        return None


@needs("bm25s", "inscriptis")
def test_every_pattern_is_linear():
    rng = random.Random(fresh_seed().initial_seed())
    for food in [".", "<think>", "1", *rng.sample(FOOD, 6)]:
        for name, use in everything(food * (SIZE // len(food)) + "x").items():
            started = time.process_time()
            use()
            assert time.process_time() - started < 5, (food, name)


def test_a_table_of_contents_is_still_cut_into_sentences():
    text = "One begins here. " + "." * 16_000 + " Two is there! And " + "…" * 9 + " three."
    assert [text[a:b].split()[0] for a, b in sentences(text)][:1] == ["One"]
    assert any(text[a:b] == "Two is there!" for a, b in sentences(text))


def test_the_thoughts_of_a_model_are_left_out():
    pair = {"question": "Who?", "answer": "Marta", "evidence": ""}
    said = json.dumps({"pairs": [pair]})
    for reply in (
        f"<think>one [] {{</think>{said}",
        f"<think>{said.replace('Marta', 'Ann')}</think> so <think></think> {said}",
        f"<think>never closed {said}",
        "<think>" * 1000 + said,
    ):
        assert qa_prompt.read_answer(reply) == [pair]
    with pytest.raises(qa_prompt.BadAnswerError, match="too long"):
        qa_prompt.read_answer(said + " " * qa_prompt.LONGEST_REPLY)


def test_half_a_character_in_an_answer_costs_the_pair_alone():
    reply = '[{"question": "Who \\ud83d?", "answer": "x"}, {"question": "Who?", "answer": "y"}]'
    good = [item for item in qa_prompt.read_answer(reply) if item["question"]]
    assert [item["answer"] for item in good] == ["y"]


def test_an_endless_answer_is_cut_off():
    body = json.dumps({"choices": [{"message": {"content": "x" * (LARGEST + 10)}}]})
    with Stub(lambda *_: (200, body, {})) as stub:
        server = ChatServer(stub.url, "m", temperature=0.5, max_tokens=5)
        with pytest.raises(ServerError, match="too long"):
            server.ask([{"role": "user", "content": "<sentence>\nOne.\n</sentence>"}], 30)
