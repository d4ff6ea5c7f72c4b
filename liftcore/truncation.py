"""A document's text cut to a number of tokens: its head and its tail, of whole characters."""

from __future__ import annotations

import re
import unicodedata

from liftcore.tokens import Tokenizer

SPLIT = 4  # tokens that one character may be split into, at most: the bytes of UTF-8


def truncate(tokenizer: Tokenizer, tokens: list[int], room: int) -> str:
    """The document's text when it has at most `room` tokens, else head half + "..." + tail half,
    both of whole characters."""
    if len(tokens) <= room:
        return tokenizer.decode(tokens)
    half = max(1, room // 2)
    # What follows a cut shows whether it parts a character.
    head, longer = (_decoded(tokenizer, tokens, n) for n in (half, half + 2 * SPLIT))
    end = _shared(head, longer)
    while 0 < end < len(longer) and _within_character(longer, end):
        end -= 1
    tail, earlier = (_decoded(tokenizer, tokens, -n) for n in (half, half + 2 * SPLIT))
    start = len(earlier) - _shared(tail[::-1], earlier[::-1])
    while 0 < start < len(earlier) and _within_character(earlier, start):
        start += 1
    return longer[:end] + "\n...\n" + earlier[start:]


def _decoded(tokenizer, tokens: list[int], size: int) -> str:
    """The text of the first `size` tokens, or of the last −size, or of a few less, so that it ends
    or begins between characters: half of one may spoil the bytes of those beside it."""
    sizes = range(abs(size), max(0, abs(size) - SPLIT), -1)
    parts = [tokens[:n] if size > 0 else tokens[-n:] for n in sizes]
    return min(map(tokenizer.decode, parts), key=lambda text: text.count("\ufffd"))


def _shared(text: str, longer: str) -> int:
    """How many characters both begin with."""
    if longer.startswith(text):
        return len(text)
    pairs = enumerate(zip(text, longer, strict=False))
    return next((n for n, (a, b) in pairs if a != b), min(len(text), len(longer)))


# What joins the code point before: skin tones, the letters of a flag's name, vowels and finals of
# Hangul that is written letter by letter.
_JOINING = re.compile("[\U0001f3fb-\U0001f3ff\U000e0020-\U000e007f\u1160-\u11ff\ud7b0-\ud7fb]")
_FLAGS = re.compile("[\U0001f1e6-\U0001f1ff]*")


def _within_character(text: str, at: int) -> bool:
    """Whether a place in a text lies within what a reader takes for one character."""
    left, right = text[at - 1], text[at]
    if "\u200d" in (left, right) or unicodedata.category(right)[0] == "M" or left + right == "\r\n":
        return True
    if _FLAGS.fullmatch(left + right):
        # Two letters are one flag.
        before = _FLAGS.match(text[:at][::-1])
        return before is not None and before.end() % 2 == 1
    return _JOINING.match(right) is not None
