"""Bars of the kernel benchmark: time over that of the frozen base products, by op and variant."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib
import torch

from bench.kernels.check import Outcome

matplotlib.use("Agg")
import matplotlib.pyplot as plt

COLOURS = {
    "plain torch": "#9aa0a6", "torch op": "#5f6368", "torch op chunked": "#3c4043",
    "PEFT": "#c58af9", "PEFT bf16": "#8430ce",
    "Unsloth": "#fbbc04", "LoRAFusion": "#e8710a", "Liger": "#f28b82", "CCE": "#d93025",
    "QuACK": "#e8710a", "ours triton": "#1a73e8", "ours concat": "#00838f",
    "ours plain": "#81b4f8", "ours, rows known": "#1a73e8", "ours, rows found": "#00838f",
    "ours triton, rows known": "#81b4f8", "ours cublas, all rows": "#b2dfdb",
}  # fmt: skip


def plot(
    results: list[tuple[Any, int, dict[str, Outcome]]], path: Path, device: str, dtype: torch.dtype
) -> Path:
    """Writes the PNG for the largest T and returns its path.

    results: (case, tokens, outcomes); only what ran with right numbers beside a floor is drawn.
    """
    longest = max(tokens for _, tokens, _ in results)
    measured = [(c, _times(outcomes)) for c, tokens, outcomes in results if tokens == longest]
    ops = list(dict.fromkeys(c.op for c, _ in measured))
    counts = [sum(c.op == op for c, _ in measured) for op in ops]
    figure, axes = plt.subplots(
        len(ops), 1, figsize=(2 + 1.6 * max(max(counts), 4), 3.2 * len(ops)), squeeze=False
    )
    for axis, op in zip(axes[:, 0], ops, strict=True):
        _bars(axis, op, [f for f in measured if f[0].op == op])
    figure.suptitle(
        f"forward + backward, {longest} tokens, {str(dtype).removeprefix('torch.')}, {device}\n"
        "time / time of the frozen base products of the scored rows (lower is better)",
        fontsize=10,
    )
    figure.tight_layout()
    figure.savefig(path, dpi=130)
    plt.close(figure)
    return path


def _times(outcomes: dict[str, Outcome]) -> dict[str, float]:
    """Times over that of the floor, of the variants that may be compared."""
    base = outcomes["base products"].milliseconds
    right = {n: o.milliseconds for n, o in outcomes.items() if o.correct}
    return {n: t / base for n, t in right.items() if t is not None} if base else {}


def _bars(axis: Any, op: str, measured: list[tuple[Any, dict[str, float]]]) -> None:
    names = [n for n in measured[0][0].variants if any(n in times for _, times in measured)]
    width = 0.85 / max(len(names), 1)
    for i, name in enumerate(names):
        at = [
            (x + (i - (len(names) - 1) / 2) * width, times[name])
            for x, (_, times) in enumerate(measured)
            if name in times
        ]
        bars = axis.bar(*zip(*at, strict=True), width, label=name, color=COLOURS.get(name))
        axis.bar_label(bars, fmt="%.2f", fontsize=6, padding=1)
    axis.axhline(1.0, color="black", linewidth=0.8, linestyle="--")
    axis.set_xticks(range(len(measured)), [f"{c.model}\n{c.name}" for c, _ in measured], fontsize=7)
    axis.set_title(op, fontsize=9, loc="left")
    axis.margins(y=0.15)
    if names:
        axis.legend(fontsize=6, ncols=2, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    axis.spines[["top", "right"]].set_visible(False)
