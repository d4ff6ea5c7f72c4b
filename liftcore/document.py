"""A document: text or a file or token ids -> tokens, title and hash."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from liftcore.errors import LiftError
from liftcore.reading import Source, read_file
from liftcore.reading.text import plain_text
from liftcore.tokens import Tokenizer, text_ids

UNTITLED = "the document"
LONGEST_PATH = 4096
_SUFFIX = re.compile(r"[^\s./\\]\.[A-Za-z0-9]{1,10}$")
_ROOT = re.compile(r"(?:[A-Za-z]:)?[/\\]\S|~\w*[/\\]|\.{1,2}[/\\]")


@dataclass(frozen=True)
class Document:
    tokens: np.ndarray  # int64 [L]
    text: str
    title: str
    sha256: str  # of the text
    source: Source | None = None  # the file that it was read from


def read(
    document: str | Path | Sequence[int] | Document, tokenizer: Tokenizer, title: str | None = None
) -> Document:
    """The document as tokens.

    A Path, or a string without a line break that looks like one, is read with
    liftcore.reading.read_file(); any other string is the text itself; a sequence of integers is
    token ids. Raises LiftError for what cannot be read, is too large, or holds fewer than two
    tokens.
    """
    if isinstance(document, Document):
        return dataclasses.replace(document, title=title_as_text(title or document.title))
    if isinstance(document, str) and _names_a_file(document):
        if not os.path.lexists(document):
            raise LiftError(
                f"no such file: {document} (if this is the text itself, end it with a line break)"
            )
        document = Path(document)
    if isinstance(document, os.PathLike):
        file = Path(document)
        reading = read_file(file)
        return from_text(reading.text, tokenizer, title or title_of(file), reading.source)
    if isinstance(document, str):
        return from_text(document, tokenizer, title)
    tokens = _token_ids(document, tokenizer)
    return _document(tokens, tokenizer.decode(tokens.tolist()), title)


def from_text(
    text: str, tokenizer: Tokenizer, title: str | None = None, source: Source | None = None
) -> Document:
    """The document of a text. Raises LiftError when it has fewer than two tokens, or is no text
    (see reading.text.plain_text)."""
    text = plain_text(text, "the document")
    if not text.strip():
        raise LiftError("the document is empty")
    tokens = np.asarray(text_ids(tokenizer, text), dtype=np.int64)
    return dataclasses.replace(_document(tokens, text, title), source=source)


def title_of(file: Path) -> str:
    """A title from a file's name."""
    # A name in another encoding than the system's must not reach the tokenizer as it is.
    stem = os.fsencode(file.stem).decode("utf-8", "replace")
    return stem.replace("_", " ").replace("-", " ").strip() or file.name


def title_as_text(title: str) -> str:
    """A title without halves of characters, which a command line in another encoding gives."""
    return title.encode("utf-8", "replace").decode()


def _document(tokens: np.ndarray, text: str, title: str | None) -> Document:
    if len(tokens) < 2:
        raise LiftError(
            f"the document has {len(tokens)} token(s): at least 2 are needed, "
            "one to read and one to predict"
        )
    sha256 = hashlib.sha256(text.encode()).hexdigest()
    return Document(tokens, text, title_as_text(title or UNTITLED), sha256)


def _names_a_file(document: str) -> bool:
    """Whether a string is a path: that of a file, or in the form of one, so that a missing
    "server.log" is not absorbed as a text of two words."""
    if len(document) > LONGEST_PATH or len(document.splitlines()) != 1 or document[-1] in "\r\n":
        return False
    if os.path.exists(document):
        return True
    words = document.split()
    if not words or len(words) > 12 or words[-1][-1] in ".!?…。！？":
        return False
    last = words[-1]
    named = bool(_SUFFIX.search(last)) and any(c.isalpha() for c in last)
    parted = len(words) <= 4 and any(c in word.strip(c) for word in words for c in "/\\")
    hidden = len(words) == 1 and last[0] == "." and last[1:].isalnum()
    return named or parted or hidden or _ROOT.match(document) is not None


def _token_ids(document: Sequence[int], tokenizer: Tokenizer) -> np.ndarray:
    tokens = np.asarray(document)
    if tokens.size == 0:
        raise LiftError("the document is empty")
    if tokens.ndim != 1 or not np.issubdtype(tokens.dtype, np.integer):
        raise LiftError("token ids must be one flat sequence of integers")
    if tokens.min() < 0 or tokens.max() >= len(tokenizer):
        raise LiftError(f"token ids must lie in [0, {len(tokenizer)})")
    return tokens.astype(np.int64)
