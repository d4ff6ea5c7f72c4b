"""Before and after: what the dates of a text say of its events."""

import random
from datetime import date

from errors_and_seeds import fresh_seed

from liftcore.questions.self_study import SelfStudy
from liftcore.questions.timeline import events, orders
from liftcore.questions.windows import every_sentence

TEXT = (
    "The tower of Orne is old. The bell was recast in 1763. The clock was stopped on 4 June 1802. "
    "In 1750 the roof burned. The gate was sold on June 9, 1802."
)


def asked(text):
    return {p.question: p.answer for group in orders(every_sentence(text, 0)) for p in group}


def test_events_have_a_time_each():
    assert [(e.told, e.when) for e in events(every_sentence(TEXT, 0))] == [
        ("the bell was recast", 1763),
        ("the clock was stopped", date(1802, 6, 4)),
        ("the roof burned", 1750),
        ("the gate was sold", date(1802, 6, 9)),
    ]


def test_what_was_first_and_how_much_later():
    made = asked(TEXT)
    assert made["What happened first: the bell was recast, or the roof burned?"] == (
        "the roof burned"
    )
    assert made["What happened later: the roof burned, or the bell was recast?"] == (
        "the bell was recast"
    )
    assert made["How long after the roof burned was it that the bell was recast?"] == "13 years"
    assert made["How long after the clock was stopped was it that the gate was sold?"] == "5 days"
    assert not any(a == "13 years" and "clock" in q for q, a in made.items())


def test_a_year_and_a_day_of_it_have_no_order():
    text = "The bell was recast in 1802. The gate was sold on 9 June 1802."
    assert orders(every_sentence(text, 0)) == []
    same = "The bell was recast on 9 June 1802. The gate was sold on 9 June 1802."
    assert orders(every_sentence(same, 0)) == []


def test_what_is_told_twice_is_no_event():
    assert events(every_sentence("It was closed in 1801. It was closed in 1805.", 0)) == []


def test_every_order_is_that_of_the_years():
    rng = random.Random(fresh_seed().initial_seed())
    things = ("bell", "clock", "roof", "gate", "mill", "bridge", "tower", "well")
    years = {f"the {thing} was sold": rng.randrange(1500, 1900) for thing in things}
    text = " ".join(f"{told.capitalize()} in {year}." for told, year in years.items())
    made = [pair for group in orders(every_sentence(text, 0)) for pair in group]
    assert len(made) > 60
    for pair in made:
        one, other = sorted((t for t in years if t in pair.question), key=pair.question.index)
        if pair.question.startswith("What"):
            wanted = min if "first" in pair.question else max
            assert pair.answer == wanted((one, other), key=years.get)
        else:
            gap = years[other] - years[one]
            assert gap > 0 and pair.answer == f"{gap} year{'s' if gap > 1 else ''}"


def test_they_are_a_kind_of_self_study():
    jobs = SelfStudy(None, None, TEXT, kinds=("order",))._jobs
    assert {job.kind for job in jobs} == {"order"} and len(jobs) == 3
    assert all(len({p.group for p in job.pairs}) == 1 for job in jobs)
    stops = [job.window.stop for job in jobs]
    assert stops == sorted(stops)
