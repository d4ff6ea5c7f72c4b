"""From the rows of the recall benchmark to curves, times to 90 % recall, and their price."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable

import numpy as np

from bench.recall.probes import ENOUGH

TARGET = 0.9
RESAMPLES = 2000
GRID = np.arange(0.0, 12.01, 0.25)  # passes over the document
BASE = "jitter/all"
FEW_RUNS = 3  # with fewer runs a bootstrap band would be mere pretence


def by_setting(rows: list[dict]) -> dict[str, list[dict]]:
    groups = defaultdict(list)
    for row in rows:
        groups[row["setting"]].append(row)
    return dict(groups)


def recall_at(row: dict, grid: np.ndarray = GRID) -> np.ndarray:
    """Recall after `grid` passes over the document, linear between the points of the curve.

    A run that was stopped because it recalled enough keeps its last recall; one that was not is
    NaN beyond its end.
    """
    x = [0.0] + [p["passes"] / row["tokens"] for p in row["curve"]]
    y = [row["before"]["recall"]] + [p["recall"] for p in row["curve"]]
    kept = y[-1] if y[-1] >= ENOUGH else np.nan
    return np.interp(grid, x, y, right=kept)


def passes_to(row: dict, target: float = TARGET) -> float:
    """Passes over the document at which recall first reaches the target; inf when it never does."""
    x, y = 0.0, row["before"]["recall"]
    if row["config"]["lr_schedule"] == "cosine":
        # Its rate depends on where it ends, so that there is nothing between its points.
        end = row["curve"][-1]
        return end["passes"] / row["tokens"] if end["recall"] >= target else float("inf")
    for p in row["curve"]:
        next_x, next_y = p["passes"] / row["tokens"], p["recall"]
        if next_y >= target:
            return x + (next_x - x) * max(0.0, target - y) / (next_y - y)
        x, y = next_x, next_y
    return float("inf")


def resample(rows: list[dict], rng: np.random.Generator) -> list[int]:
    """Indices of one bootstrap sample: documents drawn first, then the runs of each."""
    groups = defaultdict(list)
    for i, row in enumerate(rows):
        groups[row["document"]].append(i)
    drawn = rng.choice(sorted(groups), size=len(groups))
    return [i for d in drawn for i in rng.choice(groups[d], size=len(groups[d]))]


def bootstrap(
    rows: list[dict], values: np.ndarray, statistic: Callable = np.mean
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(statistic, low, high) over the first axis of `values` [rows, ...]: a 95 % band over
    documents and seeds."""
    rng = np.random.default_rng(0)
    draws = [statistic(values[resample(rows, rng)], axis=0) for _ in range(RESAMPLES)]
    # Between two infinities the percentiles of numpy are NaN; "nearest" never leaves the draws.
    low, high = np.percentile(draws, [2.5, 97.5], axis=0, method="nearest")
    return statistic(values, axis=0), low, high


def curve(rows: list[dict]) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """(passes, mean recall, low, high) of one setting, as far as all its runs go."""
    values = np.stack([recall_at(r) for r in rows])
    known = ~np.isnan(values).any(0)
    mean, low, high = bootstrap(rows, values[:, known])
    return GRID[known], mean, low, high


def paired(rows: list[dict], others: list[dict]) -> tuple[list[dict], list[dict]]:
    """The runs of two settings on the same documents and seeds, side by side."""
    there = {(r["document"], r["seed"]): r for r in others}
    both = [r for r in rows if (r["document"], r["seed"]) in there]
    return both, [there[r["document"], r["seed"]] for r in both]


def summary(rows: list[dict], rates: dict[str, float]) -> list[dict]:
    """One line a setting, the soonest first; `rates` are tokens/s measured alone.

    Without a rate the seconds are those of the processor, taken during the sweep.
    """
    settings = []
    for name, group in by_setting(rows).items():
        needed = np.array([passes_to(r) for r in group])
        middle, low, high = bootstrap(group, needed, np.median)
        tokens = np.mean([r["tokens"] for r in group])
        rate = rates.get(name)
        per_pass = tokens / (rate or _cpu_rate(group))
        last = [r["curve"][-1] for r in group]
        facts = [r for r in group if r["facts"]]
        settings.append(
            {
                "setting": name,
                "line": group[0]["line"],
                "runs": len(group),
                "documents": len({r["document"] for r in group}),
                "seeds": len({r["seed"] for r in group}),
                "reached": int(np.isfinite(needed).sum()),
                "passes_to_90": _number(middle),
                "passes_low": _number(low),
                "passes_high": _number(high),
                "tokens_per_second": round(tokens / per_pass, 1),
                "seconds_a_pass": round(per_pass, 4),
                "timed": "alone" if rate else "CPU time of the sweep",
                "seconds_to_90": _number(middle * per_pass),
                "recall_last": round(float(np.mean([p["recall"] for p in last])), 4),
                "recall_worst": round(min(p["recall"] for p in last), 4),
                "passes_last": round(float(np.mean([p["passes"] for p in last]) / tokens), 2),
                "facts": _share(facts, "facts_after", "facts"),
                "questions": _share(
                    [r for r in facts if "questions" in r], "questions_after", "questions"
                ),
                "text_loss": _gain(group, "text"),
                "chat_loss": _gain(group, "chat"),
            }
        )
    return sorted(settings, key=lambda s: (s["passes_to_90"] is None, s["seconds_to_90"] or 0.0))


def front(settings: list[dict]) -> list[str]:
    """The settings that no other beats both in seconds to 90 % recall and in chat ability kept."""
    ready = [s for s in settings if s["seconds_to_90"] is not None]
    return [
        s["setting"]
        for s in ready
        if not any(
            o["seconds_to_90"] <= s["seconds_to_90"]
            and o["chat_loss"] <= s["chat_loss"]
            and o is not s
            and (o["seconds_to_90"], o["chat_loss"]) != (s["seconds_to_90"], s["chat_loss"])
            for o in ready
        )
    ]


def _cpu_rate(rows: list[dict]) -> float:
    last = [r["curve"][-1] for r in rows]
    return sum(p["passes"] for p in last) / max(1e-9, sum(p["cpu_seconds"] for p in last))


def _share(rows: list[dict], part: str, whole: str) -> float | None:
    if not rows:
        return None
    return round(sum(r[part] for r in rows) / sum(r[whole] for r in rows), 4)


def _gain(rows: list[dict], kind: str) -> float:
    return round(float(np.mean([r["after"][kind] - r["before"][kind] for r in rows])), 4)


def _number(x: float | np.ndarray) -> float | None:
    return round(float(x), 3) if np.isfinite(x) else None
