"""Self-study: what is asked, what passes, and a model that is left as it was."""

from contextlib import nullcontext
from functools import partial
from itertools import pairwise

import pytest
import torch
from errors_and_seeds import fresh_seed
from tiny import tiny_model

from liftcore.config import QA_KINDS
from liftcore.errors import UsageError
from liftcore.fiction.documents import fictional_document
from liftcore.layers.attention import NAME, fast_attention
from liftcore.layers.lora import Adapter, installed, without_adapter
from liftcore.questions import studied as studied_pairs
from liftcore.questions.forms import forms
from liftcore.questions.quizzes import gaps
from liftcore.questions.self_study import SelfStudy
from liftcore.questions.studied import StudiedPairs
from liftcore.questions.windows import every_sentence

MILL = "Paul Teller built the mill at Orne in 1822. It holds 340 maps. Nobody goes there now."
PASSAGE = "Paul Teller built a mill at Orne in 1822, and it had a sail of red cloth."


class Scripted(SelfStudy):
    """Self-study whose model answers from a script and notes what it was asked."""

    def __init__(self, *args, script, **settings):
        super().__init__(*args, **settings)
        self.script, self.asked = script, []

    def _generate(self, prompts, new_tokens):
        self.asked += [turns[-1][1] if len(turns) % 2 else turns[-2][1] for turns in prompts]
        return [self.script(turns) for turns in prompts]


def script(turns):
    said = " ".join(text for _, text in turns[-2:])
    if said.endswith("In which year"):
        return "was the mill at Orne built?"
    if said.endswith("How many maps"):
        return "does it hold?"
    if said.endswith("What is the name of"):
        return "the one who built the mill in 1822?" if '"Paul Teller"' in said else "?"
    if "Question: In which year" in said:
        return "It was built in 1822."
    if "Question: What is" in said:
        return "Orne"
    if "Question: How many" in said:
        return "340  MAPS, it says."
    return "The mill at Orne holds 340 maps." if "sentence" in said else "Hm."


@pytest.fixture(scope="module")
def tiny(tokenizer):
    model = tiny_model(vocab_size=len(tokenizer), max_position_embeddings=1024)
    return model, tokenizer


def test_questions_are_kept_when_the_model_answers_them_alike(tiny):
    study = Scripted(*tiny, MILL, kinds=("question", "summary"), script=script)
    assert study.expected > 0 and not study.done
    pairs = study.generate_all()
    assert [(p.question, p.answer, p.window) for p in pairs] == [
        ("How many maps does it hold?", "340 maps", 1),
        (
            "Summarise what is said about Paul Teller and Orne.",
            "The mill at Orne holds 340 maps.",
            0,
        ),
    ]
    assert pairs[0].evidence == "It holds 340 maps." and pairs[1].evidence == MILL
    # Paul Teller gets another answer, Orne a question without words, the last sentence none.
    assert study.rejected == {"another answer": 1, "empty question": 1, "no question": 1}
    assert study.done and study.poll() == [] and study.expected == 2


def test_a_sentence_without_terms_gets_a_question_of_the_models_choice(tiny):
    def chosen(turns):
        said = turns[-1][1]
        if said.endswith("a question that this text answers."):
            return "Who goes to the mill nowadays?"
        return "Nobody goes there." if "Question: Who goes to the mill" in said else "Hm."

    text = "Whoever wants flour must look elsewhere. Nobody goes to the mill now."
    study = Scripted(*tiny, text, kinds=("question",), script=chosen)
    assert [(p.question, p.answer) for p in study.generate_all()] == [
        ("Who goes to the mill nowadays?", "Nobody goes there.")
    ]


def test_gaps_and_continuations_need_no_model(tiny):
    study = Scripted(*tiny, MILL, kinds=("gap", "continue"), script=None)
    pairs = study.generate_all()
    assert [p.answer for p in pairs] == [
        "Paul Teller", "Orne", "It holds 340 maps.", "Nobody goes there now."
    ]  # fmt: skip
    assert study.asked == [] and study.tokens == 0


def test_pairs_follow_the_document_batch_by_batch(tiny):
    text = fictional_document(5, 400).text
    study = Scripted(*tiny, text, batch_size=4, script=lambda turns: "Hm.")
    windows, batches = [], 0
    while not study.done:
        before = len(study.asked)
        windows += [p.window for p in study.poll()]
        assert len(study.asked) - before <= 4
        batches += 1
    assert windows == sorted(windows) and batches > 3


def test_parts_are_asked_for_kinds_of_text_in_turns(tiny):
    kinds = ("summary", "rephrasing", "facts")
    text = " ".join([MILL, PASSAGE] * 3)
    study = Scripted(*tiny, text, kinds=kinds, script=lambda turns: "Hm.")
    study.generate_all()
    asked = [request.partition(":\n\n")[::2] for request in study.asked]
    assert len({passage for _, passage in asked}) > 2
    assert all(a[0] != b[0] for a, b in pairwise(asked))
    assert len({kind for kind, _ in asked}) == 3


def test_a_kind_that_does_not_exist(tiny):
    with pytest.raises(UsageError, match="unknown kind of pairs 'poem'"):
        SelfStudy(*tiny, MILL, kinds=("poem",))
    with pytest.raises(UsageError):
        SelfStudy(*tiny, MILL, kinds=())
    assert set(QA_KINDS) >= {"question", "summary", "rephrasing", "facts"}


TURNS = [[("user", "One?")], [("user", "A longer one, is it?"), ("assistant", "Yes, it")]]


def generate(study, turns=TURNS):
    with study._ready():
        return study._generate(turns, 6)


@pytest.mark.parametrize("template", [True, False])
def test_rows_of_a_batch_do_not_see_each_other(tiny, template):
    model, tokenizer = tiny
    study = SelfStudy(model, tokenizer, MILL)
    kept = tokenizer.chat_template
    tokenizer.chat_template = kept if template else None
    try:
        together = generate(study)
        assert together == [generate(study, [turns])[0] for turns in TURNS]
        begun = tokenizer.decode(study._prompt_ids(TURNS[1]))
    finally:
        tokenizer.chat_template = kept
    assert begun.endswith("Yes, it") and len(set(together)) == 2
    assert study.tokens == 24


def test_the_base_model_writes_and_is_left_as_it_was(tokenizer):
    model = tiny_model(vocab_size=len(tokenizer), max_position_embeddings=1024)
    bare = generate(SelfStudy(model, tokenizer, MILL))
    adapter = Adapter(model, 4, 32.0)
    adapter.install()
    adapter.values.normal_(generator=fresh_seed())
    changed = generate(SelfStudy(model, tokenizer, MILL))
    assert changed != bare
    model.train()
    study = SelfStudy(model, tokenizer, MILL, without_adapter=partial(without_adapter, model))
    state = torch.random.get_rng_state()
    assert generate(study) == bare
    assert torch.equal(state, torch.random.get_rng_state())
    assert model.training and installed(model) is adapter
    assert generate(SelfStudy(model, tokenizer, MILL, without_adapter=nullcontext)) == changed


def test_it_writes_between_the_steps_of_a_run(tokenizer):
    model = tiny_model(
        vocab_size=len(tokenizer), max_position_embeddings=1024, dtype=torch.bfloat16
    )
    study = SelfStudy(model, tokenizer, MILL)
    bare = generate(study)
    with fast_attention(model):
        assert model.config._attn_implementation == NAME
        assert generate(study) == bare
        assert model.config._attn_implementation == NAME


def test_a_real_batch_gives_no_pair_that_should_not_pass(tiny):
    study = SelfStudy(*tiny, MILL, batch_size=8)
    pairs = study.generate_all()
    made = {p.answer for p in pairs}
    cut = {p.answer for w in every_sentence(MILL, 0) for p in [*forms(w), *gaps(w)]}
    cut |= {"It holds 340 maps.", "Nobody goes there now."}
    assert made == cut
    assert sum(study.rejected.values()) > 2 and study.tokens > 0 and study.seconds > 0


@pytest.mark.parametrize("how", [KeyboardInterrupt, SystemExit])
def test_questions_that_were_made_are_kept_for_the_next_run(tiny, tmp_path, monkeypatch, how):
    """Behind an interrupt all; behind a kill, after which nothing is written, those until then."""

    def study():
        kinds = ("question", "summary", "gap")
        return Scripted(*tiny, MILL, kinds=kinds, script=script, batch_size=1)

    def studied(made, folder, count=lambda *told: None, key="a"):
        return StudiedPairs(made, key, folder, count, needed=True)

    def stop(what, done, of):
        if done > of // 2:
            raise how

    right, whole = study(), study()
    pairs = studied(right, None).poll()
    if how is SystemExit:
        monkeypatch.setattr(studied_pairs, "SAVE_SECONDS", 0.0)
    first, second, third = study(), study(), study()
    with pytest.raises(how):
        studied(first, tmp_path, stop)
    assert 0 < len(first.asked) < len(right.asked)
    again = studied(second, tmp_path)
    assert (again.poll(), again.rejected) == (pairs, +right.rejected)
    twice = len(first.asked) + len(second.asked) - len(right.asked)
    assert second.asked == right.asked[len(right.asked) - len(second.asked) :]
    assert twice == 0 if how is KeyboardInterrupt else 0 <= twice < len(first.asked)
    # What is whole is not made again, and of other settings it is.
    assert studied(third, tmp_path).poll() == pairs and third.asked == []
    studied(whole, tmp_path, key="b")
    assert whole.asked == right.asked


def test_what_an_interrupt_breaks_off_is_made_again(tiny):
    def broken(turns):
        if not failed and "Question: How many" in turns[-1][1]:
            failed.append(turns)
            raise KeyboardInterrupt
        return script(turns)

    failed, right = [], Scripted(*tiny, MILL, kinds=("question",), script=script)
    study = Scripted(*tiny, MILL, kinds=("question",), script=broken)
    with pytest.raises(KeyboardInterrupt):
        study.poll()
    assert study.generate_all() == right.generate_all() and failed
    assert study.rejected == right.rejected
