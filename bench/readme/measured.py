"""The first table of docs/measurements.md: what was measured, row by row, from result files."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterator
from pathlib import Path

Row = tuple[str, str, str]


def rows(folder: Path) -> list[Row]:
    """(what, figure, command) of every result file that is there."""
    parts = {
        "demo.json": demo,
        "step.csv": step,
        "dropin.csv": dropin,
        "estimate.json": estimate,
        "kernels.csv": head,
    }
    return [row for name, part in parts.items() if (folder / name).exists()
            for row in part(folder / name)]  # fmt: skip


def demo(file: Path) -> Iterator[Row]:
    """Recall, facts and seconds of the demo's document, then of the others."""
    result = json.loads(file.read_text())
    command, runs = f"`{result['command']}`", result["runs"]
    first = [r for r in runs if r["seed"] == runs[0]["seed"]]
    yield (
        f"the document of `make demo` ({first[0]['tokens']:,} tokens, {len(first)} runs): greedy "
        "recall before and after",
        f"{_range(first, 'recall_before', 100, 1)} % and {_range(first, 'recall_after', 100, 1)} %",
        command,
    )
    yield (
        "facts completed exactly, before and after",
        f"{_range(first, 'facts_before')} and {_range(first, 'facts_after')} of "
        f"{first[0]['facts']}",
        "the same",
    )
    yield (
        f"training ({first[0]['token_passes']:,} token-passes)",
        f"{_range(first, 'training_seconds')} s",
        "the same",
    )
    yield "the whole demo, environment ready", f"{_range(first, 'seconds')} s", "the same"
    for other in [r for r in runs if r["seed"] != runs[0]["seed"]]:
        yield (
            f"another document (seed {other['seed']}): recall and facts after",
            f"{other['recall_after']:.1%}".replace("%", " %")
            + f"; {other['facts_after']} of {other['facts']}",
            "the same",
        )


def step(file: Path) -> Iterator[Row]:
    """A training step of every variant, and liftcore against it."""
    command = None
    for r in _csv(file):
        if not r["tokens_per_second"]:
            continue
        layers = "" if r["layers"] in ("", "30") else f", {r['layers']} layer"
        what = f"{r['model']}{layers}, rank {r['rank']}, a step of {r['tokens']} tokens: "
        figure = f"{_speed(r)}, peak {float(r['peak_gib']):.1f} GiB"
        if r["liftcore_speedup"]:
            figure += f"; liftcore is {float(r['liftcore_speedup']):.2f} times as fast"
        elif r["floor_share"]:
            figure += f"; {float(r['floor_share']):.0%} of the floor's speed".replace("%", " %")
        before, command = command, _command(r)
        yield what + r["variant"], figure, "the same" if command == before else command


def dropin(file: Path) -> Iterator[Row]:
    """Trainer with PEFT, as it is and accelerated."""
    plain, fast = _csv(file)[:2]
    yield (
        f"{plain['variant']}, rank {plain['rank']}; the same with `liftcore.accelerate`",
        f"{_speed(plain)}; {_speed(fast)}: {float(plain['liftcore_speedup']):.2f} times as fast, "
        f"losses at most {float(plain['loss_difference']):.3f} apart",
        _command(plain),
    )
    yield (
        "peak memory of these two",
        f"{float(plain['peak_gib']):.1f} and {float(fast['peak_gib']):.1f} GiB",
        "the same",
    )


def estimate(file: Path) -> Iterator[Row]:
    result = json.loads(file.read_text())
    worst = f"{result['largest_error']:.0%}".replace("%", " %")
    yield (
        f"`liftcore estimate` against the truth, {len(result['cases'])} cases",
        f"at most {worst} off, in seconds and in memory",
        f"`{result['command']}`",
    )


def head(file: Path) -> Iterator[Row]:
    """The head loss at the largest size that was measured, by the share of masked rows."""
    timed = [r for r in _csv(file) if r["op"] == "head" and r["correct"] == "True"]
    most = max((int(r["tokens"]) for r in timed), default=0)
    timed = [r for r in timed if int(r["tokens"]) == most]
    for masked in sorted({r["masked"] for r in timed}, key=float):
        of = {r["variant"]: float(r["milliseconds"]) for r in timed if r["masked"] == masked}
        names = {"ours, rows known": "ours", "plain torch": "plain torch",
                 "torch op": "`F.linear_cross_entropy`"}  # fmt: skip
        share = f"{float(masked):.1%}".replace("%", " %")
        yield (
            f"head loss and its gradient, {timed[0]['model']}, {most} tokens, {share} masked: "
            + ", ".join(text for name, text in names.items() if name in of),
            ", ".join(f"{of[name]:.0f}" for name in names if name in of) + " ms",
            _command(timed[0]),
        )


def _speed(row: dict) -> str:
    slow, fast = float(row["slowest"]), float(row["fastest"])
    return f"{float(row['tokens_per_second']):.0f} tokens/s ({slow:.0f} to {fast:.0f})"


def _range(runs: list[dict], name: str, scale: float = 1, digits: int = 0) -> str:
    """The values of some runs, shortest form: "46" or "46 to 59"."""
    texts = [f"{scale * v:.{digits}f}" for v in (min(r[name] for r in runs),
                                                  max(r[name] for r in runs))]  # fmt: skip
    return " to ".join(dict.fromkeys(texts))


def _command(row: dict) -> str:
    """What to type for the same figures."""
    return f"`{re.sub(r' --append| --out [^ ]+', '', row['command'])}`"


def _csv(file: Path) -> list[dict]:
    with file.open(newline="") as lines:
        return list(csv.DictReader(lines))
