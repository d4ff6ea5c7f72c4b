"""The names, numbers and dates of a sentence, and pairs that need no model: quizzes, gaps,
continuations.

Made from the text alone, such a pair is right by construction, however small the model.
"""

from __future__ import annotations

import re
from collections import Counter

from liftcore.objectives.pairs import Pair, normalised
from liftcore.objectives.windows import Window, sentences

GAP = "____"
LONGEST_CUE = 400  # characters of a sentence that a question quotes

_MONTH = "January|February|March|April|May|June|July|August|September|October|November|December"
_NUMBER = re.compile(r"(?<![\w.,])\d[\d,.]*(?<![,.])(?:\s?%)?(?![\w])")
_DATE = re.compile(rf"\b\d{{1,2}} (?:{_MONTH})(?: \d{{3,4}})?|\b(?:{_MONTH}) \d{{1,2}}, \d{{3,4}}")
_NAME = re.compile(r"[^\W\d_a-zß-öø-ÿ][\w’'-]*(?: [^\W\d_a-zß-öø-ÿ][\w’'-]*)*")
_WORD = re.compile(r"[^\W\d_]+")
# Words too common to say what a text is about, or to show that an answer rests on it.
_COMMON = """
a about after all also an and any are as at be because been before being but by can could
did do does for from get had has have he her him his how i if in into is it its just like
made make many may more most much must my name no not number of on one only or other our out
over same she should so some such than that the their them then there these they this those
through to too under up use used very was we well were what when where which while who whom
whose why will with would year years you your
"""
COMMON = frozenset(_COMMON.split())
# An English text has about 14 of these among 100 words, one in another language next to none.
_ENGLISH, _ENGLISH_SHARE = frozenset(["the", "of", "and", "to"]), 0.05


def terms(text: str) -> list[str]:
    """What a question on a sentence may ask for, in order: dates, numbers with the word they
    count, and names. A capital at the start makes no name of a single word."""
    spans = [match.span() for match in _DATE.finditer(text)]
    for match in _NUMBER.finditer(text):
        start, stop = match.span()
        counted = re.match(r" ([a-z]{3,})\b", text[stop:])
        if counted and counted[1] not in COMMON:
            stop += counted.end()
        spans.append((start, stop))
    for match in _NAME.finditer(text):
        start, stop = match.span()
        first = match[0].split()[0]
        if not text[:start].strip(" \n\"'“‘(") or first.casefold() in COMMON:
            # The capital may be that of the sentence: the first word counts with others only.
            if first.casefold() in COMMON:
                start += len(first) + 1
            if len(text[start:stop].split()) < 2 and start == match.start():
                continue
        if stop - start > 2:
            spans.append((start, stop))
    found, last = [], 0
    for start, stop in sorted(spans, key=lambda s: (s[0], -s[1])):
        if start >= last and text[start:stop] not in found:
            found.append(text[start:stop])
            last = stop
    return found


def is_english(text: str) -> bool:
    """Whether a text seems to be in the language of the quizzes."""
    words = [word.casefold() for word in _WORD.findall(text)]
    return sum(word in _ENGLISH for word in words) >= _ENGLISH_SHARE * len(words)


def ends(sentence: str) -> bool:
    """Whether it ends as sentences do; a heading does not."""
    return sentence.rstrip("\"'”’»)] ").endswith((".", "!", "?", "…"))


def names(text: str) -> list[str]:
    """The terms that hold no digit."""
    return [term for term in terms(text) if not any(c.isdigit() for c in term)]


def content_words(text: str) -> set[str]:
    """The words that carry a text's meaning, without capitals and plural endings; numbers are
    among them."""
    plain = normalised(text)
    numbers = {n.replace(",", "") for n in re.findall(r"\d[\d,.]*(?<![,.])", plain)}
    words = {w for w in _WORD.findall(plain) if len(w) > 2 and w not in COMMON}
    return {stem(w) for w in words} | numbers


def stem(word: str) -> str:
    return word[:-1] if len(word) > 3 and word.endswith("s") and word[-2] != "s" else word


def quizzes(window: Window, most: int = 3) -> list[Pair]:
    """The sentence up to a term, with a question word in its place: "... was opened in which
    year?" For the first terms that have at least four words before them."""
    sentence = " ".join(window.sentence.split())
    if len(sentence) > LONGEST_CUE or not ends(sentence):
        return []
    found = []
    for term in terms(sentence):
        before = sentence[: sentence.index(term)].split()
        if len(before) >= 4 and sentence.count(term) == 1 and len(found) < most:
            question = f"{' '.join(before)} {question_word(term)}?"
            found.append(Pair(question, term, sentence, window.number))
    return found


def question_word(term: str) -> str:
    """What asks for a term: which date, which year, how many of what, or who or what."""
    if _DATE.fullmatch(term):
        return "which date"
    if re.fullmatch(r"1\d{3}|20\d{2}", term):
        return "which year"
    if term[0].isdigit():
        return f"how many {term.partition(' ')[2]}".strip()
    return "who or what"


def gaps(window: Window, most: int = 2) -> list[Pair]:
    """ "Which words fill the gap?" for the first terms of the window's sentence."""
    sentence = " ".join(window.sentence.split())
    if len(sentence) > LONGEST_CUE or not ends(sentence):
        return []
    found = []
    for term in terms(sentence):
        rest = len(content_words(sentence.replace(term, " ")))
        # A gap in a few words, or a word that stands there twice, tests nothing.
        if rest >= 3 and sentence.count(term) == 1 and len(found) < most:
            cue = sentence.replace(term, GAP)
            found.append(Pair(f'Which words fill the gap? "{cue}"', term, sentence, window.number))
    return found


def continuation(window: Window, following: str) -> Pair | None:
    """ "How does the text go on?" after the window's sentence."""
    cue, following = (" ".join(text.split()) for text in (window.sentence, following))
    if len(cue) > LONGEST_CUE or len(cue.split()) < 4 or not following:
        return None
    return Pair(f'How does the text go on after "{cue}"', following, following, window.number)


class Topics:
    """What a part of a document is about, in words that tell it from the other parts."""

    def __init__(self, text: str):
        self._count = Counter(name for start, stop in sentences(text)
                              for name in names(text[start:stop]))  # fmt: skip

    def of(self, passage: str) -> str:
        """The one or two names of the passage that are rarest in the document, else its start."""
        found = list(dict.fromkeys(n for a, b in sentences(passage) for n in names(passage[a:b])))
        rarest = sorted(found, key=lambda name: self._count[name])[:2]
        if rarest:
            return " and ".join(sorted(rarest, key=found.index))
        words = passage.split()
        return f'the part that begins "{" ".join(words[:6])}{" ..." if words[6:] else ""}"'
