"""A document's tokens as pieces of text, each of whole characters."""

from __future__ import annotations

from dataclasses import dataclass

from liftcore.tokens import Tokenizer

# Pieces before it that decide how a token is spelled: some tokenizers drop the first one's space.
BEFORE = 4
HALF = "\ufffd"  # stands for half of a character


@dataclass(frozen=True)
class Piece:
    """The text of the tokens [start, stop)."""

    text: str
    start: int
    stop: int


def pieces(tokenizer: Tokenizer, tokens: list[int]) -> list[Piece]:
    """All tokens as pieces: one token each, or as many as make whole characters."""
    made: list[Piece] = []
    start = 0
    while start < len(tokens):
        begin = made[-BEFORE].start if len(made) >= BEFORE else 0
        before = _spelled(tokenizer, tokens[begin:start])
        stop, text = start, HALF
        while text.endswith(HALF) and stop < len(tokens) and stop - start <= 2 * BEFORE:
            stop += 1
            text = _spelled(tokenizer, tokens[begin:stop])[len(before) :]
        made.append(Piece(text, start, stop))
        start = stop
    return made


def spelled(tokenizer: Tokenizer, token: int) -> str:
    """A token by itself, for people: what cannot be seen is drawn."""
    text = _spelled(tokenizer, [token]) or str(tokenizer.convert_ids_to_tokens(token))
    return text.replace("\n", "↵").replace("\t", "⇥").replace(" ", "␣" if text.isspace() else " ")


def _spelled(tokenizer: Tokenizer, ids: list[int]) -> str:
    return tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
