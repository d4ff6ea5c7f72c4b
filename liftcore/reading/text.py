"""Text out of bytes: encodings, marks, line ends, and characters that are none."""

from __future__ import annotations

import codecs
import importlib
import re
from collections import Counter
from pathlib import Path
from types import ModuleType

from liftcore.errors import LiftError
from liftcore.tokens import check_text

MAX_BYTES = 64 * 2**20
# The longer marks first: that of UTF-32 begins with that of UTF-16.
_MARKS = {
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
_WIDE = ("utf-32-le", "utf-32-be", "utf-16-le", "utf-16-be")
# Files that are no text though all their bytes may be characters, and others that users meet.
_NO_TEXT = {
    b"%PDF-": "a PDF",
    b"{\\rtf": "an RTF document",
    b"%!PS": "a PostScript file",
    b"PK\x03\x04": "a ZIP archive, as DOCX, ODT and EPUB are",
    b"\xd0\xcf\x11\xe0": "an old Office document",
    b"\x1f\x8b": "a gzip archive",
}
_RETURNS = re.compile("\r\n?")
_LINE_ENDS = re.compile("\r\n?|[\x0b\x0c\x85\u2028\u2029]")
_CONTROLS = re.compile("[\x00-\x08\x0e-\x1f\x7f-\x9f]")
# A file with more control characters than this share is no text.
_MOST_CONTROLS = 0.02
_HALVES = re.compile("[\ud800-\udfff]")
_ASCII = re.compile("[ -~]")
_SAMPLE = 2**16  # bytes or characters that show what a file is


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
        raise too_large(str(path), size, limit)
    return content


def too_large(name: str, size: float, limit: float = MAX_BYTES) -> LiftError:
    return LiftError(
        f"{name} has {size / 2**20:,.0f} MiB; at most {limit // 2**20} MiB of text "
        "are taken at once: split it"
    )


def decode(content: bytes, name: str) -> str:
    """The text of bytes: UTF-8, or UTF-16 or UTF-32 where a byte order mark says so; the mark is
    no part of it.

    Raises LiftError, which begins with `name`, for other encodings and for what is no text, such
    as a PDF or NUL bytes.
    """
    _check_no_archive(content, name)
    encoding = _marked(content) or "utf-8"
    try:
        # JSON strings may hold U+2028 and the like as they are.
        return plain_text(content.decode(encoding), name, _RETURNS)
    except UnicodeDecodeError as error:
        kind = encoding.removesuffix("-sig").upper()
        raise LiftError(
            f"{name} is not {kind} text (byte {error.start}): convert it to UTF-8 first"
        ) from error


def plain_text(text: str, name: str, ends: re.Pattern[str] = _LINE_ENDS) -> str:
    """The text without a byte order mark, its lines ended by "\\n" where `ends` is. Raises
    LiftError when it is none: half of a character, NUL, or what begins as a PDF or RTF does."""
    check_text(text, name)
    text = ends.sub("\n", text.lstrip("\ufeff"))
    if "\0" in text:
        raise LiftError(
            f"{name} holds NUL characters: it is a binary file, or UTF-16 or UTF-32 without a byte "
            "order mark; convert it to UTF-8 text first"
        )
    for start, kind in _NO_TEXT.items():
        if start.isascii() and text.lstrip()[:8].encode().startswith(start):
            raise LiftError(f"{name} is {kind}, not text: convert it to a text file first")
    return text


def detected(content: bytes, name: str) -> tuple[str, list[str]]:
    """(text, what was done): as decode(), in any encoding that charset-normalizer knows.

    UTF-16 and UTF-32 need no mark. Control characters are taken out, and halves of characters
    that a wrong program left behind become one character, or go. Raises LiftError for what is no
    text.
    """
    _check_no_archive(content, name)
    notes: list[str] = []
    encoding = _marked(content) or _wide(content) or "utf-8"
    try:
        text = content.decode(encoding, "surrogatepass" if encoding == "utf-8" else "strict")
    except UnicodeDecodeError as error:
        if _marked(content):
            kind = encoding.removesuffix("-sig").upper()
            raise LiftError(f"{name} is not {kind} text (byte {error.start})") from error
        encoding = _guessed(content, name, error.start)
        text = content.decode(encoding, "replace")
        notes.append(f"read as {encoding.replace('_', '-')}")
    text, removed = cleaned(text, name)
    return plain_text(text, name), notes + removals(removed)


def cleaned(text: str, name: str) -> tuple[str, Counter[str]]:
    """(text, how many of what was taken out): whole characters, lines ended by "\\n", no control
    characters but tabs. Raises LiftError when so many are control characters that it is no
    text."""
    removed: Counter[str] = Counter()
    if _HALVES.search(text):
        # Two halves that belong together become one.
        text = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "surrogatepass")
        text, removed["broken character"] = _HALVES.subn("", text)
    text = _LINE_ENDS.sub("\n", text.lstrip("\ufeff"))
    sample = text[:_SAMPLE]
    if len(_CONTROLS.findall(sample)) > _MOST_CONTROLS * len(sample) + 1:
        raise LiftError(f"{name} is a binary file, not text")
    text, controls = _CONTROLS.subn("", text)
    removed["control character"] = controls
    return text, removed


def removals(removed: Counter[str]) -> list[str]:
    """What cleaned() took out, for people."""
    return [f"{counted(number, what)} taken out" for what, number in removed.items() if number]


def counted(number: int, what: str) -> str:
    """A number with its noun: "1 page", "1,200 pages"."""
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def library(module: str, name: str) -> ModuleType:
    """A package of the extra `documents`. Raises LiftError, which begins with `name`, when it is
    not installed."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        raise LiftError(
            f"{name} needs the package {package}: pip install 'liftcore[documents]'"
        ) from error


def _check_no_archive(content: bytes, name: str) -> None:
    for start, kind in _NO_TEXT.items():
        if content.startswith(start):
            raise LiftError(f"{name} is {kind}, not text: convert it to a text file first")


def _marked(content: bytes) -> str | None:
    return next((e for mark, e in _MARKS.items() if content.startswith(mark)), None)


def _wide(content: bytes) -> str | None:
    """UTF-16 or UTF-32 without a mark: where every second byte, or three of four, is NUL."""
    sample = content[: min(len(content), _SAMPLE) // 4 * 4]
    if sample.count(0) * 4 < len(sample) or not sample:
        return None
    texts = {encoding: sample.decode(encoding, "replace") for encoding in _WIDE}
    whole = [encoding for encoding, text in texts.items() if not re.search("[\0\ufffd]", text)]
    # Read in the wrong order, ASCII becomes other letters.
    return max(whole, key=lambda encoding: len(_ASCII.findall(texts[encoding])), default=None)


def _guessed(content: bytes, name: str, at: int) -> str:
    """The encoding that charset-normalizer takes the bytes for. Raises LiftError for none."""
    if b"\0" in content[:_SAMPLE]:
        raise LiftError(f"{name} is a binary file, not text")
    what = f"{name} is not UTF-8 text (byte {at})"
    best = library("charset_normalizer", f"{what}: another encoding").from_bytes(content).best()
    if best is None:
        raise LiftError(f"{what}, nor in another encoding: convert it to UTF-8 first")
    return best.encoding
