"""The heat maps of the needle test: depth against length, a panel a method, the window drawn in."""

from __future__ import annotations

from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.image import AxesImage

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke

TITLES = {
    "full-icl": "ICL, whole document",
    "truncated-icl": "ICL, truncated",
    "rag": "RAG (BM25)",
    "lift": "LIFT only",
    "lift-rag": "LIFT + RAG (BM25)",
    "lift-icl": "LIFT + truncated ICL",
    "lift-paper": "LIFT + ICL, published settings",
}
# Up to this many columns each cell holds its number.
NUMBERS = 12


def plot(cells: list[dict], window: int, model: str, path: Path) -> Path:
    """Draws mean scores by (method, length, depth), as cases.means gives them."""
    methods = list(dict.fromkeys(c["key"][0] for c in cells))
    lengths = sorted({c["key"][1] for c in cells})
    depths = sorted({c["key"][2] for c in cells})
    wide = max(2.3, (0.62 if len(lengths) <= NUMBERS else 0.36) * len(lengths) + 0.5)
    figure, axes = plt.subplots(
        1, len(methods), figsize=(wide * len(methods) + 1.5, 0.42 * len(depths) + 1.7),
        sharey=True, squeeze=False, layout="constrained",
    )  # fmt: skip
    for axis, method in zip(axes[0], methods, strict=True):
        by_place = {tuple(c["key"][1:]): c for c in cells if c["key"][0] == method}
        image = _panel(axis, by_place, lengths, depths)
        _window(axis, lengths, window)
        axis.set_title(_title(method, by_place), fontsize=9)
        axis.set_xlabel("length (tokens)", fontsize=8)
    axes[0, 0].set_yticks(range(len(depths)), [f"{d:.0%}" for d in depths])
    axes[0, 0].set_ylabel("depth of the needle", fontsize=8)
    bar = figure.colorbar(image, ax=axes[0].tolist(), pad=0.01, aspect=14)
    bar.set_label("needles recalled", fontsize=8)
    bar.ax.tick_params(labelsize=7)
    trials = max(c["cases"] for c in cells)
    figure.suptitle(
        f"{model}, window {window:,} tokens, {trials} needle{'s' * (trials > 1)} a cell"
        + "; hatched: does not fit the window" * any(not c["fit"] for c in cells),
        fontsize=8, color="0.35",
    )  # fmt: skip
    figure.savefig(path, dpi=200)
    plt.close(figure)
    return path


def grid(by_place: dict, lengths: list[int], depths: list[float]) -> np.ndarray:
    """Mean scores [depths, lengths]; NaN where there is none."""
    values = np.full((len(depths), len(lengths)), np.nan)
    for (length, depth), cell in by_place.items():
        if cell["fit"]:
            values[depths.index(depth), lengths.index(length)] = cell["scores"]["contains"]
    return values


def _panel(axis: Axes, by_place: dict, lengths: list[int], depths: list[float]) -> AxesImage:
    values = grid(by_place, lengths, depths)
    image = axis.imshow(values, aspect="auto", cmap="RdYlBu", vmin=0, vmax=1)
    for y, depth in enumerate(depths):
        for x, length in enumerate(lengths):
            if np.isfinite(values[y, x]) and len(lengths) <= NUMBERS:
                dark = abs(values[y, x] - 0.5) > 0.4
                axis.text(
                    x, y, f"{values[y, x]:.2g}", ha="center", va="center", fontsize=7,
                    color="white" if dark else "black",
                )  # fmt: skip
            if (cell := by_place.get((length, depth))) and not cell["fit"]:
                axis.add_patch(
                    Rectangle(
                        (x - 0.5, y - 0.5), 1, 1, facecolor="0.93", edgecolor="0.6",
                        hatch="////", linewidth=0,
                    )
                )  # fmt: skip
    axis.set_xticks(range(len(lengths)), [_short(n) for n in lengths])
    axis.tick_params(labelsize=7, length=0)
    axis.set_xticks(np.arange(len(lengths) - 1) + 0.5, minor=True)
    axis.set_yticks(np.arange(len(depths) - 1) + 0.5, minor=True)
    axis.grid(which="minor", color="white", linewidth=1.2)
    axis.tick_params(which="minor", length=0)
    axis.spines[:].set_visible(False)
    return image


def _window(axis: Axes, lengths: list[int], window: int) -> None:
    """A line behind the last length that the window holds."""
    inside = sum(n <= window for n in lengths)
    if 0 < inside < len(lengths):
        axis.axvline(inside - 0.5, color="black", linewidth=1.4, linestyle=(0, (4, 2)))
        axis.annotate(
            "window", (inside - 0.5, 0), (2, 2), xycoords=("data", "axes fraction"),
            textcoords="offset points", fontsize=6.5, rotation=90, va="bottom",
            path_effects=[withStroke(linewidth=2, foreground="white")],
        )  # fmt: skip


def _title(method: str, by_place: dict) -> str:
    known = [c["scores"]["contains"] for c in by_place.values() if c["fit"]]
    mean = f"mean {np.mean(known):.2f}" if known else "fits nowhere"
    if 0 < len(known) < len(by_place):
        mean += f" of the {len(known)} cells that fit"
    return f"{TITLES.get(method, method)}\n{mean}"


def _short(length: int) -> str:
    """1024 as 1k; 1000 as it is."""
    return f"{length // 1024}k" if length % 1024 == 0 else f"{length:,}"
