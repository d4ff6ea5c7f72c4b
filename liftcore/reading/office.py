"""DOCX through mammoth, PPTX through python-pptx."""

from __future__ import annotations

import io
from typing import Any

from liftcore.errors import LiftError
from liftcore.reading.html import html_text
from liftcore.reading.parts import Parts
from liftcore.reading.text import counted, library


def read_docx(content: bytes, name: str) -> Parts:
    """The text of a Word document, footnotes behind it; pictures are left out."""
    mammoth = library("mammoth", name)
    # Without a place for pictures they would be encoded into the text.
    nothing = mammoth.images.img_element(lambda image: {"src": ""})
    made = mammoth.convert_to_html(io.BytesIO(content), convert_image=nothing)
    text, _ = html_text(made.value, name)
    if not text:
        raise LiftError(f"{name} holds no text")
    return Parts("DOCX", [("", text)])


def read_pptx(content: bytes, name: str) -> Parts:
    """The text of slides, a part a slide, with tables and the speaker's notes."""
    slides = library("pptx", name).Presentation(io.BytesIO(content)).slides
    texts = [_slide(slide) for slide in slides]
    if not any(texts):
        raise LiftError(f"{name} holds no text")
    return Parts("PPTX", [("\n\n", t) for t in texts], [counted(len(texts), "slide")], "slide")


def _slide(slide: Any) -> str:
    texts = [text for shape in slide.shapes if (text := _shape(shape))]
    if slide.has_notes_slide and slide.notes_slide.notes_text_frame is not None:
        texts.append(slide.notes_slide.notes_text_frame.text.strip())
    return "\n\n".join(text for text in texts if text)


def _shape(shape: Any) -> str:
    if shape.has_text_frame:
        return shape.text_frame.text.strip()
    if getattr(shape, "has_table", False):
        rows = ("; ".join(cell.text.strip() for cell in row.cells) for row in shape.table.rows)
        return "\n".join(rows)
    # A group of shapes.
    return "\n".join(t for each in getattr(shape, "shapes", ()) if (t := _shape(each)))
