"""The picture of the scaling benchmark: seconds and memory against length, and the crossings."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from bench.scaling.fit import ANSWER, EPOCHS, Fit, Line

# Cost against length.
Curve = Callable[[Any], Any]
COLOURS = {
    "jitter": "#1a73e8", "overlap": "#e8710a", "trivial": "#188038", "icl": "#202124",
    "naive": "#9aa0a6",
}  # fmt: skip
NAMES = {
    "icl": "ICL: flash attention, last logits, KV cache", "naive": "ICL: one piece, all logits",
    "jitter": "LIFT jitter", "overlap": "LIFT overlap (stride 3/8)", "trivial": "LIFT trivial",
}  # fmt: skip
STYLES = {1: "o", 10: "s", 100: "^"}
SHADES = {1: 1.0, 10: 0.65, 100: 0.4}
RED, GREY = "#d93025", "#5f6368"
KINDS = ("constant", "linear", "quadratic")


def plot(rows: list[dict], lines: dict[str, Line], crossed: list[dict], path: Path) -> Path:
    figure = draw(rows, lines, crossed)
    figure.savefig(path, dpi=160)
    plt.close(figure)
    return path


def draw(rows: list[dict], lines: dict[str, Line], crossed: list[dict]) -> Figure:
    """Three panels: seconds before the first question, peak memory, document and Q answers."""
    figure, axes = plt.subplots(1, 3, figsize=(16, 6.6), layout="constrained")
    grid = np.geomspace(min(r["tokens"] for r in rows), 4 * max(r["tokens"] for r in rows), 200)
    _seconds(axes[0], lines, grid)
    _memory(axes[1], lines, grid)
    _questions(axes[2], lines, crossed, grid)
    for axis in axes:
        axis.set(xscale="log", xlabel="tokens of the document")
        axis.xaxis.set_major_formatter(lambda x, _: f"{x:,.0f}")
        if np.isfinite(axis.dataLim.intervaly).all():
            axis.set_yscale("log")
            axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axis.yaxis.set_major_formatter(lambda y, _: f"{y:g}")
            axis.yaxis.set_minor_formatter(NullFormatter())
        axis.grid(alpha=0.25, which="both")
        axis.spines[["top", "right"]].set_visible(False)
        if axis.lines:
            # Below the axes, where no data can lie.
            axis.plot([], [], "--", color=GREY, label="extrapolated")
            axis.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.13), frameon=False)
    figure.suptitle(
        f"{rows[-1]['model']} on {rows[-1]['device']}; dots: measured, solid: fit, "
        "dashed: extrapolated beyond the longest measured length"
    )
    return figure


def _fit_line(axis: Axes, longest: float, values: Curve, grid: np.ndarray, **style: Any) -> None:
    """Solid as far as was measured, dashed beyond."""
    inside = np.append(grid[grid < longest], longest)
    beyond = np.insert(grid[grid > longest], 0, longest)
    axis.plot(inside, values(inside), **style)
    axis.plot(beyond, values(beyond), **_look(**{**style, "linestyle": "--", "label": None}))


def _out_of_memory(
    axis: Axes, lines: dict[str, Line], values: Callable[[Line], Curve | None]
) -> None:
    """A red cross at each length that failed: on the line's fit, or at the top without one."""
    label = "out of memory"
    for line in lines.values():
        if line.oom is None:
            continue
        fitted, at, where = values(line), 1.0, axis.get_xaxis_transform()
        if fitted is not None:
            at, where = fitted(line.oom), axis.transData
        axis.plot(line.oom, at, "x", color=RED, ms=12, mew=3, label=label, transform=where,
                  linestyle="none", clip_on=False, zorder=5)  # fmt: skip
        axis.annotate(
            f"out of memory at {line.oom:,}", (line.oom, at), (-10, 6), xycoords=where,
            textcoords="offset points", color=RED, fontsize=8, ha="right",
            bbox=dict(fc="white", ec="none", alpha=0.8, pad=1),
        )  # fmt: skip
        label = None


def _seconds(axis: Axes, lines: dict[str, Line], grid: np.ndarray) -> None:
    for way, line in lines.items():
        if not line.rows:
            continue
        seconds = [r["first_seconds"] for r in line.rows]
        if line.first is None:
            axis.plot(line.lengths, seconds, "o", color=COLOURS[way], ms=5, label=NAMES[way])
            continue
        colour, kind = COLOURS[way], KINDS[line.first.degree]
        once = ", 1 epoch" if line.is_lift else ""
        label = f"{NAMES[way]}{once} ({kind}, R² {line.first.r2:.4f})"
        axis.plot(line.lengths, seconds, "o", color=colour, ms=5)
        _fit_line(axis, max(line.lengths), line.first, grid, color=colour, label=label)
        if way == "jitter" and EPOCHS[-1] > 1:
            label = f"LIFT jitter, {EPOCHS[-1]} epochs ({EPOCHS[-1]} times one)"
            values = EPOCHS[-1] * line.first(grid)
            axis.plot(grid, values, color=colour, linestyle=":", label=label)
    _out_of_memory(axis, lines, lambda line: line.first)
    axis.set(ylabel="seconds", title="Before the first question can be asked")


def _memory(axis: Axes, lines: dict[str, Line], grid: np.ndarray) -> None:
    for way, line in lines.items():
        if not line.rows:
            continue
        peaks, style = [r["peak_bytes"] / 2**30 for r in line.rows], _look(color=COLOURS[way])
        if line.memory is None:
            axis.plot(line.lengths, peaks, "o", ms=5, label=NAMES[way], **style)
            continue
        label = f"{NAMES[way]} ({KINDS[line.memory.degree]})"
        axis.plot(line.lengths, peaks, "o", ms=5, **style)
        _fit_line(axis, max(line.lengths), _gib(line.memory), grid, label=label, **style)
    _out_of_memory(axis, lines, lambda line: line.memory and _gib(line.memory))
    axis.set(ylabel="GiB", title="Peak memory of the process")


def _look(**style: Any) -> dict[str, Any]:
    return style


def _gib(memory: Fit) -> Curve:
    return lambda n: memory(n) / 2**30


def _questions(axis: Axes, lines: dict[str, Line], crossed: list[dict], grid: np.ndarray) -> None:
    """Seconds for a document and Q answers: ICL against LIFT, with a mark where they cross."""
    icl, lift = lines.get("icl"), lines.get("jitter")
    if not icl or not lift or icl.first is None or lift.first is None:
        axis.set_title("Too few points for the crossings")
        return
    for questions, style in STYLES.items():
        for line, name in ((icl, "ICL"), (lift, "LIFT jitter, 1 epoch")):
            fitted = line.cost(questions)
            look = _look(color=COLOURS[line.way], alpha=SHADES[questions])
            _fit_line(axis, max(line.lengths), fitted, grid, **look)
            measured = [_measured(r, questions) for r in line.rows]
            label = f"{name}, Q = {questions}"
            axis.plot(line.lengths, measured, style, ms=5, label=label, **look)
    for c in crossed:
        one = (c["schedule"], c["epochs"]) == ("jitter", 1)
        if one and c["questions"] in STYLES and c["tokens"]:
            _mark(axis, c, icl.cost(c["questions"]))
    axis.set(ylabel="seconds", title="Document and Q answers of 32 tokens")


def _mark(axis: Axes, crossing: dict, fitted: Fit) -> None:
    at, value = float(crossing["tokens"]), fitted(float(crossing["tokens"]))
    axis.plot(at, value, "o", mfc="none", mec=RED, ms=12, mew=1.5)
    note = "" if crossing["within_measured_lengths"] else ", extrapolated"
    axis.annotate(
        f"Q = {crossing['questions']}: {at:,.0f}{note}", (at, value), (9, -13),
        textcoords="offset points", color=RED, fontsize=8,
    )  # fmt: skip


def _measured(row: dict, questions: int) -> float:
    answer = row["question_seconds"] + (ANSWER - 1) * row["token_seconds"]
    return row["first_seconds"] + questions * answer
