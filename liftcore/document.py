"""A document: text or a file or token ids -> tokens, title and hash."""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from liftcore.errors import LiftError

MAX_BYTES = 64 * 2**20
TEXT_SUFFIXES = (".txt", ".md", ".rst", ".markdown", ".text", ".tex", ".html")


@dataclass(frozen=True)
class Document:
    tokens: np.ndarray  # int64 [L]
    text: str
    title: str
    sha256: str  # of the text


def read(
    document: str | Path | Sequence[int] | Document, tokenizer, title: str | None = None
) -> Document:
    """The document as tokens.

    A Path, or a one-line string that names a file, is read as UTF-8; any other string is the
    text itself; a sequence of integers is token ids. Raises LiftError for what cannot be read,
    is too large, or holds fewer than two tokens.
    """
    if isinstance(document, Document):
        return dataclasses.replace(document, title=title or document.title)
    if isinstance(document, str) and _names_a_file(document):
        document = Path(document)
    if isinstance(document, Path):
        return from_text(read_text(document), tokenizer, title or title_of(document))
    if isinstance(document, str):
        return from_text(document, tokenizer, title)
    tokens = _token_ids(document, tokenizer)
    return _document(tokens, tokenizer.decode(tokens.tolist()), title)


def from_text(text: str, tokenizer, title: str | None = None) -> Document:
    """The document of a text. Raises LiftError when it has fewer than two tokens."""
    if not text.strip():
        raise LiftError("the document is empty")
    ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    return _document(np.asarray(ids, dtype=np.int64), text, title)


def title_of(file: Path) -> str:
    """A title from a file's name."""
    return file.stem.replace("_", " ").replace("-", " ").strip() or file.name


def _document(tokens: np.ndarray, text: str, title: str | None) -> Document:
    if len(tokens) < 2:
        raise LiftError(
            f"the document has {len(tokens)} token(s): at least 2 are needed, "
            "one to read and one to predict"
        )
    sha256 = hashlib.sha256(text.encode()).hexdigest()
    return Document(tokens, text, title or "the document", sha256)


def _names_a_file(document: str) -> bool:
    if "\n" in document or not 0 < len(document) < 256:
        return False
    # A missing "report.txt" or "notes/chapter1" must not be absorbed as a text of two words.
    one_word = not any(c.isspace() for c in document)
    named = document.lower().endswith(TEXT_SUFFIXES) or (one_word and os.sep in document)
    return named or os.path.exists(document)


def read_text(path: Path) -> str:
    """The text of a UTF-8 file. Raises LiftError with one line that says what is wrong."""
    try:
        if path.is_dir():
            raise LiftError(f"{path} is a directory, not a text file")
        if not path.is_file() and path.exists():
            raise LiftError(f"{path} is not a regular file")
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise LiftError(
                f"{path} has {size / 2**20:,.0f} MiB; at most {MAX_BYTES // 2**20} MiB of text "
                "are taken at once: split it"
            )
        return path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError as error:
        raise LiftError(f"no such file: {path}") from error
    except PermissionError as error:
        raise LiftError(f"no permission to read {path}") from error
    except UnicodeDecodeError as error:
        raise LiftError(
            f"{path} is not UTF-8 text (byte {error.start}): convert it first"
        ) from error
    except OSError as error:
        raise LiftError(f"cannot read {path}: {error.strerror}") from error


def _token_ids(document: Sequence[int], tokenizer) -> np.ndarray:
    tokens = np.asarray(document)
    if tokens.size == 0:
        raise LiftError("the document is empty")
    if tokens.ndim != 1 or not np.issubdtype(tokens.dtype, np.integer):
        raise LiftError("token ids must be one flat sequence of integers")
    if tokens.min() < 0 or tokens.max() >= len(tokenizer):
        raise LiftError(f"token ids must lie in [0, {len(tokenizer)})")
    return tokens.astype(np.int64)
