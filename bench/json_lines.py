"""Rows on disk as JSON lines, safe against a kill at any moment."""

from __future__ import annotations

import json
import os
from pathlib import Path


def read_lines(file: Path) -> list[dict]:
    """The whole lines of a JSON-lines file; a last line that a kill tore is cut off the file."""
    if not file.exists():
        return []
    whole = file.read_bytes()
    end = whole.rfind(b"\n") + 1
    if end < len(whole):
        os.truncate(file, end)
    return [json.loads(line) for line in whole[:end].splitlines()]


def append(file: Path, row: dict) -> None:
    """Adds a line in one write, and waits until the disk has it."""
    with file.open("ab", buffering=0) as out:
        out.write(json.dumps(row, ensure_ascii=False).encode() + b"\n")
        os.fsync(out.fileno())
