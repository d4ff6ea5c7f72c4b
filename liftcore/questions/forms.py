"""The forms of a quiz: several questions about one term of a sentence, right by construction.

A form rests on what any English sentence shows: where a clause begins, the auxiliary behind its
subject, the preposition before a date, the noun that a name stands beside. Where that is not plain
to see there is no such form. The forms of one fact are a group, of which an epoch takes one.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from liftcore.questions.pairs import Pair
from liftcore.questions.quizzes import COMMON, ends, question_word, terms
from liftcore.questions.windows import Window

LONGEST_CUE = 400  # characters of a sentence that a question quotes
MOST = 3  # terms of a sentence that are asked for

_AUXILIARY = "was|were|is|are|had been|has been"
_PAST = (
    "came|went|began|fell|left|became|gave|took|made|stood|rose|ran|held|met|built|brought|bought"
    "|sold|kept|lost|found|won|wrote|grew|broke|led|put|set|sent|spoke|told|died|burnt"
)
# Where a clause begins that may stand alone.
_CLAUSE = re.compile(
    r"(?:[,;:]|--|—|–)? (?:until|because|when|while|although|whereas|before) "
    r"|, (?:and|but|so|yet) (?!to |then |not |that )|; (?:and |but )?|: "
    rf"|, (?=(?:he|she|it|they|we) (?:{_AUXILIARY}|had|has|{_PAST}|[a-z]+ed) )"
)
_SUBJECT = r"(?:[A-Z]?[\w’'-]+(?: [\w’'-]+){0,7}?)"
_PASSIVE = re.compile(rf"({_SUBJECT}) ({_AUXILIARY}) (.+)")
# A verb with a subject before it; an auxiliary, or a past tense that looks like one.
_FINITE = re.compile(rf"\w (?:{_AUXILIARY}|had|has|{_PAST}|[a-z]{{2,}}ed)\b")
_VERB = re.compile(rf"\b(?:{_PAST}|begun|known|written|given|taken|[a-z]{{2,}}ed)\b")
# What a clause says with one of these need not have happened, or not to what stands there.
_UNSURE = re.compile(
    r"\b(?:not|n[’']t|never|no|nobody|none|neither|nor|nothing|if|unless|might|may|could|would"
    r"|should|must|can|cannot|will|shall|almost|nearly|supposed|alleged|claimed|planned|denied"
    r"|said|says|believed|rumou?red|reported|falsely|how|why|whether)\b|n[’']t\b|\?"
    r"|\b(?:was|were|is|are|due|about|going|plan|planned|ordered|expected|asked|told|hoped|wanted"
    r"|wished|refused|agreed|decided|promised|threatened|tried|intended|scheduled) to\b", re.I
)  # fmt: skip
_RELATIVE_CLAUSE = re.compile(r"\b(?:who|whom|whose|which|that|when|where)\b")
_RELATIVE = re.compile(r"\b(?:who|whom|whose|which|that|when|where|and|or|but|as|than)\b", re.I)
# A subject does not begin with one of these.
_FRONT = re.compile(
    r"(?:at|in|on|by|for|from|to|with|after|before|during|of|under|there|then|here)\b", re.I
)
# Beside a name they are no noun: "the late Ann Quill".
_ADJECTIVES = """
late great young old little big good famous former elder younger holy poor rich royal local new
next last second whole entire beautiful dear
"""
_ADJECTIVE = frozenset(_ADJECTIVES.split())
_WHEN = re.compile(r",? (in|on)(?: the year)?$")
_WHEN_FIRST = re.compile(r"(?:In|On) $")
_TITLED = r"(?: (?:Mr|Mrs|Ms|Dr|Prof)\.)?"
_BY = re.compile(rf" by(?: (?:an?|the) ([a-z-]+(?: [a-z-]+){{0,2}}))?{_TITLED}$")
_NOUN = r"(?!(?:and|or)\b)[a-z][a-z-]+"
_PLACE = "past|near|upon|towards?|beyond|along|across|against|behind|below|beside|via|around"
# A noun beside a name: "by the assistant clerk N", "a lane called N", "his widow, N."
_BESIDE = (
    re.compile(
        rf"\b(?:by|of|with|from|for|under) (an?|the) ({_NOUN}(?: {_NOUN}){{0,2}}){_TITLED}$"
    ),
    re.compile(rf"\b([Aa]n?|[Tt]he) ({_NOUN}(?: of {_NOUN})?) named{_TITLED}$"),
    re.compile(rf"\b(?:in|at|on|of|by|from|to|with|near) (an?|the) ({_NOUN}) called$"),
    re.compile(
        rf"\b(an?|the) ({_NOUN} who (?![^,;.]* (?:an?|the|his|her|its|their) [\w-]+,)"
        rf"[^,;.]{{8,120}}),{_TITLED}$"
    ),
)  # fmt: skip
_OBJECT = {"they": "them", "he": "him", "she": "her", "it": "it"}
_DETERMINER = {"the", "a", "an", "this", "these", "his", "her", "its", "their", "our", "my", "one"}


@dataclass(frozen=True)
class Place:
    """A term where it stands in a sentence.

    clause   the words from where its clause begins up to the term
    rest     what follows the term in the sentence
    """

    term: str
    sentence: str
    clause: str
    rest: str

    @property
    def closes(self) -> bool:
        """Whether the clause ends with the term."""
        return re.match(r"[.!;:]|$|, (?:and|but|so|yet)\b", self.rest) is not None


def places(sentence: str) -> list[Place]:
    """The first terms that stand once in a sentence, each with its clause; none of a heading, nor
    of what is too long to quote."""
    sentence = " ".join(sentence.split())
    if len(sentence) > LONGEST_CUE or not ends(sentence):
        return []
    made = []
    for term in terms(sentence):
        if sentence.count(term) == 1 and not term.endswith(("'s", "’s")):
            before, rest = sentence.split(term)
            made.append(Place(term, sentence, _clause(before), rest))
    return made


def _clause(before: str) -> str:
    """The last clause of the words before a term, or all of them where it is short or a quote or
    a bracket is open."""
    begun = [match.span() for match in _CLAUSE.finditer(before)]
    start, stop = begun[-1] if begun else (0, 0)
    part = before[stop:]
    whole = len(part.split()) < 4 or not _balanced(before[:start])
    return before if whole or not _FINITE.search(part.partition(",")[0]) else part


def _balanced(text: str) -> bool:
    return text.count('"') % 2 == 0 and all(
        text.count(a) == text.count(b) for a, b in ("()", "[]", "“”", "«»")
    )


def forms(window: Window) -> list[Pair]:
    """The questions on a window's sentence, those of one fact with one group."""
    made: list[Pair] = []
    known = places(window.sentence)
    for number, place in enumerate(known[:MOST]):
        group = f"{window.start}/{number}"
        pairs = [*_direct(place), *_described(place), *_reversed(place)]
        made += [
            Pair(question, answer, place.sentence, window.number, group)
            for question, answer in pairs
            if answer.casefold() not in question.casefold()
        ]
    if len(known) > 1 and (both := _both(*known[:2])):
        made.append(Pair(*both, known[0].sentence, window.number, f"{window.start}/both"))
    return made


def _direct(place: Place) -> list[tuple[str, str]]:
    """What asks for the term: the words before it, its clause alone, and that clause turned
    around."""
    word, before = question_word(place.term), place.sentence[: place.sentence.index(place.term)]
    cues = (re.sub(r" the$", "", cue.strip()) for cue in (before, place.clause))
    made = [
        (f"{_capital(cue)} {word}?", place.term)
        for cue in dict.fromkeys(cues)
        # "On the night of which date?" asks nothing.
        if len(cue.split()) >= 4 and not (_FRONT.match(cue) and not _FINITE.search(cue))
    ]
    happened = event(place)
    if happened:
        lead = f"{_preposition(place)} {word}"
        made += [(f"{_capital(lead)} {turned(happened)}?", place.term)]
        made += [(f"When {turned(happened)}?", place.term)]
    if agent := _agent(place):
        made.append((agent, place.term))
    return made


def event(place: Place) -> str:
    """What a sentence dates with a term, as a clause without the date: "the bell was recast"; ""
    where that is not plain."""
    if question_word(place.term) not in ("which year", "which date"):
        return ""
    if match := _WHEN.search(place.clause.rstrip()):
        clause = place.clause[: match.start()]
        if not place.closes:
            return ""
    elif _WHEN_FIRST.fullmatch(place.sentence[: place.sentence.index(place.term)]):
        clause = re.split(r"[;:.]|, (?:and|but|so|yet) ", place.rest.lstrip(", "))[0]
    else:
        return ""
    plain = _dates_its_verb(clause, place) and not _UNSURE.search(clause) and _balanced(clause)
    dated = any(question_word(t) in ("which year", "which date") for t in terms(f"So {clause}"))
    return _small(clause) if plain and not dated and 3 <= len(clause.split()) <= 24 else ""


def _dates_its_verb(clause: str, place: Place) -> bool:
    """Whether a date behind the clause is surely that of its one verb, and not of a participle or
    of a clause within: not "he praised the bridge built in 1705"."""
    verb = _FINITE.search(clause)
    if verb is None or ("," in clause and not place.clause.rstrip().endswith((", in", ", on"))):
        return False
    behind = clause[verb.end() :]
    inner = r"\b(?:before|after|until|since)\b"
    if _RELATIVE_CLAUSE.search(behind) or re.search(inner, clause[1:]):
        return False
    if re.search(rf"\b(?:{_AUXILIARY}|had|has)$", verb[0]):
        # The participle of a passive follows it.
        behind = re.sub(r"^(?: [a-z]+){0,2}? [a-z]+ed\b|^ [a-z]+", "", behind, count=1)
    return not _VERB.search(behind)


def _preposition(place: Place) -> str:
    return "on" if question_word(place.term) == "which date" else "in"


def turned(clause: str) -> str:
    """A clause as a question behind its question word: "was the bell recast", "was it that the
    clock stopped"."""
    match = _PASSIVE.fullmatch(clause)
    plain = match is not None and not _RELATIVE.search(match[1]) and not _FRONT.match(match[1])
    if match is None or not plain or match[2].startswith("ha"):
        return f"was it that {clause}"
    return f"{match[2]} {match[1]} {match[3]}"


def _agent(place: Place) -> str:
    """ "Who carried the papers upstairs?" for "The papers were carried upstairs by ..." """
    by = _BY.search(place.clause.rstrip())
    digits = any(c.isdigit() for c in place.term)
    if by is None or not place.closes or digits or COMMON.intersection((by[1] or "").split()):
        return ""
    clause = place.clause[: by.start()].rstrip(",")
    match = re.fullmatch(rf"({_SUBJECT}) (?:was|were) ([a-z]{{3,}}ed)\b(.*)", clause)
    if match is None or _RELATIVE.search(match[1]) or _UNSURE.search(clause):
        return ""
    subject, rest = _small(match[1]), match[3]
    return f"Who or what {match[2]} {_OBJECT.get(subject, subject)}{rest}?"


def _described(place: Place) -> list[tuple[str, str]]:
    """ "What is the name of the assistant clerk?", and the reverse."""
    if any(c.isdigit() for c in place.term) or not (place.closes or place.rest.startswith(",")):
        return []
    before = place.sentence[: place.sentence.index(place.term)].rstrip()
    for pattern in _BESIDE:
        match = pattern.search(before)
        if match is None:
            continue
        article, noun = match[1].casefold(), match[2]
        relative = pattern is _BESIDE[-1]
        told = noun.split()[:1] if relative else noun.replace(" of ", " ").split()
        plain = not COMMON.intersection(told) and told[-1] not in _ADJECTIVE
        plain = plain and not re.search(rf"\b(?:{_PLACE})\b", noun) and not _UNSURE.search(noun)
        # Behind a relative clause the name must end the sentence.
        if plain and (not relative or re.match(r"[.!]", place.rest)):
            return [
                (f"What is the name of the {noun}?", place.term),
                (f"Who or what is {place.term}?", f"{article} {noun}"),
            ]
    return []


def _reversed(place: Place) -> list[tuple[str, str]]:
    """What is told of the term."""
    if happened := event(place):
        return [(f"What happened {_preposition(place)} {place.term}?", happened)]
    if len(place.sentence.split()) >= 4:
        behind = re.split(r"[,.;:!?]", place.rest)[0].strip()
        # "In 1911 Ann Quill" tells nothing, nor does what breaks off behind a conjunction.
        last = behind.rpartition(" ")[2]
        if (behind or _FINITE.search(place.clause)) and not _RELATIVE.fullmatch(last):
            whole = f"{place.clause}{place.term} {behind}".strip()
            return [(f"What is told of {place.term}?", _capital(whole))]
    return []


def _both(first: Place, second: Place) -> tuple[str, str] | None:
    """Two terms of a sentence in one question."""
    begin = first.sentence.index(first.term)
    between = first.rest[: first.rest.index(second.term)]
    before = first.sentence[:begin]
    if len(before.split()) < 3 or len(between.split()) < 2:
        return None
    question = f"{before}{question_word(first.term)}{between}{question_word(second.term)}?"
    return question, f"{first.term}; {second.term}"


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _small(text: str) -> str:
    """Without the capital of a sentence's beginning, where it is surely that."""
    first, _, rest = text.strip().partition(" ")
    known = first.casefold() in COMMON or first.casefold() in _DETERMINER
    return " ".join([first.casefold() if known and first != "I" else first, rest]).strip()
