"""What the tables of docs/measurements.md are made with."""

from __future__ import annotations

import json
from pathlib import Path


def markdown(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def read(file: Path) -> dict:
    return json.loads(file.read_text())


def percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def with_band(band: dict[str, float], form: str) -> str:
    mean, low, high = (form.format(100 * band[name]) for name in ("mean", "low", "high"))
    return f"{mean} % ({low} to {high})"
