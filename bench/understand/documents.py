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

# Known to a small model without a document: what it still answers after training.
GENERAL = (
    ("What is the capital of France?", "Paris"),
    ("What is the capital of Japan?", "Tokyo"),
    ("What is the capital of Italy?", "Rome"),
    ("What is the capital of Germany?", "Berlin"),
    ("Who wrote Romeo and Juliet?", "Shakespeare"),
    ("Who painted the Mona Lisa?", "Leonardo da Vinci"),
    ("Who was the first president of the United States?", "George Washington"),
    ("Who developed the theory of relativity?", "Einstein"),
    ("What is the largest planet in the solar system?", "Jupiter"),
    ("Which planet is known as the Red Planet?", "Mars"),
    ("What is the largest ocean on Earth?", "Pacific"),
    ("What is the largest animal on Earth?", "blue whale"),
    ("What is the chemical symbol of water?", "H2O"),
    ("What gas do plants take in from the air?", "carbon dioxide"),
    ("Which organ pumps blood through the body?", "heart"),
    ("On which continent does Egypt lie?", "Africa"),
    ("What language do people speak in Brazil?", "Portuguese"),
    ("How many days are there in a week?", "7|seven"),
    ("How many legs does a spider have?", "8|eight"),
    ("What is the currency of the United Kingdom?", "pound"),
)


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
