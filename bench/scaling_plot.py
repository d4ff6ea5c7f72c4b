"""The picture of the scaling benchmark: seconds and memory against length, and the crossings."""

from __future__ import annotations

from pathlib import Path

import matplotlib
import numpy as np

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from bench.scaling_fit import cost

COLOURS = {
    "jitter": "#1a73e8", "overlap": "#e8710a", "trivial": "#188038", "icl": "#202124",
    "naive": "#9aa0a6",
}  # fmt: skip
NAMES = {
    "icl": "ICL: flash attention, last logits, KV cache", "naive": "ICL: one piece, all logits",
    "jitter": "LIFT jitter", "overlap": "LIFT overlap (stride 3/8)", "trivial": "LIFT trivial",
}  # fmt: skip
STYLES = {1: "o", 10: "s", 100: "^"}


def plot(rows: list[dict], lines: dict, found: list[dict], path: Path) -> Path:
    figure, axes = plt.subplots(1, 3, figsize=(16, 5.2), layout="constrained")
    longest = 4 * max(r["tokens"] for r in rows)
    grid = np.geomspace(min(r["tokens"] for r in rows), longest, 200)
    _seconds(axes[0], lines, grid)
    _memory(axes[1], lines, grid)
    _questions(axes[2], lines, found, grid)
    for axis in axes:
        axis.set(xscale="log", xlabel="tokens of the document")
        axis.xaxis.set_major_formatter(lambda x, _: f"{x:,.0f}")
        axis.tick_params(axis="x", labelrotation=30)
        axis.grid(alpha=0.25, which="both")
        axis.spines[["top", "right"]].set_visible(False)
    figure.suptitle(
        f"{rows[0]['model']} on {rows[0]['device']}; dots: measured, solid: fit, "
        "dashed: extrapolated beyond the longest measured length"
    )
    figure.savefig(path, dpi=140)
    plt.close(figure)
    return path


def _fit_line(axis, line, values, grid, colour, label):
    """Solid as far as was measured, dashed beyond."""
    inside, beyond = grid[grid <= max(line.lengths)], grid[grid >= max(line.lengths)]
    axis.plot(inside, values(inside), color=colour, label=label)
    axis.plot(beyond, values(beyond), color=colour, linestyle="--", alpha=0.8)


def _seconds(axis, lines, grid):
    for way, line in lines.items():
        if line.first is None:
            continue
        colour, degree = COLOURS[way], "linear" if line.is_lift else "quadratic"
        label = (
            f"{NAMES[way]}{', 1 epoch' if line.is_lift else ''} ({degree}, R² {line.first.r2:.4f})"
        )
        axis.plot(line.lengths, [r["first_seconds"] for r in line.rows], "o", color=colour, ms=5)
        _fit_line(axis, line, line.first, grid, colour, label)
        if way == "jitter":
            label = "LIFT jitter, 12 epochs (12 times one)"
            axis.plot(grid, 12 * line.first(grid), color=colour, linestyle=":", label=label)
        if line.oom:
            axis.plot(line.oom, line.first(line.oom), "x", color="#d93025", ms=12, mew=3)
            axis.annotate(
                "out of memory", (line.oom, line.first(line.oom)), (8, -12),
                textcoords="offset points", color="#d93025", fontsize=8,
            )  # fmt: skip
    axis.set(yscale="log", ylabel="seconds", title="Before the first question can be asked")
    if axis.get_legend_handles_labels()[0]:
        axis.legend(fontsize=7)


def _memory(axis, lines, grid):
    for way, line in lines.items():
        peaks = [r["peak_bytes"] / 2**30 for r in line.rows]
        if not peaks:
            continue
        axis.plot(line.lengths, peaks, "o-", color=COLOURS[way], ms=5, label=NAMES[way])
        if line.memory is not None:
            beyond = grid[grid >= max(line.lengths)]
            axis.plot(beyond, line.memory(beyond) / 2**30, "--", color=COLOURS[way], alpha=0.8)
        if line.oom and line.memory is not None:
            at = line.memory(line.oom) / 2**30
            axis.plot(line.oom, at, "x", color="#d93025", ms=12, mew=3)
    axis.set(yscale="log", ylabel="peak memory, GiB", title="Peak memory of the process")
    axis.yaxis.set_major_formatter(lambda y, _: f"{y:g}")
    axis.legend(fontsize=7)


def _questions(axis, lines, found, grid):
    """Seconds for a document and Q answers: ICL against LIFT, with a mark where they cross."""
    icl, lift = lines.get("icl"), lines.get("jitter")
    if not icl or not lift or icl.first is None or lift.first is None:
        axis.set_title("Too few points for the crossings")
        return
    for questions, style in STYLES.items():
        theirs = cost(icl.first, icl.question, icl.token, questions)
        ours = cost(lift.first, lift.question, lift.token, questions)
        alpha = 0.35 + 0.65 * (questions == 1)
        shown = grid[:: max(1, len(grid) // 8)]
        axis.plot(grid, theirs(grid), color=COLOURS["icl"], alpha=alpha)
        axis.plot(
            shown, theirs(shown), style, color=COLOURS["icl"], ms=4, label=f"ICL, Q = {questions}"
        )
        axis.plot(grid, ours(grid), color=COLOURS["jitter"], alpha=alpha)
        axis.plot(
            shown,
            ours(shown),
            style,
            color=COLOURS["jitter"],
            ms=4,
            label=f"LIFT jitter, Q = {questions}",
        )
    for c in found:
        if (
            c["schedule"] == "jitter"
            and c["epochs"] == 1
            and c["questions"] in STYLES
            and c["tokens"]
        ):
            at = float(c["tokens"])
            value = cost(icl.first, icl.question, icl.token, c["questions"])(at)
            axis.plot(at, value, "o", mfc="none", mec="#d93025", ms=12, mew=1.5)
            axis.annotate(
                f"Q = {c['questions']}: {at:,.0f}", (at, value), (8, -12),
                textcoords="offset points", color="#d93025", fontsize=8,
            )  # fmt: skip
    axis.set(
        yscale="log", ylabel="seconds", title="Document and Q answers of 32 tokens (from the fits)"
    )
    axis.legend(fontsize=7)
