"""What every text goes through: bytes of a file, line ends, and characters that are none."""

from __future__ import annotations

import importlib
import re
from collections import Counter
from pathlib import Path
from types import ModuleType

from liftcore.errors import LiftError
from liftcore.tokens import check_text

MAX_BYTES = 64 * 2**20
# Files that are no text though all their bytes may be characters, and others that users meet.
_NO_TEXT = {
    b"%PDF-": "a PDF",
    b"{\\rtf": "an RTF document",
    b"%!PS": "a PostScript file",
    b"PK\x03\x04": "a ZIP archive, as DOCX, ODT and EPUB are",
    b"\xd0\xcf\x11\xe0": "an old Office document",
    b"\x1f\x8b": "a gzip archive",
}
RETURNS = re.compile("\r\n?")
_LINE_ENDS = re.compile("\r\n?|[\x0b\x0c\x85\u2028\u2029]")
_CONTROLS = re.compile("[\x00-\x08\x0e-\x1f\x7f-\x9f]")
# Colours, titles and the like for a terminal, and letters struck over, as manual pages have them.
_ESCAPES = re.compile(
    "\x1b(?:\\[[0-?]*[ -/]*[@-~]|\\][^\x07\x1b\n]*(?:\x07|\x1b\\\\)|[()*+][AB0-2]|[=>78])"
)
_STRUCK_OVER = re.compile("[^\n\b]\b")
# Those that no text has, not even one for a printer or a terminal.
_BINARY = re.compile("[\x00-\x06\x0e-\x1a\x1c-\x1f\x7f]")
# A file with more of them than this share is no text; a few in a small one may be.
_MOST_BINARY, _FEW = 0.02, 4
_HALVES = re.compile("[\ud800-\udfff]")
_SAMPLE = 2**16  # bytes or characters that show what a file is


def read_bytes(path: Path, limit: float = MAX_BYTES, name: str | None = None) -> bytes:
    """A file of at most `limit` bytes. Raises LiftError with one line, which calls it `name`, that
    says what is wrong."""
    name = name or str(path)
    try:
        if path.is_dir():
            raise LiftError(f"{name} is a directory, not a text file")
        return _bytes_of(path, limit, name)
    except FileNotFoundError as error:
        raise LiftError(f"no such file: {name}") from error
    except PermissionError as error:
        raise LiftError(f"no permission to read {name}") from error
    except OSError as error:
        raise LiftError(f"cannot read {name}: {error.strerror}") from error


def _bytes_of(path: Path, limit: float, name: str) -> bytes:
    """What a file or a pipe such as /dev/stdin holds. Raises LiftError for too much."""
    if path.exists() and not path.is_file():
        with open(path, "rb") as stream:
            content = stream.read(int(min(limit, MAX_BYTES)) + 1)
        size = len(content)
    else:
        size = path.stat().st_size
        content = b"" if size > limit else path.read_bytes()
    if size > limit:
        raise too_large(name, size, limit)
    return content


def too_large(name: str, size: float, limit: float = MAX_BYTES) -> LiftError:
    return LiftError(
        f"{name} has {size / 2**20:,.0f} MiB; at most {limit // 2**20} MiB of text "
        "are taken at once: split it"
    )


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


def cleaned(text: str, name: str) -> tuple[str, Counter[str]]:
    """(text, how many of what was taken out): whole characters, lines ended by "\\n", no control
    characters but tabs, none of a terminal's codes. Raises LiftError when so many are control
    characters that it is no text."""
    removed: Counter[str] = Counter()
    if _HALVES.search(text):
        # Two halves that belong together become one.
        text = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "surrogatepass")
        text, removed["broken character"] = _HALVES.subn("", text)
    text = _LINE_ENDS.sub("\n", text.lstrip("\ufeff"))
    check_controls(text, name)
    for pattern, what in ((_ESCAPES, "terminal code"), (_STRUCK_OVER, "overstruck letter")):
        text, removed[what] = pattern.subn("", text)
    text, controls = _CONTROLS.subn("", text)
    removed["control character"] = controls
    return text, removed


def check_controls(text: str, name: str) -> None:
    """Raises LiftError when so many characters are control characters that it is no text."""
    sample = text[:_SAMPLE]
    most = max(_MOST_BINARY * len(sample), min(_FEW, len(sample) / 4))
    if len(_BINARY.findall(sample)) > most:
        raise LiftError(f"{name} is a binary file, not text")


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


def check_no_archive(content: bytes, name: str) -> None:
    for start, kind in _NO_TEXT.items():
        if content.startswith(start):
            raise LiftError(f"{name} is {kind}, not text: convert it to a text file first")
