"""Names of dots in a picture that do not cover each other."""

from __future__ import annotations

from dataclasses import dataclass

from matplotlib.axes import Axes


@dataclass(frozen=True)
class Dot:
    name: str
    x: float
    y: float
    colour: str
    bold: bool = False


def names_beside(axis: Axes, dots: list[Dot]) -> None:
    """The names in a column in the right part of the axes, each with a thin line to its dot."""
    low, high = axis.get_ylim()
    heights = apart([(dot.y - low) / (high - low) for dot in dots])
    for dot, height in zip(dots, heights, strict=True):
        axis.annotate(
            dot.name, (dot.x, dot.y), (0.58, height),
            textcoords="axes fraction", va="center", fontsize=8,
            weight="bold" if dot.bold else "normal",
            arrowprops=dict(arrowstyle="-", color=dot.colour, alpha=0.35, lw=0.8,
                            relpos=(0, 0.5), shrinkA=1, shrinkB=4),
        )  # fmt: skip


def apart(values: list[float], gap: float = 0.042) -> list[float]:
    """The values, shares of an axis, moved apart by at least the gap and kept within 0 and 1."""
    order, moved = sorted(range(len(values)), key=lambda i: values[i]), list(values)
    gap = min(gap, 1 / max(1, len(values)))
    for place, i in enumerate(order):
        least = moved[order[place - 1]] + gap if place else gap / 2
        moved[i] = max(moved[i], least)
    most = 1 - gap / 2
    for i in reversed(order):
        moved[i] = min(moved[i], most)
        most = moved[i] - gap
    return moved
