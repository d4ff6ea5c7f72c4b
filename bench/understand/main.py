"""Which mix of objectives lets a model answer questions about a document, for equal work?

Each case trains on one invented document for the same work (bench/understand/train.py: so many
seconds a step and a token, whatever the machine) and is then asked what stands there in other
words, with no document in the prompt, with half of it (LIFT+ICL), and with the passages that hold
most of the question's words (LIFT+RAG). The rows go into bench/results/DEVICE/understand.jsonl as
they come; a killed run goes on where it was. The table and the picture are made from that file.

    python -m bench understand
    python -m bench understand --plot-only
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from bench import sweep as sweeps
from bench.common import RESULTS, read_lines, results_name, table
from bench.understand import analysis
from bench.understand import documents as understand_documents
from bench.understand import run as understand_run
from bench.understand.general import GENERAL
from bench.understand.lines import LINES, Case, cases
from liftcore import model as models
from liftcore.cli import info

SECONDS = 30.0
NAME = "understand"


def sweep(
    file: Path,
    todo: list[Case],
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    seconds: float,
    minutes: float = float("inf"),
) -> None:
    """Runs the cases that are not in the file yet, which must be of as much work."""
    rows = read_lines(file)
    if any(r.get("general_of") != len(GENERAL) for r in rows):
        raise SystemExit(f"{file} holds runs of an earlier benchmark: give another --out")
    if other := {r["allowed"] for r in rows} - {seconds}:
        raise SystemExit(
            f"{file} holds runs of {other.pop():g} seconds, not {seconds:g}: give another --out"
        )
    machine = {
        "allowed": seconds,
        "device": info.device_name(next(model.parameters()).device),
        "versions": info.versions(),
    }

    def one(case: Case) -> tuple[dict, str]:
        told = understand_documents.read(case.document, tokenizer)
        row = understand_run.run(case, model, tokenizer, told, seconds)
        right = analysis.share(row, "none", analysis.ANSWERABLE)
        return {**row, **machine}, f"{right:.1%} right"

    sweeps.run(file, todo, one, minutes)


def report(folder: Path) -> dict:
    """A table on the terminal, understand.json and understand.png, from the rows in the folder."""
    rows = read_lines(folder / f"{NAME}.jsonl")
    if not rows:
        raise SystemExit(f"no rows in {folder / NAME}.jsonl: run python -m bench {NAME} first")
    lines = analysis.summary(rows)
    result = {
        "command": f"python -m bench {NAME}",
        "rows": len(rows),
        "documents": sorted({r["document"] for r in rows}),
        "seeds": sorted({r["seed"] for r in rows}),
        "questions": _questions(rows),
        "seconds": rows[-1]["allowed"],
        "shown": understand_run.SHOWN,
        "device": rows[-1]["device"],
        "versions": rows[-1]["versions"],
        "lines": lines,
    }
    (folder / f"{NAME}.json").write_text(json.dumps(result, indent=1) + "\n")
    print(text(result))
    try:
        from bench.understand import plot as understand_plot
    except ImportError:
        print("no picture: matplotlib is not installed")
    else:
        print(understand_plot.plot(result, folder / f"{NAME}.png"))
    return result


def _questions(rows: list[dict]) -> dict[str, int]:
    """How many questions of each kind the documents have together."""
    of_document = {r["document"]: r["kinds"] for r in rows}
    kinds = [kind for kinds_asked in of_document.values() for kind in kinds_asked]
    return {kind: kinds.count(kind) for kind in analysis.KINDS}


def text(result: dict) -> str:
    """The table of the summary."""
    head = ["line", "runs", "right", "95 % band", "F1", "single", "two", "timeline",
            "not told", "gain over segments", "with half of it", "with passages", "seconds",
            "making", "recall", "general", "text loss", "chat loss"]  # fmt: skip
    lines = [head, *map(_cells, result["lines"])]
    counts = ", ".join(f"{n} {kind}" for kind, n in result["questions"].items())
    return (
        f"{counts} questions on {len(result['documents'])} documents; "
        f"{result['seconds']:g} seconds of work\n{table(lines)}\n"
    )


def _cells(line: dict) -> list[str]:
    none = line["none"]

    def percent(answers: dict, kind: str) -> str:
        return f"{answers[kind]['mean']:.0%}" if kind in answers else "-"

    gain = "-"
    if "gain" in line:
        g = line["gain"]["none"]
        gain = f"{g['mean']:+.0%} ({g['low']:+.0%} to {g['high']:+.0%})"
    trained = "seconds" in line
    return [
        line["line"],
        str(line["runs"]),
        percent(none, "right"),
        f"{none['right']['low']:.0%} to {none['right']['high']:.0%}",
        f"{none['f1']['mean']:.2f}",
        *(percent(none, kind) for kind in analysis.KINDS),
        gain,
        percent(line.get("half", {}), "right"),
        percent(line.get("passages", {}), "right"),
        f"{line['seconds']:.1f}" if trained else "-",
        f"{line['making']:.1f}" if trained else "-",
        f"{line['recall']:.0%}",
        f"{line['general']:.1f}/{line['general_of']}",
        f"{line['text']:.2f}",
        f"{line['chat']:.2f}",
    ]


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog=f"python -m bench {NAME}",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    sweeps.options(parser, understand_documents.NAMES, f"lines to run: {', '.join(LINES)}")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="work of a case, in seconds")
    args = parser.parse_args(argv)
    if unknown := {*(args.only or ())} - {*LINES}:
        parser.error(f"unknown line {min(unknown)!r}: choose from {', '.join(LINES)}")
    device = torch.device(args.device or models.default_device())
    folder = args.out or RESULTS / results_name(device)
    if not args.plot_only:
        model, tokenizer = models.load(args.model, device=device)
        wanted = args.only or LINES
        todo = sweeps.share_of((c for c in cases() if c.line.name in wanted), args)
        options = dict(seconds=args.seconds, minutes=args.minutes)
        sweep(folder / f"{NAME}.jsonl", todo, model, tokenizer, **options)
    report(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
