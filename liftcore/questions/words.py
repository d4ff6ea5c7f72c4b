"""The words of a text in any script, and what tells one word or number from another."""

from __future__ import annotations

import re
import unicodedata

# Models write typographic quotes and dashes where the text has plain ones, and the reverse.
_PLAIN = str.maketrans("‘’‚‛“”„‟«»‐‑‒–—―", '\'\'\'\'""""""------')
_MARKING = "#%&@*/\\_"  # punctuation to Unicode, a part of the word to a reader: C#, AT&T


# All punctuation and marks stand here, far from the ideograms.
_BLOCKS = (range(0x21, 0x3400), range(0xA000, 0xAC00), range(0xF900, 0x12000))


def _category(kind: str) -> str:
    """The characters of a general category, for a character class."""
    chars = (chr(c) for block in _BLOCKS for c in block)
    return "".join(re.escape(c) for c in chars if unicodedata.category(c)[0] == kind)


# Vowel signs and accents: a part of the word, which \\w leaves out.
MARKS = _category("M")
_OF_WORD = rf"[^\s{_category('P')}]|[{re.escape(_MARKING)}]"
# A place within a word or a number, marked by a line break.
_NEAR = re.compile(rf"(?:{_OF_WORD})\n(?:{_OF_WORD})|\d[.,:/-]\n\d|\d\n[.,:/-]\d")
# Hyphens, dots and apostrophes within a word, and what parts the digits of a number.
_WORD = re.compile(
    rf"(?:(?<![\w-])-(?=\d))?(?:{_OF_WORD})+(?:(?:[.'-]|(?<=\d)[,:](?=\d))(?:{_OF_WORD})+)*"
)


def normalised(text: str) -> str:
    """Text with plain quotes and dashes, single spaces and no capitals."""
    return " ".join(unicodedata.normalize("NFKC", text).translate(_PLAIN).casefold().split())


def words(text: str) -> list[str]:
    """The words and numbers of a text without capitals: letters with their vowel signs, digits
    and symbols, so that C, C++ and C# are three, and 14:05 is one."""
    return _WORD.findall(normalised(text))


def question_key(question: str) -> str:
    """Equal for questions that differ in capitals, spaces, pairs of quotes and the marks that end
    clauses alone; different where a letter, a vowel sign, a digit or a symbol does."""
    # Not casefold(), for which Maße is Masse.
    folded = unicodedata.normalize("NFC", question.translate(_PLAIN)).lower()
    plain = unicodedata.normalize("NFC", folded)
    if plain.count('"') % 2 == 0:
        plain = plain.replace('"', "")
    *parts, last = [part.rstrip(",;.") or part for part in plain.split()] or [""]
    # A mark alone ends the question, others may be what it asks about.
    bare = "" if last in "?？؟" else last.rstrip("?.…？。؟।") or last
    return " ".join([*parts, bare]).strip()


def has_words(text: str) -> bool:
    return any(c.isalnum() for c in text)


def goes_on(text: str, at: int) -> bool:
    """Whether a word or a number goes on across a place of a text."""
    near = _NEAR.search(text[max(0, at - 2) : at] + "\n" + text[at : at + 2])
    return near is not None
