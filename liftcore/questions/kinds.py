"""The kinds of pairs that a model makes of a passage: what it is asked, and which answers pass.

Small models write neither JSON nor two things at once, so each kind asks for one plain text.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from difflib import SequenceMatcher

from liftcore.questions.quizzes import (
    COMMON,
    LETTERS,
    content_words,
    ends,
    names,
    question_word,
    stem,
    terms,
)
from liftcore.questions.windows import sentences
from liftcore.questions.words import normalised
from liftcore.questions.words import words as words_of

Turns = list[tuple[str, str]]  # (role, text)


@dataclass(frozen=True)
class Kind:
    """A kind of text about a passage.

    request    what the model is asked; {passage} is filled in
    example    a passage and a good answer
    question   what the pair then asks; {topic} is filled in
    """

    request: str
    example: tuple[str, str]
    question: str


_ORCHARD = (
    "The orchard at Pell was planted by two sisters, who disliked each other. They divided it with "
    "a hedge, and for 31 years only the bees went across."
)
TEXTS = {
    "summary": Kind(
        "Summarise in one sentence:\n\n{passage}",
        (_ORCHARD, "Two sisters who disliked each other planted the orchard at Pell and parted it "
         "by a hedge for 31 years."),
        "Summarise what is said about {topic}.",
    ),
    "rephrasing": Kind(
        "Say in other words:\n\n{passage}",
        (_ORCHARD, "Two sisters planted the orchard at Pell. As they did not like each other, a "
         "hedge parted their halves, which nobody but the bees crossed for 31 years."),
        "Tell in other words what is said about {topic}.",
    ),
    "facts": Kind(
        "List the facts, one short sentence a line:\n\n{passage}",
        (_ORCHARD, "The orchard at Pell was planted by two sisters.\nThe sisters disliked each "
         "other.\nA hedge divided the orchard.\nOnly the bees went across for 31 years."),
        "What are the facts about {topic}?",
    ),
}  # fmt: skip
OPENINGS = {
    "who or what": "What is the name of",
    "which date": "On which date",
    "which year": "In which year",
    "what time": "At what time",
}
QUESTION_TOKENS, ANSWER_TOKENS, TEXT_TOKENS = 32, 32, 96

# Invented, and unlike each other: a small model clings to the words of its examples.
_EXAMPLES = (
    ("In 1822, after the fire, Paul Teller built a new mill at Orne.", "1822",
     "In which year was a new mill built at Orne?"),
    ("The cheese of the valley is sold by a widow, Mara Quist.", "Mara Quist",
     "What is the name of the widow who sells the cheese of the valley?"),
    ("Though small, the library holds 340 maps.", "340 maps",
     "How many maps does the library hold?"),
)  # fmt: skip
_ASK = 'Text: {passage}\n\nWrite a question whose answer is "{target}".'
_ASK_FREELY = "Text: {passage}\n\nWrite a question that this text answers."
_ANSWER = "{passage}\n\nQuestion: {question}\nAnswer with a few words from the text."


def text_turns(kind: str, passage: str) -> Turns:
    request, (example, answer) = TEXTS[kind].request, TEXTS[kind].example
    return [
        ("user", request.format(passage=example)),
        ("assistant", answer),
        ("user", request.format(passage=passage)),
    ]


def question_turns(passage: str, target: str) -> Turns:
    """Asks for a question that `target`, some words of the passage, answers; any when that is "".

    With a target the last turn is the beginning of the question, since a small model does not see
    what kind of question it must be.
    """
    ask = _ASK if target else _ASK_FREELY
    turns: Turns = []
    for text, answer, question in _EXAMPLES:
        turns += [("user", ask.format(passage=text, target=answer)), ("assistant", question)]
    turns.append(("user", ask.format(passage=passage, target=target)))
    return [*turns, ("assistant", opening(target))] if target else turns


def opening(target: str) -> str:
    """The first words of a question for a term (see terms.py); none for ""."""
    if not target:
        return ""
    if not any(c.isdigit() for c in target):
        return "What is the name of"
    kind = question_word(target)
    if kind.startswith("how many ") and not target.endswith(("%", "‰")):
        return kind.capitalize()
    return OPENINGS.get(kind, "What number")


def answer_turns(passage: str, question: str) -> Turns:
    """Asks the question again, to see whether the passage answers it as it should."""
    return [("user", _ANSWER.format(passage=passage, question=question))]


def first_question(text: str) -> str:
    """The question that a text begins with, or ""."""
    match = re.match(r"[^?\n]{8,}\?", text.strip())
    return match[0] if match else ""


def question_problem(question: str, target: str, passage: str) -> str:
    """Why a question on the passage must be thrown away; "" when it may stay."""
    if not question:
        return "no question"
    words = content_words(question)
    if len(question.split()) < 4 or not words:
        return "empty question"
    if re.search(r"\b(?:passage|question|the text|this text|sentence|gap)\b", question, re.I):
        return "asks about the text itself"
    if target and normalised(target) in normalised(question):
        return "the question holds the answer"
    if len(words & content_words(passage)) * 2 < len(words):
        return "not about the passage"
    return _foreign(question, passage)


def answers(answer: str, target: str, question: str, sentence: str) -> bool:
    """Whether an answer from the sentence means `target`: that comes before any other term that
    the question has not named. Names may be spelt a little differently."""
    asked = [term for term in terms(sentence) if normalised(term) not in normalised(question)]
    places = {term: _place(term, answer) for term in {*asked, target}}
    said = {term: place for term, place in places.items() if place >= 0}
    return target in said and said[target] == min(said.values())


def answer_problem(answer: str, question: str, sentence: str) -> str:
    """Why an answer that the model chose itself must be thrown away; "" when it may stay."""
    words = content_words(answer)
    if not words or words <= content_words(question):
        return "empty answer"
    if len(answer.split()) > 3 and not ends(answer):
        return "cut off"
    if repeats(answer.split()):
        return "repeats itself"
    if not _rests_on(words, sentence):
        return "not about the passage"
    return _foreign(answer, sentence)


def _place(term: str, answer: str) -> int:
    """The word of the answer at which a term, or the last word of a name, stands; -1 if none."""
    wanted, said = words_of(term), words_of(answer)
    exact = any(c.isdigit() for c in term)
    ways = [wanted] if exact or len(wanted[-1]) < 4 else [wanted, wanted[-1:]]
    for way in ways:
        for n in range(len(said) - len(way) + 1):
            here = said[n : n + len(way)]
            alike = SequenceMatcher(None, " ".join(here), " ".join(way), autojunk=False).ratio()
            if here == way or (not exact and alike > 0.8):
                return n
    return -1


def good_part(text: str, passage: str) -> tuple[str, str]:
    """(what may stay of a summary, rephrasing or list of facts, what is wrong with the rest).

    A sentence stays that rests on the passage, names nothing else, and is whole and new. Nothing
    is left of a copy of the passage.
    """
    kept, problems, said = [], [], set()
    for line in filter(None, map(str.strip, text.split("\n"))):
        line = re.sub(r"^(?:[-*•]|\d{1,2}[.)])\s+", "", line)
        good = []
        for start, stop in sentences(line):
            sentence = line[start:stop]
            problem = (
                "repeats itself" if normalised(sentence) in said else _problem(sentence, passage)
            )
            said.add(normalised(sentence))
            good += [] if problem else [sentence]
            problems += [problem] if problem else []
        kept += [" ".join(good)] if good else []
    good_text = "\n".join(kept)
    if good_text and normalised(good_text) in normalised(passage):
        return "", "a copy of the passage"
    return good_text, (problems or ["empty"])[0]


def _problem(sentence: str, passage: str) -> str:
    words = content_words(sentence)
    if repeats(sentence.split()):
        return "repeats itself"
    if len(sentence.split()) < 4 or len(words) < 2 or not ends(sentence):
        return "cut off"
    if re.search(r"\b(?:this|the) (?:passage|text|sentence)\b|\bsummar|\bfacts\b", sentence, re.I):
        return "speaks of the task"
    if not _rests_on(words, passage):
        return "not about the passage"
    return _foreign(sentence, passage)


def _rests_on(words: set[str], passage: str) -> bool:
    return len(words & content_words(passage)) * 3 >= 2 * len(words)


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
        parts = [w for w in LETTERS.findall(normalised(name)) if w not in COMMON]
        if any(len(w) > 2 and stem(w) not in known for w in parts):
            return "an invented name"
    return ""
