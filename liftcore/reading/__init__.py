"""Text out of the files that people have, through libraries (the extra `documents`)."""

from __future__ import annotations

import hashlib
import io
import re
import zipfile
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from liftcore.errors import LiftError
from liftcore.reading.encodings import detected
from liftcore.reading.parts import Parts
from liftcore.reading.text import (
    MAX_BYTES,
    cleaned,
    read_bytes,
    removals,
    too_large,
)

# Beside the text such a file holds pictures.
_MOST_BYTES = 16 * MAX_BYTES
SUFFIXES = (
    *(".pdf", ".docx", ".pptx", ".html", ".htm", ".xhtml", ".epub"),
    *(".md", ".txt", ".rst", ".ipynb", ".csv", ".tsv"),
)
_PAGES = (".html", ".htm", ".xhtml")
# What may stand before the first element of a page.
_BEFORE = re.compile(r"\A(?:\s+|<\?.*?>|<!--.*?-->)*", re.S)
_LARGE = (".pdf", ".docx", ".pptx", ".epub")
_ZIPPED = {
    "word/document.xml": "docx",
    "ppt/presentation.xml": "pptx",
    "META-INF/container.xml": "epub",
}


@dataclass(frozen=True)
class Source:
    """Where a document's text comes from; a memory keeps it.

    name     of the file
    sha256   of its bytes
    kind     what it is, for people: "text", "PDF", ...
    notes    what was done to it, for people
    unit     what its parts are called: "page", "slide", "chapter"; "" for none
    starts   the character of the text at which each part begins
    """

    name: str
    sha256: str
    kind: str
    notes: list[str] = field(default_factory=list)
    unit: str = ""
    starts: list[int] = field(default_factory=list)

    def place(self, start: int, stop: int) -> str:
        """The parts that hold the characters from `start` up to `stop`: "page 3", "pages 3 to 4";
        "" for a text without parts."""
        first, last = (sum(begin <= at for begin in self.starts) for at in (start, stop - 1))
        if not (self.unit and first):
            return ""
        return f"{self.unit} {first}" if first == last else f"{self.unit}s {first} to {last}"


@dataclass(frozen=True)
class Reading:
    """What a file holds."""

    text: str
    source: Source


def read_file(path: Path, name: str | None = None) -> Reading:
    """The text of a file or a pipe: PDF, DOCX, PPTX, HTML, EPUB, a notebook, CSV, or text in any
    encoding. What it is, is seen by its content first.

    Raises LiftError with one line for what cannot be read: damaged, encrypted, scanned, no text,
    or a format whose package is missing.
    """
    large = path.suffix.lower() in _LARGE
    name = name or str(path)
    content = read_bytes(path, _MOST_BYTES if large else MAX_BYTES, name)
    return read_content(content, name, path.suffix.lower())


def read_content(content: bytes, name: str, suffix: str = "") -> Reading:
    """As read_file(), of bytes. `suffix` with its dot tells text formats from each other."""
    parts = _parts(content, name, suffix)
    text, starts, removed = "", [], Counter[str]()
    for before, each in parts.texts:
        each, more = cleaned(each, name)
        removed += more
        if text and each:
            text += before
        starts.append(len(text))
        text += each
    if len(text) > MAX_BYTES:
        raise too_large(f"the text of {name}", len(text))
    sha256 = hashlib.sha256(content).hexdigest()
    starts = starts if parts.unit else []
    notes = parts.notes + removals(removed)
    return Reading(text, Source(Path(name).name, sha256, parts.kind, notes, parts.unit, starts))


def _parts(content: bytes, name: str, suffix: str) -> Parts:
    # Each format's packages are loaded when a file needs them.
    if content.lstrip()[:5] == b"%PDF-" or suffix == ".pdf":
        from liftcore.reading.pdf import read_pdf

        return read_pdf(content, name)
    if content.startswith(b"PK\x03\x04"):
        return _zipped(content, name)
    if suffix in (".docx", ".pptx", ".epub"):
        old = content.startswith(b"\xd0\xcf\x11\xe0")
        what = "encrypted, or of an old version" if old else "damaged"
        raise LiftError(f"{name} is {what}: it is no {suffix[1:].upper()} file")
    opening = content[:4096].decode("latin-1").lstrip()
    page = suffix in _PAGES or _is_page(opening)
    text, notes = detected(content, name, page=page or opening.startswith("<?xml"))
    if page or _is_page(text[:4096]):
        from liftcore.reading.html import read_html

        return read_html(text, name, notes)
    if suffix == ".ipynb":
        from liftcore.reading.tables import read_notebook

        return read_notebook(text, name, notes)
    if suffix in (".csv", ".tsv"):
        from liftcore.reading.tables import read_csv

        return read_csv(text, notes)
    return Parts("text", [("", text)], notes)


def _is_page(text: str) -> bool:
    """Whether a text begins as HTML does."""
    return _BEFORE.sub("", text)[:20].casefold().startswith(("<!doctype html", "<html"))


def _zipped(content: bytes, name: str) -> Parts:
    """DOCX, PPTX or EPUB, which are ZIP archives."""
    try:
        archive = zipfile.ZipFile(io.BytesIO(content))
        entries = archive.infolist()
    except (zipfile.BadZipFile, ValueError, OSError) as error:
        raise LiftError(f"{name} is damaged: {error}") from error
    names = {entry.filename for entry in entries}
    kind = next((kind for file, kind in _ZIPPED.items() if file in names), None)
    if kind is None:
        raise LiftError(
            f"{name} is a ZIP archive, but no DOCX, PPTX or EPUB: convert or unpack it first"
        )
    # A few kilobytes may unfold to gigabytes.
    size = sum(e.file_size for e in entries if e.filename.endswith(("ml", ".rels")))
    if size > 4 * MAX_BYTES:
        raise too_large(f"the text of {name}", size, 4 * MAX_BYTES)
    from liftcore.reading import books, office

    read = {"docx": office.read_docx, "pptx": office.read_pptx, "epub": books.read_epub}[kind]
    try:
        return read(content, name)
    except LiftError:
        raise
    except Exception as error:  # the packages raise whatever they meet
        raise LiftError(f"{name} is a damaged {kind.upper()}: {type(error).__name__}") from error
