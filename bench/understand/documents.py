"""The documents of the understanding benchmark: invented, short, with four kinds of questions."""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from liftcore import document
from liftcore.document import Document
from liftcore.fiction.documents import Fiction, Question, fictional_document, questions
from liftcore.questions.pairs import Pair

WORDS = 450
NAMES = tuple(f"fiction-{seed}" for seed in range(6))
GIVEN = Path(__file__).with_name("given.jsonl")


@dataclass(frozen=True)
class Told:
    """A document, the questions that it is tested on, and pairs as a user's file would hold.

    The pairs ask for the facts of the single questions, in other words than these.
    """

    name: str
    document: Document
    questions: tuple[Question, ...]
    given: tuple[Pair, ...]


def read(name: str, tokenizer: PreTrainedTokenizerBase) -> Told:
    """The document called "fiction-SEED"."""
    fiction = _fiction(name)
    source = document.from_text(fiction.text, tokenizer, fiction.title)
    return Told(name, source, asked(name), given(name))


@functools.cache
def asked(name: str) -> tuple[Question, ...]:
    """The questions on a document."""
    return questions(_fiction(name))


def _fiction(name: str) -> Fiction:
    return fictional_document(int(name.partition("-")[2]), WORDS)


def given(name: str) -> tuple[Pair, ...]:
    """The pairs written by hand for a document."""
    lines = map(json.loads, GIVEN.read_text().splitlines())
    return tuple(Pair(x["question"], x["answer"]) for x in lines if x["document"] == name)
