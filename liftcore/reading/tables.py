"""Notebooks and tables, which need no package."""

from __future__ import annotations

import csv
import json
import re
from typing import Any

from liftcore.errors import LiftError
from liftcore.reading.parts import Parts
from liftcore.reading.text import counted


def read_notebook(text: str, name: str, notes: list[str]) -> Parts:
    """The cells of a notebook in order, and what they printed; pictures and HTML are left out."""
    try:
        content = json.loads(text)
        cells = content["cells"]
        said = [each for cell in cells for each in _cell(cell)]
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise LiftError(f"{name} is no notebook of version 4, or damaged") from error
    if not said:
        raise LiftError(f"{name} holds no text")
    return Parts("notebook", [("", "\n\n".join(said))], [*notes, counted(len(cells), "cell")])


def _cell(cell: dict) -> list[str]:
    texts = [_text(cell["source"])]
    for output in cell.get("outputs", ()):
        texts.append(_text(output.get("text") or output.get("data", {}).get("text/plain", "")))
    return [text.strip("\n") for text in texts if text.strip()]


def _text(lines: Any) -> str:
    return lines if isinstance(lines, str) else "".join(lines)


def read_csv(text: str, notes: list[str]) -> Parts:
    """The rows of a table, a line each: "Name: Marta; Year: 1987", where the first row names the
    columns; else "Marta; 1987"."""
    try:
        dialect: Any = csv.Sniffer().sniff(text[:4096], ",;\t|")
    except csv.Error:
        dialect = csv.excel
    rows = [[cell.strip() for cell in row] for row in csv.reader(text.splitlines(True), dialect)]
    rows = [row for row in rows if any(row)]
    if len(rows) < 2 or not _names(rows[0]):
        return Parts("table", [("", "\n".join(map("; ".join, rows)))], notes)
    lines = ("; ".join(f"{name}: {cell}" for name, cell in zip(rows[0], row, strict=False) if cell)
             for row in rows[1:])  # fmt: skip
    return Parts("table", [("", "\n".join(lines))], [*notes, counted(len(rows) - 1, "row")])


def _names(row: list[str]) -> bool:
    """Whether a row names columns: different words in all cells of at least two."""
    letters = all(re.search(r"[^\W\d_]", cell) for cell in row)
    return letters and len(set(row)) == len(row) > 1
