"""What self-study cuts from a text, asks, and lets pass."""

import re

import pytest
from errors_and_seeds import fresh_seed

from liftcore.fiction.documents import fictional_document
from liftcore.questions.kinds import (
    answer_problem,
    answers,
    first_question,
    good_part,
    opening,
    question_problem,
)
from liftcore.questions.quizzes import GAP, Topics, continuation, gaps, is_english, terms
from liftcore.questions.windows import every_sentence

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


def test_quizzes_are_made_of_english_texts_alone():
    german = (
        "Die Kinder spielen jeden Tag am Ufer der Ruhr in Essen. Im Jahre 1854 kam Paul Teller."
    )
    assert is_english(MILL) and is_english(PASSAGE) and not is_english(german)


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
