"""The picture of the recall benchmark: recall against passes and seconds, the lines, the price."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import matplotlib
import numpy as np

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.ticker import LogLocator, NullFormatter

from bench import recall_analysis as analysis

COLOURS = {
    "jitter/all": "#1a73e8", "overlap/all": "#e8710a", "trivial/all": "#188038",
    "overlap/mean": "#8430ce", "overlap/new": "#d93025", "official 3e-4": "#202124",
    "official 1e-3": "#5f6368", "official 5e-5": "#9aa0a6",
}  # fmt: skip
LINE_COLOURS = {
    "schedule": "#1a73e8", "rate": "#d93025", "batch": "#188038", "segment": "#e8710a",
    "rank": "#8430ce", "cosine": "#00838f", "official": "#202124",
}  # fmt: skip


def plot(rows: list[dict], settings: list[dict], path: Path) -> Path:
    groups = analysis.by_setting(rows)
    figure, axes = plt.subplots(2, 2, figsize=(12.5, 9), layout="constrained")
    _against_passes(axes[0, 0], groups, settings)
    _against_seconds(axes[0, 1], groups, settings)
    _soonest(axes[1, 0], settings)
    _price(axes[1, 1], settings)
    for axis in axes.flat:
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(alpha=0.25)
    documents = sorted({r["document"] for r in rows})
    first = rows[0]
    figure.suptitle(
        f"Recall of {len(documents)} documents of {min(r['tokens'] for r in rows)} to "
        f"{max(r['tokens'] for r in rows)} tokens, SmolLM2-135M, {first['device']}\n"
        f"bands: 95 %, bootstrap over documents and seeds; recall: {first['probes']} greedy "
        "completions of 32 tokens a point",
        fontsize=11,
    )
    figure.savefig(path, dpi=140)
    plt.close(figure)
    return path


def _of_line(settings, *lines):
    return [s for s in settings if s["line"] in lines]


def _against_passes(axis, groups, settings):
    for s in sorted(
        _of_line(settings, "schedule"), key=lambda s: list(COLOURS).index(s["setting"])
    ):
        x, mean, low, high = analysis.curve(groups[s["setting"]])
        label = f"{s['setting']} ({s['runs']} runs)"
        _band(axis, x, mean, low, high, COLOURS[s["setting"]], label)
    axis.set(xlabel="token-passes / tokens of the document", title="Schedule and overlap loss")
    _recall_axis(axis)


def _against_seconds(axis, groups, settings):
    for s in _of_line(settings, "schedule", "official"):
        rows = groups[s["setting"]]
        seconds = np.mean([r["tokens"] for r in rows]) / s["tokens_per_second"]
        if s["line"] == "official":
            grid = np.arange(0, min(r["curve"][-1]["passes"] / r["tokens"] for r in rows), 0.5)
            values = np.stack([analysis.recall_at(r, grid) for r in rows])
            mean, low, high = analysis.bootstrap(rows, values)
            x = grid
        else:
            x, mean, low, high = analysis.curve(rows)
        label = f"{s['setting']} ({s['runs']} runs)"
        _band(axis, x * seconds, mean, low, high, COLOURS.get(s["setting"]), label)
    axis.set(xscale="log", xlim=(2, None), xlabel="seconds of training")
    axis.set_title("The same, and the official recipe, in seconds")
    _plain_numbers(axis)
    _recall_axis(axis)


def _soonest(axis, settings):
    ready = [s for s in settings if s["seconds_to_90"] is not None][::-1]
    for y, s in enumerate(ready):
        per_pass = s["seconds_to_90"] / s["passes_to_90"]
        middle, low = s["seconds_to_90"], s["passes_low"] * per_pass
        # A band without an end: some runs never got there.
        open_end = s["passes_high"] is None
        high = 1.5 * middle if open_end else s["passes_high"] * per_pass
        colour = LINE_COLOURS[s["line"]]
        axis.plot([low, high], [y, y], color=colour, linewidth=2, alpha=0.5)
        axis.plot(middle, y, "o", color=colour)
        if open_end:
            axis.plot(high, y, ">", color=colour, alpha=0.5)
        share = "" if s["reached"] == s["runs"] else f"  ({s['reached']} of {s['runs']} runs)"
        axis.annotate(
            f"{middle:.0f} s{share}", (high, y), (6, 0), textcoords="offset points", fontsize=8,
            va="center",
        )  # fmt: skip
    axis.set_yticks(range(len(ready)), [s["setting"] for s in ready], fontsize=8)
    axis.set(xscale="log", xlabel="seconds of training to 90 % recall (median, 95 % band)")
    _plain_numbers(axis)
    axis.set_title("Time to 90 % recall: one thing changed at a time")
    axis.margins(x=0.2)


def _price(axis, settings):
    front = set(analysis.front(settings))
    ready = [s for s in settings if s["seconds_to_90"] is not None]
    heights = _apart([s["chat_loss"] for s in ready])
    for s, height in zip(ready, heights, strict=True):
        on = s["setting"] in front
        axis.plot(
            s["seconds_to_90"], s["chat_loss"], "o",
            color=LINE_COLOURS[s["line"]], fillstyle="full" if on else "none",
        )  # fmt: skip
        axis.annotate(
            s["setting"], (s["seconds_to_90"], s["chat_loss"]),
            (1.08 * s["seconds_to_90"], height), va="center",
            fontsize=8, weight="bold" if on else "normal",
        )  # fmt: skip
    steps = sorted((s for s in ready if s["setting"] in front), key=lambda s: s["seconds_to_90"])
    axis.step(
        [s["seconds_to_90"] for s in steps], [s["chat_loss"] for s in steps],
        where="post", color="#5f6368", linewidth=1, linestyle="--",
    )  # fmt: skip
    axis.set(
        xscale="log",
        xlabel="seconds of training to 90 % recall",
        ylabel="loss on chat answers, after − before (nats)",
        title="What was forgotten (filled: on the Pareto front)",
    )
    _plain_numbers(axis)
    axis.margins(x=0.2)


def _apart(values: list[float], share: float = 0.035) -> list[float]:
    """The values moved up as little as keeps them a share of their range apart."""
    gap, moved = share * (max(values) - min(values)), list(values)
    order = sorted(range(len(values)), key=lambda i: values[i])
    for before, i in pairwise(order):
        moved[i] = max(moved[i], moved[before] + gap)
    return moved


def _band(axis, x, mean, low, high, colour, label):
    axis.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0)
    axis.plot(x, mean, color=colour, label=label)


def _recall_axis(axis):
    axis.axhline(analysis.TARGET, color="black", linewidth=0.8, linestyle=":")
    axis.set(ylabel="greedy recall", ylim=(0, 1.02))
    axis.legend(fontsize=8, loc="lower right")


def _plain_numbers(axis):
    """20 and 50 in place of powers of ten."""
    axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.xaxis.set_major_formatter(lambda x, _: f"{x:g}")
    axis.xaxis.set_minor_formatter(NullFormatter())
