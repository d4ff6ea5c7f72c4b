"""Text as tokens. Words from outside are words: nothing that stands in a document, a title, a
question or an answer becomes a control token, such as one that ends a turn."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from liftcore.errors import LiftError, first_line

# A tokenizer of transformers, whose classes share no base that types what is called here.
Tokenizer = Any
PIECES = list[tuple[str, bool]]  # (text, whether it is somebody's words)


def check_text(text: str, what: str = "the text") -> None:
    """Raises LiftError for a string that is no Unicode text: it holds half of a character."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise LiftError(
            f"{what} holds a lone surrogate (U+{ord(text[error.start]):04X}, character "
            f"{error.start + 1}), which a wrong decoding leaves behind: decode or clean it anew"
        ) from error


def text_ids(tokenizer: Tokenizer, text: str) -> list[int]:
    """The tokens of a text, without any before or behind it, and with no control token.

    A text that spells none has the tokens that the tokenizer gives by itself. Raises LiftError
    for a lone surrogate.
    """
    check_text(text)
    control, unknown = _control(tokenizer), getattr(tokenizer, "unk_token_id", None)
    ids = _encoded(tokenizer, text)
    # A character that the vocabulary lacks is no control token; one that is spelled out may be.
    if control.keys().isdisjoint(set(ids) - {unknown}) and (
        unknown not in control or control[unknown] not in text
    ):
        return ids
    ids = _encoded(tokenizer, text, split_special_tokens=True)
    if control.keys().isdisjoint(set(ids) - {unknown}):
        return ids
    # Not every tokenizer splits all of them: cut the spellings in two.
    spelling = _any_of(control.values())
    ids, at = [], 0
    for match in spelling.finditer(text):
        ids += _encoded(tokenizer, text[at : match.end() - 1])
        at = match.end() - 1
    ids += _encoded(tokenizer, text[at:])
    if stays := set(ids) & control.keys() - {unknown}:
        raise LiftError(
            f"the text holds {control[stays.pop()]!r}, which this tokenizer cannot read as words: "
            "take it out"
        )
    return ids


def chat_ids(tokenizer: Tokenizer, messages: list[dict[str, str]]) -> list[int]:
    """A chat in the tokenizer's template, up to where the model's next turn begins.

    Raises LiftError when the template does not show the words of the messages.
    """
    pieces = chat_pieces(tokenizer, messages, add_generation_prompt=True)
    whole = "".join(text for text, _ in pieces)
    words = "".join(text for text, said in pieces if said)
    check_text(whole)
    ids = _encoded(tokenizer, whole)
    control = _control(tokenizer)
    bare = _encoded(tokenizer, "".join("words" if said else text for text, said in pieces))
    unknown = getattr(tokenizer, "unk_token_id", None)
    if unknown in control and control[unknown] not in words:
        # Then it stands for a character that the vocabulary lacks.
        control.pop(unknown)
    if [i for i in ids if i in control] == [i for i in bare if i in control]:
        return ids
    return _mixed_ids(tokenizer, pieces, control)


def user_turn_ids(tokenizer: Tokenizer) -> list[int]:
    """The tokenizer's chat template up to where the words of a user's first turn begin. Raises
    LiftError as chat_ids() does."""
    pieces = chat_pieces(tokenizer, [{"role": "user", "content": "?"}], add_generation_prompt=True)
    before = pieces[: next(n for n, (_, said) in enumerate(pieces) if said)]
    return _mixed_ids(tokenizer, before, _control(tokenizer))


def chat_pieces(tokenizer: Tokenizer, messages: list[dict[str, str]], **options: Any) -> PIECES:
    """The text of a chat in the tokenizer's template, parted into the template's and the words
    of the messages. Some templates want a message's content as a list of parts.

    Raises LiftError when words are missing in the prompt.
    """
    marks = [f"Words{n}Of{len(messages)}Here" for n in range(len(messages))]
    masked = [_masked(m["content"], mark) for m, mark in zip(messages, marks, strict=True)]
    words = {mark: m["content"].strip() for mark, m in zip(marks, messages, strict=True)}
    wanted = [mark for mark in marks if words[mark]]
    problem = "it leaves out the words of a message"
    for form in (str, lambda text: [{"type": "text", "text": text}]):
        turns = [{**m, "content": form(text)} for m, text in zip(messages, masked, strict=True)]
        try:
            rendered = tokenizer.apply_chat_template(turns, tokenize=False, **options)
        except Exception as error:  # the template is a program of its own
            problem = first_line(error)
            continue
        printed = re.search(r"""text["']\s?:\s?["'][^"']*Words\d+Of""", rendered)  # parts as code
        if printed is None and all(mark in rendered for mark in wanted):
            parts = re.split(f"({'|'.join(marks)})", rendered)
            return [(words.get(part, part), part in words) for part in parts if part]
    raise LiftError(
        f"the tokenizer's chat template cannot be used: {problem}; set tokenizer.chat_template to "
        "one that shows message['content'], or to None"
    )


def _masked(content: str, mark: str) -> str:
    """The mark in place of the words, with the white space around them."""
    words = content.strip()
    return content.replace(words, mark) if words else content


def _mixed_ids(tokenizer: Tokenizer, pieces: PIECES, control: dict[int, str]) -> list[int]:
    """Tokens of pieces whose words spell control tokens; only the template's become some."""
    spelling, number = _any_of(control.values()), {text: i for i, text in control.items()}
    ids: list[int] = []
    plain = ""
    for text, said in pieces:
        for part in [text] if said else re.split(f"({spelling.pattern})", text):
            if said or part not in number:
                plain += part
            else:
                ids += text_ids(tokenizer, plain) if plain else []
                ids.append(number[part])
                plain = ""
    return ids + (text_ids(tokenizer, plain) if plain else [])


def _encoded(tokenizer: Tokenizer, text: str, **options: Any) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False, verbose=False, **options)["input_ids"])


def _control(tokenizer: Tokenizer) -> dict[int, str]:
    """The control tokens, id -> spelling: the special ones, and marks that the chat template sets
    though the tokenizer takes them for words."""
    template = str(getattr(tokenizer, "chat_template", None) or "")
    special = set(getattr(tokenizer, "all_special_ids", ()))
    control = {}
    for i, token in getattr(tokenizer, "added_tokens_decoder", {}).items():
        text = str(token)
        mark = len(text) > 2 and text[0] in "<[" and text[-1] in ">]" and text in template
        if i in special or token.special or mark:
            control[i] = text
    missing = special - control.keys()
    return control | {i: tokenizer.convert_ids_to_tokens(i) for i in missing}


def _any_of(spellings: Iterable[str]) -> re.Pattern[str]:
    return re.compile("|".join(map(re.escape, sorted(spellings, key=len, reverse=True))))
