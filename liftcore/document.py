"""A document: text or a file or token ids -> tokens, title and hash."""

from __future__ import annotations

import codecs
import dataclasses
import hashlib
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from liftcore.errors import LiftError
from liftcore.tokens import Tokenizer, check_text, text_ids

UNTITLED = "the document"
MAX_BYTES = 64 * 2**20
LONGEST_PATH = 4096
# The longer marks first: that of UTF-32 begins with that of UTF-16.
_MARKS = {
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
# Files that are no text though all their bytes may be characters, and others that users meet.
_NO_TEXT = {
    b"%PDF-": "a PDF",
    b"{\\rtf": "an RTF document",
    b"%!PS": "a PostScript file",
    b"PK\x03\x04": "a ZIP archive, as DOCX, ODT and EPUB are",
    b"\xd0\xcf\x11\xe0": "an old Office document",
    b"\x1f\x8b": "a gzip archive",
}
_SUFFIX = re.compile(r"[^\s./\\]\.[A-Za-z0-9]{1,10}$")
_ROOT = re.compile(r"(?:[A-Za-z]:)?[/\\]\S|~\w*[/\\]|\.{1,2}[/\\]")


@dataclass(frozen=True)
class Document:
    tokens: np.ndarray  # int64 [L]
    text: str
    title: str
    sha256: str  # of the text


def read(
    document: str | Path | Sequence[int] | Document, tokenizer: Tokenizer, title: str | None = None
) -> Document:
    """The document as tokens.

    A Path, or a string without a line break that looks like one, is read with read_text(); any
    other string is the text itself; a sequence of integers is token ids. Raises LiftError for
    what cannot be read, is too large, or holds fewer than two tokens.
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
        return from_text(read_text(file), tokenizer, title or title_of(file))
    if isinstance(document, str):
        return from_text(document, tokenizer, title)
    tokens = _token_ids(document, tokenizer)
    return _document(tokens, tokenizer.decode(tokens.tolist()), title)


def from_text(text: str, tokenizer: Tokenizer, title: str | None = None) -> Document:
    """The document of a text. Raises LiftError when it has fewer than two tokens, or is no text
    (see decode)."""
    text = _plain_text(text, "the document")
    if not text.strip():
        raise LiftError("the document is empty")
    return _document(np.asarray(text_ids(tokenizer, text), dtype=np.int64), text, title)


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


def read_text(path: Path) -> str:
    """The text of a file, see decode(). Raises LiftError with one line that says what is wrong."""
    return decode(read_bytes(path), str(path))


def read_bytes(path: Path, limit: float = MAX_BYTES) -> bytes:
    """A file of at most `limit` bytes. Raises LiftError with one line that says what is wrong."""
    try:
        if path.is_dir():
            raise LiftError(f"{path} is a directory, not a text file")
        return _bytes_of(path, limit)
    except FileNotFoundError as error:
        raise LiftError(f"no such file: {path}") from error
    except PermissionError as error:
        raise LiftError(f"no permission to read {path}") from error
    except OSError as error:
        raise LiftError(f"cannot read {path}: {error.strerror}") from error


def _bytes_of(path: Path, limit: float) -> bytes:
    """What a file or a pipe such as /dev/stdin holds. Raises LiftError for too much."""
    if path.exists() and not path.is_file():
        with open(path, "rb") as stream:
            content = stream.read(int(min(limit, MAX_BYTES)) + 1)
        size = len(content)
    else:
        size = path.stat().st_size
        content = b"" if size > limit else path.read_bytes()
    if size > limit:
        raise LiftError(
            f"{path} has {size / 2**20:,.0f} MiB; at most {limit // 2**20} MiB of text "
            "are taken at once: split it"
        )
    return content


def decode(content: bytes, name: str) -> str:
    """The text of bytes: UTF-8, or UTF-16 or UTF-32 where a byte order mark says so; the mark is
    no part of it.

    Raises LiftError, which begins with `name`, for other encodings and for what is no text, such
    as a PDF or NUL bytes.
    """
    for start, kind in _NO_TEXT.items():
        if content.startswith(start):
            raise LiftError(f"{name} is {kind}, not text: convert it to a text file first")
    encoding = next((e for mark, e in _MARKS.items() if content.startswith(mark)), "utf-8")
    try:
        return _plain_text(content.decode(encoding), name)
    except UnicodeDecodeError as error:
        kind = encoding.removesuffix("-sig").upper()
        raise LiftError(
            f"{name} is not {kind} text (byte {error.start}): convert it to UTF-8 first"
        ) from error


def _plain_text(text: str, name: str) -> str:
    """The text without a byte order mark. Raises LiftError when it is none."""
    check_text(text, name)
    text = text.lstrip("\ufeff")
    if "\0" in text:
        raise LiftError(
            f"{name} holds NUL characters: it is a binary file, or UTF-16 or UTF-32 without a byte "
            "order mark; convert it to UTF-8 text first"
        )
    for start, kind in _NO_TEXT.items():
        if start.isascii() and text.lstrip()[:8].encode().startswith(start):
            raise LiftError(f"{name} is {kind}, not text: convert it to a text file first")
    return text


def _token_ids(document: Sequence[int], tokenizer: Tokenizer) -> np.ndarray:
    tokens = np.asarray(document)
    if tokens.size == 0:
        raise LiftError("the document is empty")
    if tokens.ndim != 1 or not np.issubdtype(tokens.dtype, np.integer):
        raise LiftError("token ids must be one flat sequence of integers")
    if tokens.min() < 0 or tokens.max() >= len(tokenizer):
        raise LiftError(f"token ids must lie in [0, {len(tokenizer)})")
    return tokens.astype(np.int64)
