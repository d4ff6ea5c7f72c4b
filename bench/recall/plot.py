"""The picture of the recall benchmark: recall against passes and seconds, the lines, the price."""

from __future__ import annotations

from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from bench.plot_names import Dot, names_beside
from bench.recall import analysis

COLOURS = {
    "jitter/all": "#1a73e8", "overlap/all": "#e8710a", "trivial/all": "#188038",
    "overlap/mean": "#8430ce", "overlap/new": "#d93025", "official 3e-4": "#202124",
    "official 1e-3": "#5f6368", "official 5e-5": "#9aa0a6",
}  # fmt: skip
LINE_COLOURS = {
    "schedule": "#1a73e8", "rate": "#d93025", "batch": "#188038", "segment": "#e8710a",
    "rank": "#8430ce", "cosine": "#00838f", "memorize": "#c2185b", "official": "#202124",
}  # fmt: skip
GREY = "#5f6368"


def plot(rows: list[dict], settings: list[dict], path: Path) -> Path:
    figure = draw(rows, settings)
    figure.savefig(path, dpi=140)
    plt.close(figure)
    return path


def draw(rows: list[dict], settings: list[dict]) -> Figure:
    """Recall against passes and against seconds, time to 90 % recall, and what was forgotten.
    Settings that change one thing of the preset memorize are a table of their own."""
    settings = [s for s in settings if s["line"] in LINE_COLOURS]
    groups = analysis.by_setting(rows)
    lower = max(4.5, 0.26 * len(settings))
    figure, axes = plt.subplots(
        2, 2, figsize=(13.5, 6.2 + lower), layout="constrained", height_ratios=(5, lower)
    )
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
        "bands: 95 %, bootstrap over documents and seeds, none with fewer than "
        f"{analysis.FEW_RUNS} runs; recall: {first['probes']} greedy completions of 32 tokens "
        "a point",
        fontsize=11,
    )
    return figure


def _of_line(settings: list[dict], *lines: str) -> list[dict]:
    return [s for s in settings if s["line"] in lines]


def _against_passes(axis: Axes, groups: dict[str, list[dict]], settings: list[dict]) -> None:
    for s in sorted(
        _of_line(settings, "schedule"), key=lambda s: list(COLOURS).index(s["setting"])
    ):
        x, mean, low, high = analysis.curve(groups[s["setting"]])
        _band(axis, x, mean, low, high, s)
    axis.set(xlabel="token-passes / tokens of the document", title="Schedule and overlap loss")
    _recall_axis(axis)


def _against_seconds(axis: Axes, groups: dict[str, list[dict]], settings: list[dict]) -> None:
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
        _band(axis, x * seconds, mean, low, high, s)
    axis.set(xscale="log", xlim=(2, None), xlabel="seconds of training")
    axis.set_title("The same, and the official recipe, in seconds")
    _plain_numbers(axis)
    _recall_axis(axis)


def _soonest(axis: Axes, settings: list[dict]) -> None:
    never = [s for s in settings if s["seconds_to_90"] is None]
    ready = [s for s in settings if s["seconds_to_90"] is not None]
    shown = [*ready, *never][::-1]
    for y, s in enumerate(shown):
        if s["seconds_to_90"] is None:
            some = f"{s['reached']} of {s['runs']} runs" if s["reached"] else "never"
            few = "" if s["reached"] else _counted(s)
            text = f"{some} in {s['passes_last']:.0f} passes{few}"
            # At the right edge, past every time that was measured.
            axis.text(0.99, y, text, transform=axis.get_yaxis_transform(), fontsize=8,
                      color=GREY, ha="right", va="center")  # fmt: skip
            continue
        end = _bar(axis, y, s)
        axis.annotate(
            f"{s['seconds_to_90']:.0f} s{_counted(s)}", (end, y), (6, 0),
            textcoords="offset points", fontsize=8, va="center",
        )  # fmt: skip
    axis.set_yticks(range(len(shown)), [s["setting"] for s in shown], fontsize=8)
    axis.set(xscale="log", ylim=(-0.7, len(shown) - 0.3))
    axis.set(xlabel="seconds of training to 90 % recall (median, 95 % band)")
    _plain_numbers(axis)
    axis.set_title("Time to 90 % recall: one thing changed at a time")
    _widen(axis, 0.05, 0.3)


def _bar(axis: Axes, y: float, s: dict) -> float:
    """The dot of a setting and, with enough runs, its band; where the band ends."""
    middle, per_pass = s["seconds_to_90"], s["seconds_to_90"] / s["passes_to_90"]
    colour = LINE_COLOURS[s["line"]]
    axis.plot(middle, y, "o", color=colour)
    if s["runs"] < analysis.FEW_RUNS:
        return middle
    # A band without an end: some runs never got there.
    open_end = s["passes_high"] is None
    high = 1.5 * middle if open_end else s["passes_high"] * per_pass
    axis.plot([s["passes_low"] * per_pass, high], [y, y], color=colour, linewidth=2, alpha=0.5)
    if open_end:
        axis.plot(high, y, ">", color=colour, alpha=0.5)
    return high


def _counted(s: dict) -> str:
    """How many runs are behind a dot, where they are few or did not all arrive."""
    if 0 < s["reached"] < s["runs"]:
        return f"  ({s['reached']} of {s['runs']} runs)"
    return f", n = {s['runs']}" if s["runs"] < analysis.FEW_RUNS else ""


def _price(axis: Axes, settings: list[dict]) -> None:
    front = set(analysis.front(settings))
    ready = [s for s in settings if s["seconds_to_90"] is not None]
    for s in ready:
        axis.plot(
            s["seconds_to_90"], s["chat_loss"], "o", color=LINE_COLOURS[s["line"]],
            fillstyle="full" if s["setting"] in front else "none", zorder=3,
        )  # fmt: skip
    steps = sorted((s for s in ready if s["setting"] in front), key=lambda s: s["seconds_to_90"])
    axis.step(
        [s["seconds_to_90"] for s in steps], [s["chat_loss"] for s in steps],
        where="post", color=GREY, linewidth=1, linestyle="--",
    )  # fmt: skip
    axis.set(
        xscale="log",
        xlabel="seconds of training to 90 % recall",
        ylabel="loss on chat answers, after − before (nats)",
        title="What was forgotten (filled: on the Pareto front)",
    )
    _plain_numbers(axis)
    _widen(axis, 0.05, 1.0)
    names_beside(
        axis,
        [
            Dot(
                s["setting"] + (f" (n = {s['runs']})" if s["runs"] < analysis.FEW_RUNS else ""),
                s["seconds_to_90"],
                s["chat_loss"],
                LINE_COLOURS[s["line"]],
                bold=s["setting"] in front,
            )
            for s in ready
        ],
    )


def _widen(axis: Axes, left: float, right: float) -> None:
    """Room beside the data of a logarithmic axis, as shares of its width."""
    shown = axis.dataLim.intervalx
    if not np.isfinite(shown).all():
        return
    width = max(0.1, np.log(shown[1] / shown[0]))
    axis.set_xlim(shown[0] * np.exp(-left * width), shown[1] * np.exp(right * width))


def _band(
    axis: Axes, x: np.ndarray, mean: np.ndarray, low: np.ndarray, high: np.ndarray, setting: dict
) -> None:
    name, runs = setting["setting"], setting["runs"]
    colour = COLOURS.get(name)
    if runs >= analysis.FEW_RUNS:
        axis.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0)
    axis.plot(x, mean, color=colour, label=f"{name} (n = {runs})")


def _recall_axis(axis: Axes) -> None:
    axis.axhline(analysis.TARGET, color="black", linewidth=0.8, linestyle=":")
    axis.set(ylabel="greedy recall", ylim=(0, 1.02))
    # Below the axes, where no data can lie.
    axis.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.13), ncols=3,
                frameon=False)  # fmt: skip


def _plain_numbers(axis: Axes) -> None:
    """20 and 50 in place of powers of ten."""
    axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.xaxis.set_major_formatter(lambda x, _: f"{x:g}")
    axis.xaxis.set_minor_formatter(NullFormatter())
