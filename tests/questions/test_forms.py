"""The forms of a quiz: right by construction, or not there."""

import random
import re

import pytest
from errors_and_seeds import fresh_seed

from liftcore.fiction.documents import fictional_document
from liftcore.questions.forms import event, forms, places
from liftcore.questions.windows import every_sentence


def asked(text):
    return [(p.question, p.answer) for w in every_sentence(text, 0) for p in forms(w)]


def test_a_dated_clause_is_asked_for_in_many_ways():
    made = asked("Nobody minded the noise, until the bell was recast by hand in 1763.")
    assert made == [
        ("Nobody minded the noise, until the bell was recast by hand in which year?", "1763"),
        ("The bell was recast by hand in which year?", "1763"),
        ("In which year was the bell recast by hand?", "1763"),
        ("When was the bell recast by hand?", "1763"),
        ("What happened in 1763?", "the bell was recast by hand"),
    ]


def test_a_date_in_front_and_a_verb_without_auxiliary():
    made = dict(asked("In 1810 the old tower burned, and nobody rebuilt it."))
    assert made["In which year was it that the old tower burned?"] == "1810"
    assert made["What happened in 1810?"] == "the old tower burned"


def test_a_name_beside_its_noun_and_behind_a_passive():
    made = dict(asked("The papers were carried upstairs by the assistant clerk Ann Quill."))
    assert made["Who or what carried the papers upstairs?"] == "Ann Quill"
    assert made["What is the name of the assistant clerk?"] == "Ann Quill"
    assert made["Who or what is Ann Quill?"] == "the assistant clerk"
    made = dict(asked("The shop lay over a stable, in a lane called Orne Row."))
    assert made["What is the name of the lane?"] == "Orne Row"
    assert made["Who or what is Orne Row?"] == "a lane"


def test_what_tells_or_asks_nothing_is_no_form():
    opened = asked("In 1911 Ruth Hale, then mayor of the town, opened the mill.")
    assert "What is told of Ruth Hale?" not in dict(opened)
    joined = asked("The bridge was designed by Otto Klein and, much later, painted by his son.")
    assert "What is told of Otto Klein?" not in dict(joined)
    assert dict(joined)["The bridge was designed by who or what?"] == "Otto Klein"
    night = asked("On the night of 3 May 1822, a storm took the roof.")
    assert not [question for question, _ in night if question == "On the night of which date?"]
    told = dict(asked("The bell was recast by Ann Quill, who lived nearby."))
    assert told["What is told of Ann Quill?"] == "The bell was recast by Ann Quill"


def test_two_terms_in_one_question():
    made = dict(asked("The tower was designed by Martha Quill, and the bill came to 1,204 crowns."))
    question = "The tower was designed by who or what, and the bill came to how many crowns?"
    assert made[question] == "Martha Quill; 1,204 crowns"


def test_forms_of_one_fact_share_a_group_and_others_do_not():
    text = "The tower was designed by Ann Quill, and in 1763 it was sold to Paul Teller. " * 2
    first, second = ([p.group for p in forms(w)] for w in every_sentence(text, 0))
    assert len(set(first)) == 4 and not set(first) & set(second)


@pytest.mark.parametrize(
    "sentence",
    [
        "The king praised the bridge built in 1705.",
        "He left the mill, opened by Ann, in 1705.",
        "The Long Mole, begun in 1705 and paid by Ann, is wide.",
        "The tower was not opened in 1810.",
        "The company might have been founded in 1833.",
        "It was said that the tower burned in 1822.",
        "The plan was to leave the town in 1850.",
        "The ship was due to arrive on 4 May 1850.",
        "If the bridge was opened in 1805, nobody saw it.",
        "The book tells how the city was founded in 1200.",
        "Tom was hired to replace the clerk who was fired in 1888.",
        "The bridge was opened in 1801, to horses in 1802.",
        "Was the old mill burned in 1790?",
        'The sign said "the mill was burned in 1820.',
        "The mill was closed before the war in 1820.",
    ],
)
def test_what_a_date_may_not_belong_to_is_no_event(sentence):
    assert [event(place) for place in places(sentence) if event(place)] == []
    assert not any(re.match(r"(In|On|When|What happened)\b", q) for q, _ in asked(sentence)
                   if not sentence.startswith(q[:12]))  # fmt: skip


@pytest.mark.parametrize(
    "sentence",
    [
        "They say that after dark the dog bit Paul.",
        "We walked all the way by the bridge Paul built.",
        "Prices were raised everywhere by the time of Paul.",
        "The song was inspired long ago by the late Paul Teller, they sang of the moons of Orne.",
        "Nobody really liked the man who came with a dog, Bello.",
        "We were in the garden with the woman who married Paul.",
    ],
)
def test_a_name_beside_another_word_is_not_named_by_it(sentence):
    made = asked(sentence)
    assert not any(q.startswith(("What is the name", "Who or what is")) for q, _ in made)
    assert ("Who or what raised Prices everywhere?", "Paul") not in made


def test_every_form_is_told_by_its_sentence():
    """Question and answer hold no content that the sentence lacks."""
    seed = fresh_seed().initial_seed() % 10**6
    own = set(re.findall(r"\w+", "who or what which year date how many much is was it that when in "
                                 "on the name of happened told"))  # fmt: skip
    text = fictional_document(seed, 900).text
    count = 0
    for window in every_sentence(text, 0):
        known = set(re.findall(r"\w+", window.sentence.casefold())) | own | {"them", "him", "her"}
        for pair in forms(window):
            count += 1
            said = set(re.findall(r"\w+", f"{pair.question} {pair.answer}".casefold()))
            assert said <= known, (said - known, pair)
            assert pair.answer.casefold() not in pair.question.casefold()
            assert pair.window == window.number
    assert count > 40


def test_a_shuffled_text_breaks_nothing():
    rng = random.Random(fresh_seed().initial_seed())
    words = fictional_document(rng.randrange(1000), 400).text.split()
    for _ in range(5):
        rng.shuffle(words)
        for window in every_sentence(" ".join(words), 0):
            assert all(p.answer and p.question.endswith("?") for p in forms(window))
