"""PDF through PDFium: lines with their places, and paragraphs made of them."""

from __future__ import annotations

import ctypes
import re
from typing import Any

from liftcore.errors import LiftError
from liftcore.reading.lines import PARTED, Joiner, Line, without_heads
from liftcore.reading.parts import Parts
from liftcore.reading.text import counted, library

_FIXED_PITCH = 1  # a bit of a PDF font's flags
_PASSWORD = 4  # FPDF_ERR_PASSWORD
_HYPHENS = (0x02, 0xFFFE)  # what PDFium writes for a hyphen and the line's end behind it
# At a line's end, where PDFium saw none.
_HYPHEN = re.compile(r"(?<=[^\W\d_])[-\u2010]$")

# Fonts of TeX without names for their glyphs: PDFium gives the codes of TeX's encoding T1.
_TEX = str.maketrans(
    {
        **dict(zip("\x1b\x1c\x1d\x1e\x1f", ("ff", "fi", "fl", "ffi", "ffl"), strict=True)),
        **dict(zip("\x10\x11\x12\x13\x14\x15\x16\x19\x88", "“”„«»–—ı•", strict=True)),
    }
)
_LIGATURE = re.compile("[^\\W\\d_][\x1b-\x1f]|[\x1b-\x1f][^\\W\\d_]")


def read_pdf(content: bytes, name: str) -> Parts:
    """The text of a PDF, a part a page. Raises LiftError for one that is damaged, encrypted, or
    has no text."""
    pdfium = library("pypdfium2", name)
    try:
        document = pdfium.PdfDocument(content)
        pages = [_lines(pdfium, document[i]) for i in range(len(document))]
    except pdfium.PdfiumError as error:
        if getattr(error, "err_code", None) == _PASSWORD:
            raise LiftError(f"{name} is encrypted: save a copy without a password first") from error
        raise LiftError(f"{name} is a damaged PDF: PDFium cannot read it") from error
    if not any(pages):
        raise LiftError(
            f"{name} has {counted(len(pages), 'page')} and no text: it is a scan or a drawing; "
            "run OCR on it first"
        )
    if any(_LIGATURE.search(line.text) for page in pages for line in page):
        for line in (line for page in pages for line in page):
            line.text = line.text.translate(_TEX)
    notes = [counted(len(pages), "page")]
    pages, heads = without_heads(pages)
    if heads:
        notes.append(f"running heads and page numbers dropped: {counted(heads, 'line')}")
    joiner = Joiner(pages)
    texts = joiner.texts()
    if joiner.mended:
        notes.append(f"hyphens at line ends mended: {joiner.mended:,}")
    return Parts("PDF", texts, notes, "page")


def _lines(pdfium: Any, page: Any) -> list[Line]:
    """The lines of a page, in the order in which the file draws them."""
    raw, text = pdfium.raw, page.get_textpage()
    codes = [raw.FPDFText_GetUnicode(text.raw, i) for i in range(text.count_chars())]
    ends = [i for i, code in enumerate(codes) if code in (10, 13, *_HYPHENS)]
    lines, start = [], 0
    for end in [*ends, len(codes)]:
        inked = [i for i in range(start, end) if codes[i] > 32]
        if inked:
            left, bottom, *_ = text.get_charbox(inked[0], loose=True)
            right = text.get_charbox(inked[-1], loose=True)[2]
            # The first letter may be a raised number.
            middle, flags = inked[len(inked) // 2], ctypes.c_int()
            size = raw.FPDFText_GetFontSize(text.raw, middle)
            raw.FPDFText_GetFontInfo(text.raw, middle, None, 0, flags)
            fixed = bool(flags.value & _FIXED_PITCH)
            words = "".join(chr(code) for code in codes[start:end]).rstrip()
            if end < len(codes) and codes[end] in _HYPHENS:
                words += PARTED
            else:
                words = _HYPHEN.sub(PARTED, words)
            lines.append(Line(words, left, right, bottom, size, fixed))
        start = end + 1
    return lines
