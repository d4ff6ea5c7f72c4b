"""The names, numbers and dates of a sentence, and pairs that need no model: gaps and
continuations; forms.py has the quizzes.

Made from the text alone, such a pair is right by construction, however small the model.
"""

from __future__ import annotations

import re
from collections import Counter

from liftcore.questions.pairs import Pair
from liftcore.questions.windows import Window, sentences
from liftcore.questions.words import MARKS, normalised

GAP = "____"
LONGEST_CUE = 400  # characters of a sentence that a question quotes

_MONTH = "January|February|March|April|May|June|July|August|September|October|November|December"
# What stands between spaces, brackets and quotes: a number is all of it, or none of its business.
_CHUNK = re.compile(r"[^\s()\[\]{}\"“”„«»…—;]+")
_NUMBER = re.compile(
    r"[-−+]?[$€£¥₹]?\d+(?:[.,:/×'’–-]\d+)*(?:[%‰]|(?!(?:st|nd|rd|th|s)$)[^\W\d_][\w/]{0,5}|°\w?)?"
    r"|v\d+(?:\.\d+)*"
)
_PLAIN = re.compile(r"[-−+]?[$€£¥₹]?(?:\d+(?:[.,’']\d+)*|\d+/\d+)")
_GROUPED = re.compile(r"(?<![^\s(\[\"“„«])\d{1,3}(?: \d{3})+(?:[.,]\d+)?(?![\w'’-]|[.,:/]\d)")
_HALF, _ERA = r"[ap]m|[ap]\.m\.", "AD|BC|BCE|CE"
_UNIT = (
    r"°[CFKR]?|[%‰€$£¥₹¢]|[kcmµn]?m[²³]?|[kmµ]?g|[cm]?l|km/h|m/s|mph|ft|lbs?|oz|ha|[kMGT]?Hz|[kMGT]B"
    rf"|[kMG]?Wh?|[km]?V|mA|o['’]clock|{_HALF}|{_ERA}"
)
_COUNTED = re.compile(rf" (?:(?:{_UNIT})(?![\w'’/-])|([a-z]{{3,}})(?![\w'’/-]))")
# What makes of two numbers one, a telephone number say, or of a month and a number a date.
_PARTED = r"\)? (?:[-–−×x*/+=:] )?\(?"
_PART_BEHIND = re.compile(rf"{_PARTED}[-−+]?[$€£¥₹]?\d| (?:{_MONTH})\b")
_PART_BEFORE = re.compile(rf"(?:\d{_PARTED}|\b(?:{_MONTH}) )$")
_YEAR = re.compile(rf"1\d{{3}}|20\d\d|\d+ (?:{_ERA})")
_CLOCK = re.compile(rf"\d{{1,2}}:\d\d(?::\d\d)?(?: ?(?:{_HALF}))?|\d{{1,2}} (?:{_HALF}|o['’]clock)")
_DATE = re.compile(
    rf"(?<![\w.,:/-])\d{{1,2}} (?:{_MONTH})(?![\w-])(?: \d{{3,4}}(?![\w:/-]))?"
    rf"|\b(?:{_MONTH}) \d{{1,2}}, \d{{3,4}}(?![\w:/-])"
    r"|(?<![\w.,:/-])(?:\d{4}-\d\d-\d\d|\d{1,2}([./])\d{1,2}\1\d{4})(?![\w:/-])"
)
_IN_NAME = rf"[\w’'{MARKS}-]"
# A whole word: not the Phone of iPhone, nor the Node of Node.js.
_NAME = re.compile(
    rf"(?<![\w&@#+*/.-])(?<!\w['’])[^\W\d_a-zß-öø-ÿ]{_IN_NAME}*"
    rf"(?: [^\W\d_a-zß-öø-ÿ]{_IN_NAME}*)*(?!{_IN_NAME}|[&@#+*/]|\.\w)"
)
_BEHIND_MONTH = re.compile(rf"(?:{_MONTH}) \d")
LETTERS = re.compile(rf"(?:[^\W\d_]|[{MARKS}])+")
_DIGITS = re.compile(r"\d+(?:[.,:/-]\d+)*")
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
    spans = [match.span() for match in _DATE.finditer(text)] + _numbers(text)
    opens = len(text) - len(text.lstrip(" \n\"'“‘("))
    for match in _NAME.finditer(text):
        start, stop = match.span()
        first = match[0].split()[0]
        if start <= opens or first.casefold() in COMMON:
            # The capital may be that of the sentence: the first word counts with others only.
            if first.casefold() in COMMON:
                start += len(first) + 1
            if len(text[start:stop].split()) < 2 and start == match.start():
                continue
        if _BEHIND_MONTH.match(text, stop - len(match[0].split()[-1])):
            continue
        if stop - start > 2:
            spans.append((start, stop))
    chosen, last = {}, 0
    for start, stop in sorted(spans, key=lambda s: (s[0], -s[1])):
        if start >= last and text[start:stop] not in chosen:
            chosen[text[start:stop]] = True
            last = stop
    return list(chosen)


def _numbers(text: str) -> list[tuple[int, int]]:
    """(start, stop) of the numbers, whole: with sign, unit, and the word that it counts."""
    spans = [(match.start(), _counted(text, match.end())) for match in _GROUPED.finditer(text)]
    for match in _CHUNK.finditer(text):
        number = match[0].rstrip(".,:!?'’*")
        if _NUMBER.fullmatch(number):
            start, stop = match.start(), match.start() + len(number)
            if stop == match.end() and not number[-1].isalpha():
                stop = _counted(text, stop)
            spans.append((start, stop))
    return [span for span in spans if not _is_part(text, *span)]


def _is_part(text: str, start: int, stop: int) -> bool:
    """Whether a number is one of several that make up one."""
    behind = _PART_BEHIND.match(text, stop)
    return bool(behind or _PART_BEFORE.search(text[max(0, start - 12) : start]))


def _counted(text: str, stop: int) -> int:
    """The end of a number that ends at `stop`, with a word behind it that it may count."""
    counted = _COUNTED.match(text, stop)
    return stop if counted is None or counted[1] in COMMON else counted.end()


def is_english(text: str) -> bool:
    """Whether a text seems to be in the language of the quizzes."""
    words = [word.casefold() for word in LETTERS.findall(text)]
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
    numbers = {n.replace(",", "") for n in _DIGITS.findall(plain)}
    words = {w for w in LETTERS.findall(plain) if len(w) > 2 and w not in COMMON}
    return {stem(w) for w in words} | numbers


def stem(word: str) -> str:
    return word[:-1] if len(word) > 3 and word.endswith("s") and word[-2] != "s" else word


def gaps(window: Window) -> list[Pair]:
    """ "Which words fill the gap?" for the first two terms of the window's sentence."""
    pairs = []
    for term, sentence in _unique_terms(window):
        cue = sentence.replace(term, GAP)
        # A gap in a few words tests nothing.
        if len(content_words(sentence.replace(term, " "))) >= 3:
            question = f'Which words fill the gap? "{cue}"'
            pairs.append(Pair(question, term, sentence, window.number))
    return pairs[:2]


def _unique_terms(window: Window) -> list[tuple[str, str]]:
    """(term, sentence) of each term that stands once in the window's sentence; none of a heading,
    nor of what is too long to quote."""
    sentence = " ".join(window.sentence.split())
    if len(sentence) > LONGEST_CUE or not ends(sentence):
        return []
    return [(term, sentence) for term in terms(sentence) if sentence.count(term) == 1]


def question_word(term: str) -> str:
    """What asks for a term: which date or year, what time, how many of what, how much, or who or
    what."""
    if _DATE.fullmatch(term):
        return "which date"
    if _YEAR.fullmatch(term):
        return "which year"
    if _CLOCK.fullmatch(term):
        return "what time"
    if not _numbers(term):
        return "who or what"
    number, _, counted = term.rpartition(" ")
    if counted.isalpha():
        return f"how many {counted}" if number[0].isdigit() else "how much"
    if term[-1] in "%‰":
        return "how many percent" if term[-1] == "%" else "how many per mille"
    if _PLAIN.fullmatch(term) or _GROUPED.fullmatch(term):
        return "how many" if term[0].isdigit() else "how much"
    return "how much" if re.search(r"\d[^\W\d_]|\d°|[\d,.’'] ", term) else "which number"


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
        named = list(dict.fromkeys(n for a, b in sentences(passage) for n in names(passage[a:b])))
        rarest = sorted(named, key=lambda name: self._count[name])[:2]
        if rarest:
            return " and ".join(sorted(rarest, key=named.index))
        words = passage.split()
        return f'the part that begins "{" ".join(words[:6])}{" ..." if words[6:] else ""}"'
