"""The page's pictures, as SVG: recall along the document, and the curve of the loss."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

BINS = 120
# Probabilities from which a token belongs to a level; the last level takes the rest.
LEVELS = (0.9, 0.5, 0.1, 0.01)
STRIP = 40  # height of a strip, in units of its own
WIDE, HIGH, LEFT, BOTTOM = 640, 220, 44, 28  # the curve, its axes' room


def level(probability: float) -> int:
    """0 for a token that is known by heart to 4 for one that is not known at all."""
    return sum(probability < limit for limit in LEVELS)


def means(values: np.ndarray, bins: int) -> np.ndarray:
    """Mean of each of so many equal parts of float [L], float64 [bins]; NaN where none is known."""
    places = np.arange(len(values)) * bins // len(values)
    known = ~np.isnan(values)
    total = np.bincount(places[known], values[known], minlength=bins)
    count = np.bincount(places[known], minlength=bins)
    return np.divide(total, count, out=np.full(bins, np.nan), where=count > 0)


def strip(shares: Sequence[float] | np.ndarray, label: str) -> str:
    """Shares along the document as columns: the higher, the better recalled; a dash below where
    nothing is known."""
    columns = []
    for n, share in enumerate(shares):
        if math.isnan(share):
            columns.append(f'<rect class="unknown" x="{n}" y="{STRIP - 2}" width="1" height="2"/>')
            continue
        high = max(1.5, share * STRIP)
        columns.append(
            f'<rect class="l{level(share)}" x="{n}" y="{STRIP - high:.1f}" width="1.05" '
            f'height="{high:.1f}"/>'
        )
    return (
        f'<svg class="strip" viewBox="0 0 {len(shares)} {STRIP}" preserveAspectRatio="none" '
        f'role="img" aria-label="{label}">{"".join(columns)}</svg>'
    )


def curve(losses: Sequence[float], epochs: int) -> str:
    """The loss against the epochs, and its mean over a twentieth of the run."""
    # A description that somebody else wrote may hold any numbers.
    known = np.clip(np.nan_to_num(np.asarray(losses, dtype=np.float64)), 0, 1e6)
    most = max(float(known.max()), 1e-6)
    step = _nice(most / 4)
    top = step * math.ceil(most / step)

    def place(x: float, y: float) -> str:
        across = LEFT + x * (WIDE - LEFT - 8)
        return f"{across:.1f},{8 + (1 - y / top) * (HIGH - BOTTOM - 8):.1f}"

    lines = []
    for n in range(round(top / step) + 1):
        x, y = place(0, n * step).split(",")
        lines.append(f'<line x1="{x}" y1="{y}" x2="{WIDE - 8}" y2="{y}"/>')
        lines.append(f'<text x="{LEFT - 6}" y="{float(y) + 4:.1f}" text-anchor="end">')
        lines.append(f"{n * step:g}</text>")
    every = max(1, math.ceil(epochs / 12))
    for epoch in range(0, epochs + 1, every):
        x, _ = place(epoch / epochs, 0).split(",")
        lines.append(f'<text x="{x}" y="{HIGH - 10}" text-anchor="middle">{epoch}</text>')
    window = np.ones(max(1, len(known) // 20))
    mean = np.convolve(known, window, "same") / np.convolve(np.ones(len(known)), window, "same")
    each, smooth = (
        " ".join(place((n + 0.5) / len(known), loss) for n, loss in enumerate(values))
        for values in (known, mean)
    )
    return (
        f'<svg class="curve" viewBox="0 0 {WIDE} {HIGH}" role="img" aria-label="Loss along the '
        f'training: {known[0]:.2f} at first, {known[-1]:.2f} at last">{"".join(lines)}'
        f'<polyline points="{each}"/><polyline class="mean" points="{smooth}"/></svg>'
    )


def _nice(step: float) -> float:
    """The next of 1, 2, 5 times a power of ten."""
    power = 10.0 ** math.floor(math.log10(step))
    return next(n * power for n in (1, 2, 5, 10) if n * power >= step * (1 - 1e-9))
