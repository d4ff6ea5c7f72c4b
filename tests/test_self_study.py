"""Self-study: what is asked, what passes, and a model that is left as it was."""

import re
from contextlib import nullcontext

import pytest
import torch
from errors_and_seeds import fresh_seed
from tiny import tiny_model

from liftcore.attention import NAME, fast_attention
from liftcore.errors import UsageError
from liftcore.fiction import fictional_document
from liftcore.lora import Adapter
from liftcore.objectives.self_study import KINDS, SelfStudy
from liftcore.objectives.study_kinds import (
    answer_problem,
    answers,
    first_question,
    good_part,
    opening,
    question_problem,
)
from liftcore.objectives.terms import GAP, Topics, continuation, gaps, terms
from liftcore.objectives.windows import every_sentence

MILL = "Paul Teller built the mill at Orne in 1822. It holds 340 maps. Nobody goes there now."
PASSAGE = "Paul Teller built a mill at Orne in 1822, and it had a sail of red cloth."


def test_terms_of_a_sentence():
    assert terms("On 4 March 1790 Ann Quill sold 2,370 craters for 5 % of Orne.") == [
        "4 March 1790",
        "Ann Quill",
        "2,370 craters",
        "5 %",
        "Orne",
    ]
    assert terms("The Long Mole, begun in 1705 and paid by Ann, is 3.5 paces wide.") == [
        "Long Mole",
        "1705",
        "Ann",
        "3.5 paces",
    ]
    assert terms("Nobody knew whose it was.") == [] == terms("Whales came.")


def test_gaps_can_be_filled_and_hold_the_text():
    seed = fresh_seed().initial_seed() % 10**6
    text = fictional_document(seed, 900).text
    found = [pair for window in every_sentence(text) for pair in gaps(window)]
    assert len(found) > 10
    for pair in found:
        cue = re.search('"(.*)"', pair.question)[1]
        assert cue.count(GAP) == 1 and pair.answer not in cue
        assert cue.replace(GAP, pair.answer) == pair.evidence
        assert pair.evidence in " ".join(text.split())
    assert gaps(every_sentence("A History of Brass and Glass")[0]) == [], "a heading"
    assert gaps(every_sentence("It was Orne.")[0]) == [], "nothing to go by"


def test_continuations_hold_the_text():
    windows = every_sentence(MILL)
    pair = continuation(windows[0], windows[1].sentence)
    assert pair.answer == "It holds 340 maps." and windows[0].sentence in pair.question
    assert continuation(windows[0], "") is None
    assert continuation(every_sentence("Short one.")[0], "More.") is None


def test_a_topic_tells_a_passage_from_the_others():
    topics = Topics("In Orne lives Ann Quill. In Orne lives Bob Rill. In Orne it rains a lot now.")
    assert topics.of("In Orne lives Ann Quill.") == "Orne and Ann Quill"
    assert topics.of("It rains a lot there now and then.") == (
        'the part that begins "It rains a lot there now ..."'
    )


@pytest.mark.parametrize(
    ("question", "target", "problem"),
    [
        ("In which year was the mill at Orne built?", "1822", ""),
        ("", "1822", "no question"),
        ("Who is it there?", "Paul Teller", "empty question"),
        ("What does the passage say of the mill?", "1822", "asks about the text itself"),
        ("Was the mill at Orne built in 1822?", "1822", "the question holds the answer"),
        ("Which ship sailed around the island with the mill?", "1822", "not about the passage"),
        ("Who built the mill at Pell?", "Paul Teller", "an invented name"),
        ("Who built 12 mills at Orne?", "Paul Teller", "an invented number"),
    ],
)
def test_questions_that_pass(question, target, problem):
    assert question_problem(question, target, PASSAGE) == problem


@pytest.mark.parametrize(
    ("answer", "target", "right"),
    [
        ("Paul Teller of Orne built it in 1822.", "Paul Teller", True),
        ("Paul Teller of Orne built it in 1822.", "Orne", False),
        ("It was paul  tellar.", "Paul Teller", True),
        ("Peter Miller did.", "Paul Teller", False),
        ("It was Teller.", "Paul Teller", True),
        ("It has 341 maps.", "340 maps", False),
    ],
)
def test_what_counts_as_the_same_answer(answer, target, right):
    sentence = "Paul Teller of Orne built it in 1822 for 340 maps."
    assert answers(answer, target, "What was built there?", sentence) == right


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        ("A sail of red cloth.", ""),
        ("Red cloth", ""),
        ("The mill.", "empty answer"),
        ("A sail of red cloth, which", "cut off"),
        ("A sail made by bees and whales.", "not about the passage"),
        ("A red sail of Pell.", "an invented name"),
    ],
)
def test_answers_that_the_model_chose(answer, problem):
    assert answer_problem(answer, "What did the mill have?", PASSAGE) == problem


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


def test_what_the_question_names_is_no_other_answer():
    sentence = "Paul Teller built the mill at Orne."
    assert answers("At Orne built it Paul Teller.", "Paul Teller", "Who was it at Orne?", sentence)


def test_the_first_question_of_an_answer():
    assert first_question(" How many maps are there? Who knows?") == "How many maps are there?"
    assert first_question("No question.\nIs it?") == "" == first_question("Eh?")


@pytest.mark.parametrize(
    ("target", "begins"),
    [
        ("Ann Quill", "What is the name of"),
        ("4 March 1790", "On which date"),
        ("1705", "In which year"),
        ("340 maps", "How many maps"),
        ("12", "What number"),
        ("5 %", "What number"),
    ],
)
def test_a_question_begins_as_its_answer_wants(target, begins):
    assert opening(target) == begins


@pytest.mark.parametrize(
    ("text", "left", "problem"),
    [
        ("A mill with a red sail was built at Orne.", "A mill with a red sail was built at Orne.",
         "empty"),
        ("- Paul Teller built it at Orne.\n2. The mill had a red sail.\n* The mill had",
         "Paul Teller built it at Orne.\nThe mill had a red sail.", "cut off"),
        ("The mill had a red sail. A dragon of Pell burnt it.", "The mill had a red sail.",
         "not about the passage"),
        ("The red sail of the mill at Pell.", "", "an invented name"),
        ("The mill at Orne had 3 red sails.", "", "an invented number"),
        ("The passage tells of a mill at Orne.", "", "speaks of the task"),
        ("The mill had a mill had a mill had a mill had a mill had a mill.", "",
         "repeats itself"),
        ("The mill had red cloth. The mill had red cloth.", "The mill had red cloth.",
         "repeats itself"),
        (PASSAGE.upper(), "", "a copy of the passage"),
        ("", "", "empty"),
    ],
)  # fmt: skip
def test_what_stays_of_a_text(text, left, problem):
    assert good_part(text, PASSAGE) == (left, problem)


class Scripted(SelfStudy):
    """Self-study whose model answers from a script and notes what it was asked."""

    def __init__(self, *args, script, **settings):
        super().__init__(*args, **settings)
        self.script, self.asked = script, []

    def _generate(self, prompts, new_tokens, sample):
        self.asked += [(turns[-1][1] if len(turns) % 2 else turns[-2][1], sample)
                       for turns in prompts]  # fmt: skip
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


def test_gaps_and_continuations_need_no_model_and_come_once(tiny):
    study = Scripted(*tiny, MILL, kinds=("gap", "continue"), rounds=3, script=None)
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


def test_rounds_ask_each_part_for_another_kind_of_text(tiny):
    kinds = ("summary", "rephrasing", "facts")
    study = Scripted(
        *tiny, " ".join([MILL, PASSAGE] * 3), kinds=kinds, rounds=3, script=lambda turns: "Hm."
    )
    study.generate_all()
    asked = {}
    for request, _ in study.asked:
        kind, _, passage = request.partition(":\n\n")
        asked.setdefault(passage, []).append(kind)
    assert len(asked) > 2 and all(len(set(kinds)) == len(kinds) == 3 for kinds in asked.values())
    per_round = len(study.asked) // 3
    assert [a[1] for a in study.asked[::per_round]] == [False, True, True], "later rounds sample"


def test_a_kind_that_does_not_exist(tiny):
    with pytest.raises(UsageError, match="unknown kind of pairs 'poem'"):
        SelfStudy(*tiny, MILL, kinds=("poem",))
    with pytest.raises(UsageError):
        SelfStudy(*tiny, MILL, kinds=())
    assert set(KINDS) >= {"question", "summary", "rephrasing", "facts"}


TURNS = [[("user", "One?")], [("user", "A longer one, is it?"), ("assistant", "Yes, it")]]


def generate(study, turns=TURNS, sample=False):
    with study._ready(1):
        return study._generate(turns, 6, sample)


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
    study = SelfStudy(model, tokenizer, MILL, without_adapter=adapter.disabled)
    state = torch.random.get_rng_state()
    assert generate(study) == bare
    generate(study, sample=True)
    assert torch.equal(state, torch.random.get_rng_state())
    assert model.training and all(layer.enabled for layer in adapter.layers.values())
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
    cut = {"Paul Teller", "Orne", "1822", "It holds 340 maps.", "Nobody goes there now."}
    assert made == cut
    assert sum(study.rejected.values()) > 2 and study.tokens > 0 and study.seconds > 0
