"""The tables of the README that say how well documents are answered about."""

from __future__ import annotations

import json
from pathlib import Path

Table = tuple[list[str], list[list[str]]]


def understand(folder: Path) -> Table:
    """Right answers of each mix of objectives after equal seconds of training."""
    head = ["mix", "runs", "no text", "exchanged", "F1", "gain over segments", "half of the text",
            "single, two, time", "not told", "recall", "general", "text loss",
            "making"]  # fmt: skip
    found, rows = json.loads((folder / "understand.json").read_text()), []
    for line in found["lines"]:
        none, half = line["none"], _percent(line["half"]["right"]["mean"])
        if "whole" in line:
            half += f" (all of it: {_percent(line['whole']['right']['mean'])})"
        gain = line.get("gain", {}).get("none")
        rows.append(
            [
                line["line"],
                str(line["runs"]),
                _with_band(none["right"], "{:.0f}"),
                _percent(none["exchanged"]["mean"]),
                f"{none['f1']['mean']:.2f}",
                _with_band(gain, "{:+.0f}") if gain else "",
                half,
                ", ".join(_percent(none[kind]["mean"]) for kind in ("single", "two", "timeline")),
                _percent(none["unanswerable"]["mean"]),
                _percent(line["recall"]),
                f"{line['general']:.1f} of 20",
                f"{line['text']:.2f}",
                f"{line['making']:.0f} s" if "making" in line else "",
            ]
        )
    return head, rows


def niah(folder: Path) -> Table:
    """Needles found by method and length."""
    groups = json.loads((folder / "niah.json").read_text())["groups"]
    lengths = sorted({group["key"][1] for group in groups})
    by_key = {tuple(group["key"]): group for group in groups}
    rows = [
        [method, *(_needles(by_key.get((method, length))) for length in lengths)]
        for method in dict.fromkeys(group["key"][0] for group in groups)
    ]
    return ["method", *(f"{length:,} tokens" for length in lengths)], rows


def loogle(folder: Path) -> Table:
    """Mean scores in percent of the tasks, by method."""
    groups = json.loads((folder / "loogle.json").read_text())["groups"]
    names = {"token_f1": "F1", "rouge_l_recall": "ROUGE-L recall", "contains": "contains",
             "exact_match": "exact match", "bleu_1": "BLEU-1"}  # fmt: skip
    rows = [
        [
            group["group"],
            group["method"],
            str(group["fit"]),
            *(_score(group["scores"].get(name)) for name in names),
        ]
        for group in groups
    ]
    return ["task", "method", "questions", *names.values()], rows


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def _with_band(found: dict, form: str) -> str:
    mean, low, high = (form.format(100 * found[name]) for name in ("mean", "low", "high"))
    return f"{mean} % ({low} to {high})"


def _needles(group: dict | None) -> str:
    if group is None:
        return ""
    fit = group["fit"]
    return f"{round(fit * group['scores']['contains'])} of {fit}" if fit else "does not fit"


def _score(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.1f}"
