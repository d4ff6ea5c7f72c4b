"""The picture of the understanding benchmark: right answers by line and kind, and their price."""

from __future__ import annotations

from pathlib import Path

import matplotlib
from matplotlib.axes import Axes

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from bench.plot_names import Dot, names_beside
from bench.understand.answers import KINDS

COLOURS = {"single": "#1a73e8", "two": "#188038", "timeline": "#e8710a", "unanswerable": "#9aa0a6"}
NONE, HALF, PASSAGES, WHOLE = "#1a73e8", "#e8710a", "#188038", "#9aa0a6"


def plot(result: dict, path: Path) -> Path:
    """Draws the summary that bench.understand.main.report makes."""
    lines = result["lines"][::-1]
    figure, axes = plt.subplots(2, 2, figsize=(13, 9.5), layout="constrained")
    _answers(axes[0, 0], lines)
    _kinds(axes[0, 1], lines)
    _gains(axes[1, 0], lines)
    _price(axes[1, 1], lines)
    for axis in axes.flat:
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(alpha=0.25)
    figure.suptitle(
        f"Questions on {len(result['documents'])} invented documents after "
        f"{result['seconds']:g} s of work, SmolLM2-135M, {result['device']}\n"
        "bands: 95 %, bootstrap over documents and seeds",
        fontsize=11,
    )
    figure.savefig(path, dpi=130)
    plt.close(figure)
    return path


def _names(axis: Axes, lines: list[dict], offset: float = 0.0) -> None:
    axis.set_yticks([y + offset for y in range(len(lines))], [x["line"] for x in lines], fontsize=8)


def _bar(axis: Axes, y: float, band: dict, colour: str, height: float, label: str | None) -> None:
    axis.barh(y, band["mean"], height, color=colour, label=label)
    axis.plot([band["low"], band["high"]], [y, y], color="black", linewidth=1)


def _answers(axis: Axes, lines: list[dict]) -> None:
    bars = (("whole", WHOLE, "the whole text in the prompt"),
            ("passages", PASSAGES, "passages of the text in the prompt"),
            ("half", HALF, "half of the text in the prompt"),
            ("none", NONE, "no text in the prompt"))  # fmt: skip
    for n, (context, colour, label) in enumerate(bars):
        for y, line in enumerate(lines):
            if context in line:
                _bar(axis, y + 0.21 * (n - 1.5), line[context]["right"], colour, 0.19, label)
                label = None
    _names(axis, lines)
    axis.set(title="Right answers to questions that the text answers", xlim=(0, 1))
    axis.legend(fontsize=8)


def _kinds(axis: Axes, lines: list[dict]) -> None:
    height = 0.8 / len(KINDS)
    for n, kind in enumerate(KINDS):
        label = kind
        for y, line in enumerate(lines):
            if kind in line["none"]:
                place = y + 0.4 - (n + 0.5) * height
                _bar(axis, place, line["none"][kind], COLOURS[kind], height * 0.9, label)
                label = None
    _names(axis, lines)
    axis.set(title="By kind of question, no text in the prompt", xlim=(0, 1.02))
    axis.legend(fontsize=8)


def _gains(axis: Axes, lines: list[dict]) -> None:
    shown = [line for line in lines if "gain" in line]
    if not shown:
        axis.set_visible(False)
        return
    for y, line in enumerate(shown):
        gain = line["gain"]["none"]
        axis.plot([gain["low"], gain["high"]], [y, y], color=NONE, linewidth=2, alpha=0.5)
        axis.plot(gain["mean"], y, "o", color=NONE)
        text = f"{gain['mean']:+.0%}, better in {gain['better']} of {gain['pairs']}"
        axis.annotate(
            text, (gain["high"], y), (6, 0), textcoords="offset points", fontsize=8, va="center"
        )
    _names(axis, shown)
    axis.axvline(0, color="black", linewidth=0.8)
    axis.set_title("Gain over segments only after equal time, pairs of document and seed")
    axis.margins(x=0.35, y=0.1)


def _price(axis: Axes, lines: list[dict]) -> None:
    dots = [
        Dot(
            f"{line['line']} (recall {line['recall']:.0%}, "
            f"{line['general']:.0f}/{line['general_of']})",
            line["chat"],
            line["none"]["right"]["mean"],
            NONE,
        )
        for line in lines
    ]
    for dot in dots:
        axis.plot(dot.x, dot.y, "o", color=dot.colour, zorder=3)
    left, right = axis.get_xlim()
    axis.set(
        xlabel="loss on chat answers (nats); general questions right in brackets",
        ylabel="right answers, no text in the prompt",
        title="What is forgotten and what is recalled",
        xlim=(left, left + 2.2 * (right - left)),
    )
    axis.margins(y=0.12)
    names_beside(axis, dots)
