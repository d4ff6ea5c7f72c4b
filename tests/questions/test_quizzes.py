"""Quizzes: questions cut from sentences, right by construction."""

import pytest

from liftcore.questions.forms import forms
from liftcore.questions.quizzes import terms
from liftcore.questions.self_study import SelfStudy
from liftcore.questions.windows import every_sentence

TEXT = """The Harbour

Nobody minded the noise until the bell was recast in 1763. It was carried to the tower by
Martha Quill, and the bill came to 1,204 guilders. The clock stopped on 4 June 1802. Martha
left. In 1810 the tower burned."""


def pairs(text):
    """(question, answer) of the first form of each fact: the words up to a term."""
    firsts = {}
    for window in every_sentence(text, 0):
        for pair in forms(window):
            if "of" not in pair.question.split()[:4] and not pair.group.endswith("both"):
                firsts.setdefault(pair.group, (pair.question, pair.answer))
    return list(firsts.values())


def test_the_words_up_to_a_term_and_a_question_word():
    assert pairs(TEXT) == [
        ("Nobody minded the noise until the bell was recast in which year?", "1763"),
        ("It was carried to the tower by who or what?", "Martha Quill"),
        (
            "It was carried to the tower by Martha Quill, and the bill came to how many guilders?",
            "1,204 guilders",
        ),
        ("The clock stopped on which date?", "4 June 1802"),
        ("In which year was it that the tower burned?", "1810"),
    ]


def test_a_term_that_stands_there_twice_or_in_a_heading_is_not_asked_for():
    assert pairs("They all went from Orne back to Orne.") == []
    assert pairs("A short and true history of Orne") == []


def test_a_sentence_gives_a_few():
    (window,) = every_sentence("They all went by way of Orne, of Brill, of Tarn and of Holt.", 0)
    assert len({pair.group for pair in forms(window)}) == 4


def test_self_study_makes_them_without_asking_the_model():
    plan = SelfStudy(None, None, TEXT, kinds=("quiz",))._jobs
    assert [job.kind for job in plan] == ["quiz"] * 4
    made = [p for job in plan for p in job.pairs]
    assert made == [pair for window in every_sentence(TEXT, 300) for pair in forms(window)]
    assert all(p.evidence in " ".join(TEXT.split()) for p in made)


@pytest.mark.parametrize(
    "number",
    [
        "1.5kg", "14:05", "1,234.5", "3/4", "2024-05-06", "v1.2", "10%", "5 %", "$3.50", "-5",
        "10 000", "1'234", "10–12", "192.168.0.1", "06.05.2024", "20°C", "5GB", "9:30am", "1e5",
        "3 March 1822", "1822",
        "-5 °C", "20 °F", "5 km/h", "12 m²", "10 am", "10:30 pm",
        "9 o'clock", "100 BC", "3.5 GHz", "5 €",
    ],
)  # fmt: skip
def test_a_number_is_never_cut_within_itself(number):
    for sentence in (f"The thing that was on the shelf has {number}.",
                     f"They all said that it was ({number}) on the shelf."):  # fmt: skip
        (made,) = terms(sentence)
        assert made == number
        assert [a for _, a in pairs(sentence)] == [number]


@pytest.mark.parametrize(
    "odd",
    [
        "12-year-old",
        "19th",
        "1990s",
        "16,000-ton",
        "#5",
        "10^6",
        "’99",
        "+44 20 7946 0958",
        "+1 555 123 4567",
        "(555) 123-4567",
        "2 1/2",
        "10 - 12",
        "12 × 8",
        "12-13 May 1802",
        "June 4",
        "June 1802",
        "iPhone",
        "eBay",
        "Node.js",
        "al-Qaeda",
        "7-Eleven",
        "Ca2+",
        "2024-05-06T10:00",
    ],
)
def test_what_is_more_than_a_number_is_not_asked_for(odd):
    assert pairs(f"They all said that it was the {odd} one on the shelf.") == []


def test_a_month_is_a_whole_word():
    assert "5 May" not in terms("They met 5 Mayors there.")
