"""What the rows of the recall benchmark say run against run: findings, and the official recipe."""

from __future__ import annotations

import dataclasses

import numpy as np

from bench.recall.analysis import BASE, TARGET, bootstrap, by_setting, paired, passes_to, recall_at
from liftcore import segments
from liftcore.config import LiftConfig

AT = (5, 7, 9)
SCORED_AT = (4,)  # overlap/new ends a little later
ENOUGH_DOCUMENTS = 3
ENOUGH_RUNS = 4
DEFAULT = "cosine 12 epochs, batch 2, rank 64"  # LiftConfig()
EXPECTED = {
    "jitter beats overlap": (BASE, "overlap/all"),
    "jitter beats fixed cuts": (BASE, "trivial/all"),
    "overlap beats fixed cuts": ("overlap/all", "trivial/all"),
    "all tokens beat new ones": ("overlap/all", "overlap/new"),
    "equal weights change overlap": ("overlap/all", "overlap/mean"),
}
# In equal token-passes "new" scores fewer tokens, so that the two are compared twice.
SCORED = {"all tokens beat new ones, per scored token": ("overlap/all", "overlap/new")}


def scored_share(row: dict) -> float:
    """Scored tokens a token-pass in the first epoch of a run: 1 but for overlap_loss "new"."""
    known = {f.name for f in dataclasses.fields(LiftConfig)}
    config = LiftConfig(**{k: v for k, v in row["config"].items() if k in known})
    cut = segments.cut(row["tokens"], config)
    return sum(int((w > 0).sum()) for w in cut.weights) / cut.tokens


def findings(rows: list[dict]) -> dict:
    """Whether overlap helps through short left contexts, and whether jitter gives them for less.

    Each finding compares two settings after the same number of token-passes, three times, or
    after the same number of scored tokens ("scored"). A comparison is confirmed when its whole
    95 % band lies on the side that was expected, refuted when it lies on the other, and open
    otherwise or with fewer than three documents.
    """
    groups = by_setting(rows)
    parts = {}
    for name, (better, worse) in {**EXPECTED, **SCORED}.items():
        if better not in groups or worse not in groups:
            continue
        scored = name in SCORED
        compared = [
            compare(groups[better], groups[worse], at, scored)
            for at in (SCORED_AT if scored else AT)
        ]
        if any(compared):
            parts[name] = [{**f, "verdict": _verdict(f)} for f in compared if f]
    return parts


def compare(rows: list[dict], others: list[dict], at: float, scored: bool = False) -> dict | None:
    """How much more `rows` recall than `others` after `at` passes, run by run; with `scored`
    after each token of the document was scored `at` times. Runs that end before are left out."""
    a, b = paired(rows, others)
    difference = np.array([_recall(x, at, scored) - _recall(y, at, scored)
                           for x, y in zip(a, b, strict=True)])  # fmt: skip
    reach = np.isfinite(difference)
    a, difference = [r for r, there in zip(a, reach, strict=True) if there], difference[reach]
    if not a:
        return None
    mean, low, high = bootstrap(a, difference)
    return {
        "passes": at,
        "scored": scored,
        "pairs": len(a),
        "documents": len({r["document"] for r in a}),
        "difference": round(float(mean), 4),
        "low": round(float(low), 4),
        "high": round(float(high), 4),
        "better": int((difference > 0).sum()),
        "worse": int((difference < 0).sum()),
    }


def _recall(row: dict, at: float, scored: bool) -> float:
    passes = at / scored_share(row) if scored else at
    return recall_at(row, np.array([float(passes)]))[0]


def _verdict(finding: dict) -> str:
    if finding["documents"] < ENOUGH_DOCUMENTS:
        return "open"
    return "confirmed" if finding["low"] > 0 else "refuted" if finding["high"] < 0 else "open"


def against(rows: list[dict], settings: list[dict], line: str) -> list[dict]:
    """Seconds to 90 % recall of the settings of a line over those of liftcore: of its base
    setting, of the library's defaults, and of the soonest one that has enough runs.

    Each ratio is the median over pairs of runs on the same document and seed. A run of the line
    that never arrives took longer than it was ("more than"); one of liftcore that never arrives
    counts as a ratio of 0, and a pair where neither does says nothing.
    """
    groups = by_setting(rows)
    a_pass = {s["setting"]: s["seconds_a_pass"] for s in settings}
    ready = [s["setting"] for s in settings if s["line"] != line and s["passes_to_90"] is not None
             and s["runs"] >= ENOUGH_RUNS]  # fmt: skip
    bases = dict.fromkeys([n for n in (BASE, DEFAULT) if n in groups] + ready[:1])
    compared_runs = []
    for name in (s["setting"] for s in settings if s["line"] == line):
        for base in bases:
            ratios, bounds = [], 0
            for theirs, ours in zip(*paired(groups[name], groups[base]), strict=True):
                needed, own = passes_to(theirs), passes_to(ours)
                if np.isinf(needed) and np.isinf(own):
                    continue
                bounds += bool(np.isinf(needed))
                if np.isinf(needed):
                    needed = theirs["curve"][-1]["passes"] / theirs["tokens"]
                ratios.append(needed * a_pass[name] / (own * a_pass[base]))
            if ratios:
                ratio, n = float(np.median(ratios)), len(ratios)
                compared_runs.append(
                    {
                        "setting": name,
                        "base": base,
                        "ratio": round(ratio, 2),
                        "pairs": n,
                        "reached": not bounds,
                        "text": f"{name}: {'more than ' if bounds else ''}{ratio:.1f} times the "
                        f"seconds of {base} to {TARGET:.0%} recall "
                        f"({f'median of {n} pairs' if n > 1 else '1 pair'} of runs)",
                    }
                )
    return compared_runs
