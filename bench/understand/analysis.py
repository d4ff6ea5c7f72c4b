"""From the rows of the understanding benchmark to accuracies, bands and gains over segments."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import numpy as np

from bench.recall.analysis import bootstrap, paired
from bench.understand import documents as understand_documents
from bench.understand.answers import ANSWERABLE, CONTEXTS, KINDS, score
from bench.understand.lines import BARE, LINES, SEGMENTS


def share(row: dict, context: str, kinds: tuple[str, ...], what: str = "right") -> float:
    """Mean score of a row's questions of these kinds; NaN where there are none."""
    values = [v for k, v in zip(row["kinds"], row["answers"][context][what], strict=True)
              if k in kinds]  # fmt: skip
    return float(np.mean(values)) if values else float("nan")


def exchanged(row: dict) -> float:
    """The share right with no text, were the replies exchanged among the questions that the text
    answers: what it is worth to know the names and numbers of the document, but not which is asked
    for."""
    asked = understand_documents.asked(row["document"])
    known = [(q, r) for q, r in zip(asked, row["answers"]["none"]["replies"], strict=True)
             if q.kind in ANSWERABLE]  # fmt: skip
    pairs = [(q, r) for i, (q, _) in enumerate(known) for j, (_, r) in enumerate(known) if i != j]
    return float(np.mean([score(q, r)[0] for q, r in pairs]))


def by_line(rows: list[dict]) -> dict[str, list[dict]]:
    """The rows of each line, in the order of LINES; rows of unknown lines come last."""
    groups = defaultdict(list)
    for row in rows:
        groups[row["line"]].append(row)
    known = [n for n in LINES if n in groups]
    return {n: groups[n] for n in [*known, *(n for n in groups if n not in LINES)]}


def banded(rows: list[dict], values: list[float]) -> dict:
    """mean, low and high of one value a row; 95 % over documents and seeds."""
    mean, low, high = bootstrap(rows, np.array(values))
    band = {"mean": mean, "low": low, "high": high}
    return {name: round(float(value), 4) for name, value in band.items()}


def summary(rows: list[dict]) -> list[dict]:
    """One entry a line."""
    groups = by_line(rows)
    return [_line(name, group, groups) for name, group in groups.items()]


def _line(name: str, rows: list[dict], groups: dict[str, list[dict]]) -> dict:
    entry: dict[str, Any] = {
        "line": name,
        "runs": len(rows),
        "documents": len({r["document"] for r in rows}),
    }
    for context in CONTEXTS:
        # Rows of before have no passages.
        if all(context in row["answers"] for row in rows):
            entry[context] = _answers(rows, context)
    entry["none"]["exchanged"] = banded(rows, [exchanged(r) for r in rows])
    if name not in (BARE.name, SEGMENTS.name) and SEGMENTS.name in groups:
        both, others = paired(rows, groups[SEGMENTS.name])
        if both:
            asked = [c for c in ("none", "half") if c in entry]
            entry["gain"] = {c: _gain(both, others, c) for c in asked}
    entry["general_of"] = rows[0].get("general_of", 20)  # the rows of before asked 20
    for what in ("recall", "general", "text", "chat"):
        entry[what] = round(float(np.mean([r[what] for r in rows])), 4)
    if all("forgotten" in r for r in rows):
        entry["forgotten"] = round(float(np.mean([r["forgotten"] for r in rows])), 4)
        entry["kept"] = round(float(np.mean([r["training"]["kept"] for r in rows])), 4)
    if "training" in rows[0]:
        training = [r["training"] for r in rows]
        for what in ("seconds", "making", "steps", "epochs"):
            entry[what] = round(float(np.mean([t[what] for t in training])), 2)
        entry["slowest"] = max(t["seconds"] for t in training)
        entry["fastest"] = min(t["seconds"] for t in training)
        entry["samples"] = _mean_of_dicts([t["samples"] for t in training])
        entry["tokens"] = _mean_of_dicts([t["tokens"] for t in training])
    return entry


def _answers(rows: list[dict], context: str) -> dict:
    kinds = {k: [share(r, context, (k,)) for r in rows] for k in KINDS}
    return {
        "right": banded(rows, [share(r, context, ANSWERABLE) for r in rows]),
        "f1": banded(rows, [share(r, context, ANSWERABLE, "f1") for r in rows]),
        **{k: banded(rows, v) for k, v in kinds.items() if not np.isnan(v).any()},
    }


def _gain(both: list[dict], others: list[dict], context: str) -> dict:
    """Of the share of right answers over segments only, by pairs of document and seed."""
    differences = [
        share(a, context, ANSWERABLE) - share(b, context, ANSWERABLE)
        for a, b in zip(both, others, strict=True)
    ]
    better = sum(d > 0 for d in differences)
    return {**banded(both, differences), "better": better, "pairs": len(both)}


def _mean_of_dicts(dicts: list[dict]) -> dict:
    return {k: round(float(np.mean([d.get(k, 0) for d in dicts])), 1) for k in dicts[0]}
