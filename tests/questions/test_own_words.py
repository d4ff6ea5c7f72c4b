"""The model's own words: form, one batch against one by one, cache, kills, the shipped."""

import copy
import threading

import numpy as np
import pytest
import torch
from distill_checks import Letters, lively

from liftcore import answer
from liftcore.embedded import NAME
from liftcore.errors import LiftError
from liftcore.layers.lora import Adapter, installed
from liftcore.questions import own_words
from liftcore.questions.own_words import Maker, collect
from liftcore.tokens import chat_ids, text_ids


@pytest.fixture(autouse=True)
def small(monkeypatch, tmp_path):
    monkeypatch.setenv("LIFTCORE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(own_words, "CHUNK", 16)
    monkeypatch.setattr(own_words, "HELD_OUT", 5)
    monkeypatch.setattr(own_words, "QUESTION", 8)
    monkeypatch.setattr(own_words, "REPLY", 5)


@pytest.fixture(scope="module")
def chat(tokenizer):
    return lively(vocab_size=len(tokenizer)), tokenizer


@pytest.fixture(scope="module")
def plain():
    """A small vocabulary and no chat template: soon made."""
    return lively(), Letters()


def same(one, two):
    assert len(one) == len(two)
    for a, b in zip(one, two, strict=True):
        assert a.reply_start == b.reply_start and np.array_equal(a.tokens, b.tokens)


def test_a_row_is_the_template_with_a_question_and_the_models_reply(chat):
    model, tokenizer = chat
    made = collect(model, tokenizer, 9)
    assert len(made.rows) == 9 and len(made.held_out) == 5 and made.seconds > 0
    keys = set()
    for row, (question, _) in zip(
        [*made.held_out, *made.rows], Maker(model, tokenizer).known, strict=False
    ):
        prompt, reply = row.tokens[: row.reply_start].tolist(), row.tokens[row.reply_start :]
        assert row.tokens.dtype == np.int64
        assert prompt == chat_ids(tokenizer, [{"role": "user", "content": question}])
        # Alone, without padding, the model replies the same.
        (alone,) = answer.replies(model, tokenizer, [prompt], own_words.REPLY)
        assert reply.tolist()[: len(alone)] == alone and 0 < len(reply) <= own_words.REPLY
        keys.add(question)
    assert len(keys) == 14, "no question stands twice"


def test_an_installed_adapter_has_no_part_in_them(plain, tmp_path):
    model, tokenizer = plain
    right = collect(model, tokenizer, 3, kept_in=tmp_path / "one").rows
    adapter = Adapter(model, 4, 64.0)
    adapter.values.normal_(generator=torch.Generator().manual_seed(0))
    adapter.install()
    try:
        same(collect(model, tokenizer, 3, kept_in=tmp_path / "two").rows, right)
        assert installed(model) is adapter
    finally:
        adapter.remove()


def test_they_are_made_once_and_leave_other_random_numbers_alone(plain, monkeypatch):
    model, tokenizer = plain
    before = torch.get_rng_state()
    made = collect(model, tokenizer, 9)
    assert torch.equal(torch.get_rng_state(), before)
    monkeypatch.setattr(Maker, "_chunk", lambda self: pytest.fail("made again"))
    again = collect(model, tokenizer, 9)
    same(again.rows, made.rows)
    same(again.held_out, made.held_out)
    same(collect(model, tokenizer, 4).rows, made.rows[:4])
    same(own_words.held_out(model, tokenizer), made.held_out)
    assert again.seconds == 0


def test_a_killed_run_goes_on(plain, tmp_path, monkeypatch):
    model, tokenizer = plain
    whole = collect(model, tokenizer, 40, kept_in=tmp_path / "whole").rows

    def killed(what, done, of):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        collect(model, tokenizer, 40, kept_in=tmp_path / "killed", say=killed)
    chunks, real = [], Maker._chunk
    monkeypatch.setattr(Maker, "_chunk", lambda self: chunks.append(self.chunks) or real(self))
    same(collect(model, tokenizer, 40, kept_in=tmp_path / "killed").rows, whole)
    assert chunks and chunks[0] == 1, "the first chunk is not made again"


def test_of_two_that_make_at_once_one_goes_on_with_what_the_other_made(plain, monkeypatch):
    first, second = Maker(*plain), Maker(*plain)
    chunk, thread = first._chunk, threading.Thread(target=second.make, args=(9,))

    def beside():
        if not thread.ident:
            thread.start()
        chunk()
        # As if it had been made with another rounding, or in another dtype.
        first.known = [(f"{question}!", reply) for question, reply in first.known]

    monkeypatch.setattr(first, "_chunk", beside)
    monkeypatch.setattr(second, "_chunk", lambda: pytest.fail("made anew"))
    first.make(9)
    thread.join()
    assert second.known == first.known and len(second.known) >= 9


def test_a_damaged_file_counts_as_none(plain, tmp_path):
    model, tokenizer = plain
    right = collect(model, tokenizer, 3, kept_in=tmp_path).rows
    (file,) = tmp_path.glob("*.json")
    file.write_bytes(file.read_bytes()[:-40])
    same(collect(model, tokenizer, 3, kept_in=tmp_path).rows, right)


def test_another_model_or_template_has_others(chat, tmp_path):
    model, tokenizer = chat
    other = copy.copy(tokenizer)
    other.chat_template = tokenizer.chat_template + " "
    keys = {Maker(model, tokenizer).key, Maker(model, other).key, Maker(lively(), tokenizer).key}
    assert len(keys) == 3


def test_without_a_chat_template_they_are_texts_from_their_beginning():
    model, tokenizer = lively(), Letters()
    for row in collect(model, tokenizer, 9).rows:
        assert row.tokens[0] == 1 and row.reply_start == 1
        assert own_words.REPLY < len(row.tokens) - 1 <= own_words.QUESTION + own_words.REPLY
    bare = collect(model, Letters(bos=False), 3).rows
    assert all(row.reply_start == 1 for row in bare), "the first token has no context"


def test_a_model_that_always_says_the_same_is_refused(monkeypatch):
    monkeypatch.setattr(Maker, "_texts", lambda self: [[7] * 9] * 16)
    with pytest.raises(LiftError, match="only 1 different"):
        collect(lively(), Letters(), 9)


def test_those_of_the_embedded_model_are_shipped(embedded, monkeypatch):
    monkeypatch.undo()
    model, tokenizer = embedded
    maker = Maker(model, tokenizer, own_words.SHIPPED.parent / "nowhere")
    assert model.config.name_or_path == NAME and len(maker.known) == 512 + own_words.HELD_OUT
    assert own_words.SHIPPED.stat().st_size < 100_000
    assert len({question.casefold() for question, _ in maker.known}) == len(maker.known)
    for question, reply in maker.known:
        assert len(text_ids(tokenizer, question)) <= own_words.QUESTION + 1, question
        assert 0 < len(reply) <= own_words.REPLY
