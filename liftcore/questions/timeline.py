"""Questions on how the dated events of a text lie to one another, right by construction."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date

from liftcore.questions.forms import event, places
from liftcore.questions.pairs import Pair
from liftcore.questions.windows import Window

NEAR = 4  # of the other events that each is compared with

_NAMES = "January February March April May June July August September October November December"
_MONTHS = list(map(str, _NAMES.split()))
_DAY = re.compile(r"(\d{1,2}) ([A-Z][a-z]+) (\d{4})|([A-Z][a-z]+) (\d{1,2}), (\d{4})")


@dataclass(frozen=True)
class Event:
    """What happened, as a clause, and when: a year or a day."""

    told: str
    when: int | date
    window: Window

    @property
    def year(self) -> int:
        return self.when.year if isinstance(self.when, date) else self.when


def events(windows: Sequence[Window]) -> list[Event]:
    """The dated events of a text, in its order; of those that are told alike none."""
    made = []
    for window in windows:
        for place in places(window.sentence):
            told, when = event(place), _when(place.term)
            if told and when is not None:
                made.append(Event(told, when, window))
    told = [each.told.casefold() for each in made]
    return [each for each in made if told.count(each.told.casefold()) == 1]


def _when(term: str) -> int | date | None:
    if re.fullmatch(r"1\d{3}|20\d\d", term):
        return int(term)
    if match := _DAY.fullmatch(term):
        day, month, year = match.group(1, 2, 3) if match[1] else match.group(5, 4, 6)
        try:
            return date(int(year), _MONTHS.index(month) + 1, int(day))
        except ValueError:
            return None
    return None


def orders(windows: Sequence[Window]) -> list[list[Pair]]:
    """For each event the questions that compare it with those told after it: which was first or
    last, and how much later. Each list belongs to the later window of its pairs."""
    known = events(windows)
    made = []
    for n, later in enumerate(known):
        pairs = [pair for other in known[max(0, n - NEAR) : n] for pair in _compared(other, later)]
        made += [pairs] if pairs else []
    return made


def _compared(a: Event, b: Event) -> list[Pair]:
    first, second = sorted((a, b), key=lambda e: e.year)
    if isinstance(a.when, date) and isinstance(b.when, date):
        first, second = (a, b) if a.when < b.when else (b, a)
        if a.when == b.when:
            return []
    elif first.year == second.year:
        return []
    group = f"{b.window.start}/order"
    evidence = " ".join(b.window.sentence.split())

    def pair(question: str, answer: str) -> Pair:
        return Pair(question, answer, evidence, b.window.number, group)

    made = []
    for one, other in ((a.told, b.told), (b.told, a.told)):
        made.append(pair(f"What happened first: {one}, or {other}?", first.told))
        made.append(pair(f"What happened later: {one}, or {other}?", second.told))
    if gap := _gap(first.when, second.when):
        made.append(pair(f"How long after {first.told} was it that {second.told}?", gap))
        question = f"How much time is there from when {first.told} to when {second.told}?"
        made.append(pair(question, gap))
    return made


def _gap(first: int | date, second: int | date) -> str:
    """The time from one to the other, where both are given alike."""
    if isinstance(first, date) and isinstance(second, date):
        count, unit = (second - first).days, "day"
    elif isinstance(first, int) and isinstance(second, int):
        count, unit = second - first, "year"
    else:
        return ""
    return f"{count} {unit}{'' if count == 1 else 's'}"
