"""Invented documents with known facts, so that no model can have read them before.

A document is the account of a harbour town, an expedition or a workshop; the seed picks which.
Its names, numbers and dates are drawn at random, every fact is stated once, and the prose
(templates.py) offers several wordings of each sentence and more sections than one
document needs, so that two seeds share little of their text.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import date, timedelta
from functools import cache
from itertools import pairwise
from typing import Any, TypeVar

from liftcore.fiction.templates import BRIDGES, GENRES, LINKS, SYLLABLES

MIN_WORDS, MAX_WORDS = 220, 5000
# Below so many words an account may end without its last section.
SHORT = 300
# One account has matter for about this many words; a longer document tells two or three.
ACCOUNT_WORDS = 1700

T = TypeVar("T")
_PARTS = {kind: parts.split() for kind, parts in SYLLABLES.items()}


@dataclass(frozen=True)
class Fact:
    """One thing the text says, exactly once: the text holds cue, one space, answer."""

    question: str
    cue: str
    answer: str
    kind: str


@dataclass(frozen=True)
class Question:
    """A question on a document; kind is single, two, timeline or unanswerable."""

    question: str
    answer: str
    kind: str


@dataclass(frozen=True)
class Fiction:
    """An invented document. `others` holds the questions that need more than one fact, or none."""

    title: str
    text: str
    facts: tuple[Fact, ...]
    others: tuple[Question, ...] = field(default=(), repr=False)


@dataclass(frozen=True)
class _Section:
    name: str
    topic: str
    lines: tuple[tuple[str, str], ...]  # (mark, text); a "-" text holds its wordings, tab-separated


@dataclass(frozen=True)
class _Passage:
    """A printed section."""

    topic: str
    text: str
    facts: tuple[Fact, ...]
    events: tuple[tuple[str, int | date], ...]
    others: tuple[Question, ...]


@cache
def _sections(source: str) -> dict[str, _Section]:
    """Read the line format that templates.py describes."""
    sections = {}
    for block in re.split(r"^# ", source, flags=re.M)[1:]:
        head, *rest = re.sub(r"\n {2,}", " ", block.strip()).split("\n")
        name, _, topic = head.partition(" | ")
        lines: list[tuple[str, str]] = []
        for line in filter(None, rest):
            mark, text = line.split(" ", 1)
            if mark == "/":
                lines[-1] = ("-", lines[-1][1] + "\t" + text)
            else:
                lines.append((mark, text))
        sections[name] = _Section(name, topic, tuple(lines))
    return sections


class _Pool:
    """Draws names, numbers and dates, no two alike within a document."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.used: set[object] = set()

    def _fresh(self, make: Callable[[], T]) -> T:
        for _ in range(10_000):
            value = make()
            if value not in self.used:
                self.used.add(value)
                return value
        raise RuntimeError("the stock of invented values is exhausted")

    def _join(self, *kinds: str) -> str:
        return self._fresh(lambda: "".join(self.rng.choice(_PARTS[kind]) for kind in kinds))

    def draw(self, kind: str, args: list[str], known: dict[str, Any]) -> Any:
        rng = self.rng
        if kind in ("man", "woman"):
            return f"{self._join('given', kind)} {self._join('family', 'family end')}"
        if kind in ("given-man", "given-woman"):
            return self._join("given", kind.removeprefix("given-"))
        if kind == "surname":
            return self._join("family", "family end")
        if kind in ("place", "name"):
            return self._join(kind, f"{kind} middle", f"{kind} end")
        if kind == "object":
            # Material and thing each once: two like objects would make one a clue to the other.
            return f"{self._join('stuff')} {self._join('thing')}"
        if kind in ("num", "year"):
            return self._fresh(lambda: rng.randint(int(args[0]), int(args[1])))
        if kind == "date":
            year, _, later = args[0].partition("+")
            first = date(int(known[year]) + int(later or 0), int(args[1]), 1)
            days = (int(args[2]) - int(args[1]) + 1) * 30 - 2
            return self._fresh(lambda: first + timedelta(days=rng.randrange(days)))
        raise ValueError(f"unknown kind of value: {kind}")


def _show(value: object) -> str:
    if isinstance(value, date):
        return f"{value.day} {_PARTS['month'][value.month - 1]} {value.year}"
    # A thousands comma, but not in years, which never reach 2000 here and stand below it.
    return f"{value:,}" if isinstance(value, int) and value >= 2000 else str(value)


def _fill(text: str, values: dict[str, Any]) -> str:
    text = re.sub(r"\{(\w+)\}", lambda match: _show(values[match[1]]), text)
    text = re.sub(r"\{(\w+)\.last\}", lambda match: str(values[match[1]]).split()[-1], text)
    return re.sub(
        r"\b([Aa])\(n\) (?=(\w))", lambda m: m[1] + ("n " if m[2] in "aeiouAEIOU" else " "), text
    )


def _print(section: _Section, pool: _Pool, world: dict[str, Any]) -> _Passage:
    """Choose the wordings of one section and fill in its values."""
    values, sentences, cues = dict(world), [], {}
    facts, events, others = [], [], []
    for mark, text in section.lines:
        if mark == "$":
            key, kind, *args = text.split()
            values[key] = pool.draw(kind, args, values)
        elif mark == "-":
            wording = pool.rng.choice(text.split("\t"))
            for match in re.finditer(r"\[(\w+): ([^]]+)\]", wording):
                cue = _fill(wording[: match.start()].rstrip(), values)
                cues[match[1]] = (cue, _fill(match[2], values))
            sentences.append(_fill(re.sub(r"\[\w+: ([^]]+)\]", r"\1", wording), values))
        elif mark == "?":
            key, kind, question = text.split(" ", 2)
            facts.append(Fact(_fill(question, values), *cues[key], kind))
        elif mark == "+":
            key, phrase = text.split(" ", 1)
            events.append((_fill(phrase, values), values[key]))
        elif mark == "=":
            rule, question = text.split(" | ")
            parts = rule.split(" - ")
            answer = str(values[parts[0]] - values[parts[1]]) if parts[1:] else _fill(rule, values)
            others.append(Question(_fill(question, values), answer, "two"))
        elif mark == "0":
            others.append(Question(_fill(text, values), "not stated", "unanswerable"))
    body = " ".join(sentences)
    facts.sort(key=lambda fact: body.index(f"{fact.cue} {fact.answer}"))
    return _Passage(section.topic, body, tuple(facts), tuple(events), tuple(others))


def _links(passages: list[_Passage], rng: random.Random, unused: list[str]) -> list[str]:
    """Paragraphs, a few of them led in by a sentence that looks back or ahead."""
    paragraphs = [passages[0].text]
    for before, passage in pairwise(passages):
        inner = before is not passages[0] and passage is not passages[-1]
        if inner and unused and rng.random() < 0.35:
            topic = passage.topic
            link = unused.pop().format(
                prev=before.topic, topic=topic, Topic=topic[0].upper() + topic[1:]
            )
            paragraphs.append(f"{link} {passage.text}")
        else:
            paragraphs.append(passage.text)
    return paragraphs


def _account(genre: str, pool: _Pool, words: int) -> tuple[str, list[str], list[_Passage]]:
    """Title, paragraphs and passages of one account of about `words` words."""
    rng, sections = pool.rng, dict(_sections(genre))
    world: dict[str, Any] = {}
    for _, text in sections.pop("world").lines:
        key, kind, *args = text.split()
        world[key] = pool.draw(kind, args, world)
    title = _print(sections.pop("title"), pool, world).text
    printed = {name: _print(section, pool, world) for name, section in sections.items()}
    first, last = printed.pop("opening"), printed.pop("closing")
    best: tuple[float, list[_Passage], list[str]] = (float("inf"), [], [])
    for _ in range(60):
        inner = rng.sample(list(printed.values()), len(printed))
        links = rng.sample(LINKS, 3)
        for stop in range(1, len(inner) + 1):
            passages = [first, *inner[:stop], last]
            if sum(len(p.text.split()) for p in passages) > 0.9 * words:
                break
        ways = [[first, *inner[:count], last] for count in (max(1, stop - 1), stop)]
        if words < SHORT:
            ways.append([first, inner[0]])
        for passages in ways:
            paragraphs = _links(passages, rng, list(links))
            off = abs(sum(len(p.split()) for p in paragraphs) - words)
            if off < best[0]:
                best = (off, passages, paragraphs)
    return title, best[2], best[1]


def _pairs(events: list[tuple[str, Any]], count: int, rng: random.Random) -> Iterator[Question]:
    """Questions on two dated events: how far apart they lie, and which was the earlier."""
    pairs = [(a, b) for i, a in enumerate(events) for b in events[i + 1 :]]
    pairs = [pair if rng.random() < 0.5 else pair[::-1] for pair in rng.sample(pairs, len(pairs))]
    alike = [(a, b) for a, b in pairs if type(a[1]) is type(b[1])]
    for (a, when_a), (b, when_b) in alike[:count]:
        gap, unit = abs(when_a - when_b), "years"
        if isinstance(gap, timedelta):
            gap, unit = gap.days, "days"
        yield Question(f"How many {unit} lie between {a} and {b}?", f"{gap} {unit}", "two")
    for (a, when_a), (b, when_b) in alike[-count:]:
        earlier = a if when_a < when_b else b
        yield Question(f"Which came first, {a} or {b}?", earlier, "timeline")


def _compose(seed: int, words: int, attempt: int) -> Fiction:
    rng = random.Random(f"{seed}/{words}/{attempt}")
    pool = _Pool(rng)
    parts = min(len(GENRES), -(-words // ACCOUNT_WORDS))
    titles, paragraphs, others = [], [], []
    facts: list[Fact] = []
    for part in range(parts):
        title, texts, passages = _account(GENRES[(seed + part) % len(GENRES)], pool, words // parts)
        if part:
            texts[0] = f"{rng.choice(BRIDGES[part - 1])} {texts[0]}"
        titles.append(title)
        paragraphs += texts
        facts += [fact for passage in passages for fact in passage.facts]
        others += [question for passage in passages for question in passage.others]
        events = [event for passage in passages for event in passage.events]
        others += _pairs(events, max(2, words // parts // 270), rng)
    return Fiction(titles[0], "\n\n".join([titles[0], *paragraphs]), tuple(facts), tuple(others))


def fictional_document(seed: int = 0, words: int = 1550) -> Fiction:
    """An invented document of about `words` words (220 to 5000, within 10 %) and its facts.

    The default is about 2,000 tokens. The same seed and length give the same document. Up to
    1,700 words it is one account, beyond that two or three in a row. Raises ValueError for a
    length outside the range.
    """
    if not MIN_WORDS <= words <= MAX_WORDS:
        raise ValueError(f"words must lie between {MIN_WORDS} and {MAX_WORDS}, not {words}")
    for attempt in range(100):
        fiction = _compose(seed, words, attempt)
        text = fiction.text
        # A chance repetition (one answer inside another word or number) is drawn again.
        clean = all(text.count(f.cue) == text.count(f.answer) == 1 for f in fiction.facts)
        if clean and abs(len(text.split()) - words) <= 0.08 * words:
            return fiction
    raise RuntimeError(f"no document for seed {seed} and {words} words")


def questions(fiction: Fiction) -> tuple[Question, ...]:
    """All questions on a document: one for each fact, then those of the other three kinds."""
    single = tuple(Question(fact.question, fact.answer, "single") for fact in fiction.facts)
    return single + fiction.others
