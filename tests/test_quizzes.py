"""Quizzes: questions cut from sentences, right by construction."""

import pytest

from liftcore.objectives.self_study import SelfStudy
from liftcore.objectives.terms import quizzes
from liftcore.objectives.windows import every_sentence

TEXT = """The Harbour

Nobody minded the noise until the bell was recast in 1763. It was carried to the tower by
Martha Quill, and the bill came to 1,204 guilders. The clock stopped on 4 June 1802. Martha
left. In 1810 the tower burned."""


def pairs(text):
    return [(p.question, p.answer) for w in every_sentence(text, 0) for p in quizzes(w)]


def test_the_words_up_to_a_term_and_a_question_word():
    assert pairs(TEXT) == [
        ("Nobody minded the noise until the bell was recast in which year?", "1763"),
        ("It was carried to the tower by who or what?", "Martha Quill"),
        (
            "It was carried to the tower by Martha Quill, and the bill came to how many guilders?",
            "1,204 guilders",
        ),
        ("The clock stopped on which date?", "4 June 1802"),
    ]


def test_a_term_that_stands_there_twice_or_in_a_heading_is_not_asked_for():
    assert pairs("They all went from Orne back to Orne.") == []
    assert pairs("A short and true history of Orne") == []


@pytest.mark.parametrize("most", [1, 2])
def test_a_sentence_gives_a_few(most):
    (window,) = every_sentence("They all went by way of Orne, of Brill, of Tarn and of Holt.", 0)
    assert len(quizzes(window, most)) == most and len(quizzes(window)) == 3


def test_self_study_makes_them_without_asking_the_model():
    plan = SelfStudy(None, None, TEXT, kinds=("quiz",))._jobs
    assert [job.kind for _, job in plan] == ["quiz"] * 3
    made = [(p.question, p.answer) for _, job in plan for p in job.pairs]
    assert made == pairs(TEXT)
    assert all(p.evidence in " ".join(TEXT.split()) for _, job in plan for p in job.pairs)
