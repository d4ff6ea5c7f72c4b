"""The kinds of pairs that a model makes of a passage: what it is asked, and which answers pass.

Small models write neither JSON nor two things at once, so each kind asks for one plain text.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from liftcore.objectives.pairs import normalised
from liftcore.objectives.terms import COMMON, content_words, ends, names

Turns = list[tuple[str, str]]  # (role, text)


@dataclass(frozen=True)
class Kind:
    """A kind of text about a passage.

    request    what the model is asked; {passage} is filled in
    question   what the pair then asks; {topic} is filled in
    tokens     new tokens at most
    """

    request: str
    question: str
    tokens: int


TEXTS = {
    "summary": Kind(
        "Summarise this passage in one sentence. Keep the names and numbers.\n\n{passage}",
        "Summarise what is said about {topic}.",
        64,
    ),
    "rephrasing": Kind(
        "Say this in other words. Keep all names and numbers.\n\n{passage}",
        "Tell in other words what is said about {topic}.",
        144,
    ),
    "facts": Kind(
        "List the key facts of this passage, one short sentence a line.\n\n{passage}",
        "What are the key facts about {topic}?",
        128,
    ),
}
QUESTION_TOKENS, ANSWER_TOKENS = 40, 32

# Invented, and unlike each other: a small model clings to the words of its examples.
_EXAMPLES = (
    ("In 1822, after the fire, Paul Teller built a new mill at Orne.", "1822",
     "In which year was a new mill built at Orne?"),
    ("The cheese of the valley is sold by a widow, Mara Quist.", "Mara Quist",
     "Who sells the cheese of the valley?"),
    ("Though small, the library holds 340 maps.", "340 maps",
     "How many maps does the library hold?"),
)  # fmt: skip
_ASK = 'Text: {passage}\n\nWrite a question whose answer is "{target}".'
_ANSWER = "{passage}\n\nQuestion: {question}\nAnswer with a few words from the text."


def question_turns(passage: str, target: str) -> Turns:
    """Asks for a question that `target`, some words of the passage, answers."""
    turns: Turns = []
    for text, answer, question in _EXAMPLES:
        turns += [("user", _ASK.format(passage=text, target=answer)), ("assistant", question)]
    return [*turns, ("user", _ASK.format(passage=passage, target=target))]


def answer_turns(passage: str, question: str) -> Turns:
    """Asks the question again, to see whether the passage answers it as it should."""
    return [("user", _ANSWER.format(passage=passage, question=question))]


def first_question(text: str) -> str:
    """The first question of an answer, or "" when it has none."""
    found = re.match(r"\W*(?:Question:\s*)?([^?\n]{8,}\?)", text)
    return found[1].strip() if found else ""


def question_problem(question: str, target: str, passage: str) -> str:
    """Why a question on the passage must be thrown away; "" when it may stay."""
    if not question:
        return "no question"
    words = content_words(question)
    if len(question.split()) < 4 or not words:
        return "empty question"
    if re.search(r"\b(?:passage|question|the text|this text|sentence|gap)\b", question, re.I):
        return "asks about the text itself"
    if normalised(target) in normalised(question):
        return "the question holds the answer"
    if len(words & content_words(passage)) * 2 < len(words):
        return "not about the passage"
    return _foreign(question, passage)


def text_problem(kind: str, text: str, passage: str) -> str:
    """Why a summary, rephrasing or list of facts must be thrown away; "" when it may stay."""
    words = text.split()
    if len(words) < 4:
        return "empty"
    if repeats(words):
        return "repeats itself"
    if re.search(r"\b(?:this|the) passage\b|\bsummari[sz]e|\bkey facts\b", text, re.I):
        return "speaks of the task"
    plain, source = normalised(text), normalised(passage)
    if plain == source or (kind != "facts" and plain in source and len(plain) > len(source) / 2):
        return "a copy of the passage"
    own = content_words(text)
    if len(own & content_words(passage)) * 2 < len(own):
        return "not about the passage"
    return _foreign(text, passage)


def whole(text: str, cut_off: bool) -> str:
    """A text without the sentence or line at its end that was cut off."""
    text = text.strip()
    if not cut_off or ends(text):
        return text
    stops = [m.end() for m in re.finditer(r"[.!?…][\"'”’)]*(?=\s)|\n", text)]
    return text[: stops[-1]].strip() if stops else ""


def repeats(words: list[str]) -> bool:
    """Whether a text goes round in circles."""
    triples = [tuple(w.casefold() for w in words[i : i + 3]) for i in range(len(words) - 2)]
    return len(triples) > 5 and len(set(triples)) < 0.7 * len(triples)


def _foreign(text: str, passage: str) -> str:
    """Names or numbers that the passage does not have are invented."""
    known = content_words(passage)
    for word in content_words(text) - known:
        if word[0].isdigit():
            return "an invented number"
    for name in names(text):
        parts = [w for w in re.findall(r"[^\W\d_]+", normalised(name)) if w not in COMMON]
        if any(len(w) > 2 and w not in known for w in parts):
            return "an invented name"
    return ""
