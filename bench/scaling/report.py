"""The scaling benchmark's rows as fits, crossings, a short table, a JSON file and a picture."""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

from bench.common import table
from bench.scaling import fit as scaling_fit
from bench.scaling.fit import EPOCHS, Line, constant, crossing, fit

QUESTIONS = (0, 1, 10, 100)  # 0: the first token of the first answer
FLAT = 0.02
FORMS = ("constant: the median", "straight line", "parabola")


def lines_of(rows: list[dict]) -> dict[str, Line]:
    """The lines of each way, with their fits where enough points were measured."""
    lines = {}
    for way in dict.fromkeys(r["way"] for r in rows):
        ran = sorted((r for r in rows if r["way"] == way and not r["oom"]), key=_tokens)
        ended = [r["tokens"] for r in rows if r["way"] == way and r["oom"]]
        line = Line(way, ran, min(ended, default=None), lengths=[r["tokens"] for r in ran])
        lines[way] = line
        degree = 1 if line.is_lift else 2
        if len(ran) <= degree:
            continue
        line.first = fit(line.lengths, [r["first_seconds"] for r in ran], degree)
        if line.is_lift:
            # A step's memory does not know the document's length: what differs is noise.
            line.memory = constant(_median(ran, "peak_bytes"))
            # Nothing of the document is in the prompt: the length cannot matter.
            line.question = constant(_median(ran, "question_seconds"))
            line.token = constant(_median(ran, "token_seconds"))
        else:
            line.memory = fit(line.lengths, [r["peak_bytes"] for r in ran], 1)
        if way == "icl":
            line.question = fit(line.lengths, [r["question_seconds"] for r in ran], 1)
            line.token = fit(line.lengths, [r["token_seconds"] for r in ran], 1)
    return lines


def memory_ends(lines: dict[str, Line], memory: float) -> list[str]:
    """At which length each way runs out of so many bytes, by a straight line through its peaks; in
    a line each."""
    told = []
    for way, line in lines.items():
        peaks = [row["peak_bytes"] for row in line.rows]
        if line.oom is not None:
            told.append(f"{way}: out of memory at {line.oom:,} tokens")
        elif len(peaks) < 2:
            told.append(f"{way}: too few lengths to say where memory ends")
        else:
            start, slope = fit(line.lengths, peaks, 1).coefficients
            seen = f"{way}: {peaks[0] / 2**30:.1f} GiB at {line.lengths[0]:,} tokens, "
            seen += f"{peaks[-1] / 2**30:.1f} at {line.lengths[-1]:,}"
            # What differs by less between the shortest and the longest is noise.
            if slope * (line.lengths[-1] - line.lengths[0]) < FLAT * peaks[0]:
                told.append(f"{seen}: memory does not grow with the document")
            else:
                ends = round((memory - start) / slope, -3)
                told.append(f"{seen}: by that line out of memory at about {ends:,.0f}")
    return told


def crossings(lines: dict[str, Line]) -> list[dict]:
    """For each LIFT line, epochs and number of questions: the length beyond which it is cheaper
    than honest in-context learning."""
    icl = lines.get("icl")
    if icl is None or icl.first is None:
        return []
    crossed = []
    for line in lines.values():
        if not line.is_lift or line.first is None:
            continue
        for epochs in EPOCHS:
            for questions in QUESTIONS:
                ours = line.cost(questions, epochs)
                theirs = icl.cost(questions)
                at = crossing(ours, theirs)
                lengths = [n for n in line.lengths if n in icl.lengths]
                measured = at is not None and any(n <= at for n in lengths) and at <= max(lengths)
                crossed.append(
                    {
                        "schedule": line.way,
                        "epochs": epochs,
                        "questions": questions,
                        "tokens": None if at is None else round(at),
                        "within_measured_lengths": measured and epochs == 1,
                    }
                )
    return crossed


def report(rows: list[dict], folder: Path, model: str | None = None) -> dict:
    """Prints the table, writes scaling.json and scaling.png, of one model: that of the last row
    where none is named. Raises SystemExit without rows."""
    model = model or (rows[-1]["model"] if rows else None)
    rows = [r for r in rows if r["model"] == model]
    if not rows:
        of = f" of {model}" if model else ""
        file = folder / "scaling.csv"
        raise SystemExit(f"no rows{of} in {file}: run python -m bench scaling first")
    lines = lines_of(rows)
    crossed = crossings(lines)
    result = {
        "command": "python -m bench scaling",
        "device": rows[0]["device"],
        "versions": rows[0]["versions"],
        "model": rows[0]["model"],
        "config": rows[0]["config"],
        "answer_tokens": scaling_fit.ANSWER,
        "question_tokens": 32,
        "lines": {w: _described(line) for w, line in lines.items()},
        "crossings": crossed,
    }
    (folder / "scaling.json").write_text(json.dumps(result, indent=1) + "\n")
    print(_table(lines, crossed))
    try:
        from bench.scaling import plot as scaling_plot
    except ImportError:
        print("no picture: matplotlib is not installed")
    else:
        print(scaling_plot.plot(rows, lines, crossed, folder / "scaling.png"))
    return result


def _described(line: Line) -> dict:
    about: dict[str, Any] = {"measured": line.lengths, "out_of_memory_at": line.oom}
    for name in ("first", "question", "token", "memory"):
        fitted = getattr(line, name)
        if fitted is not None:
            about[name] = {"form": FORMS[fitted.degree], "coefficients": fitted.coefficients}
            if fitted.degree:
                about[name]["r2"] = round(fitted.r2, 6)
    if line.rows:
        peaks = [r["peak_bytes"] for r in line.rows]
        about["peak_bytes"] = {"shortest": peaks[0], "longest": peaks[-1], "most": max(peaks)}
    return about


def _table(lines: dict[str, Line], crossed: list[dict]) -> str:
    """A line each: the fit, its R², memory, and where it crosses honest in-context learning."""
    head = ["way", "seconds for n thousand tokens", "R2", "longest", "peak GiB", "first token",
            "Q=1", "Q=10", "Q=100"]  # fmt: skip
    out = [head]
    for way, line in lines.items():
        fitted = line.first
        terms = fitted.coefficients if fitted else ()
        text = " + ".join(
            f"{c * 1000**i:.3g}{('', ' n', ' n²')[i]}" for i, c in enumerate(terms)
        ).replace("+ -", "- ")
        peaks = [r["peak_bytes"] / 2**30 for r in line.rows]
        longest = f"{line.lengths[-1]:,}" if line.lengths else "none"
        out.append(
            [
                f"LIFT {way}, 1 epoch" if line.is_lift else way,
                text or "too few points",
                f"{fitted.r2:.5f}" if fitted else "-",
                longest + (f" (no memory at {line.oom:,})" if line.oom else ""),
                f"{peaks[0]:.1f} to {peaks[-1]:.1f}" if peaks else "-",
                *(_crossing_text(way, questions, crossed) for questions in QUESTIONS),
            ]
        )
    return (
        table(out)
        + f"\nright: the tokens beyond which {' / '.join(map(str, EPOCHS))} epochs of LIFT are "
        "cheaper than ICL (icl: flash\nattention, last-token logits, KV cache); Q questions with "
        "answers of 32 tokens each"
    )


def _crossing_text(way: str, questions: int, crossed: list[dict]) -> str:
    """The crossings at one epoch and at the default number of them."""
    at = {c["epochs"]: c["tokens"] for c in crossed
          if (c["schedule"], c["questions"]) == (way, questions)}  # fmt: skip
    return " / ".join("never" if n is None else f"{n:,}" for n in at.values()) or "-"


def _tokens(row: dict) -> int:
    return row["tokens"]


def _median(rows: list[dict], name: str) -> float:
    return statistics.median(r[name] for r in rows)
