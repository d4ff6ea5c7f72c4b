"""What a document costs against its length: LIFT is a straight line, in-context learning is not.

Each point is a process of its own, so that its peak memory is its own. Rows go into
bench/results/DEVICE/scaling.csv as they come, and what is there already is not measured again.
Lengths go up until the next would not fit the time or the memory; beyond the longest that was
measured the lines are extrapolated, drawn with dashes and named so.

    python -m bench scaling                 SmolLM2-135M on a CPU, the Llama-3-8B shape on a GPU
    python -m bench scaling --plot-only
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import json
import subprocess
import sys
import time
from pathlib import Path

import torch

from bench.common import RESULTS, Rows, results_name
from bench.scaling import report as scaling_report
from bench.scaling import run as scaling_run
from liftcore.config import SCHEDULES, LiftConfig
from liftcore.model import default_device

WAYS = (*SCHEDULES, "icl", "naive")
COLUMNS = ("model", "way", "tokens", "passes", "first_seconds", "question_seconds",
           "token_seconds", "peak_bytes", "oom", "config")  # fmt: skip
LENGTHS = {"cpu": [2**i for i in range(10, 16)], "cuda": [2**i for i in range(13, 21)]}
MODEL = {"cpu": "smollm2-135m", "cuda": "llama-3-8b"}


def config_for(device: torch.device) -> LiftConfig:
    if device.type == "cuda":
        return LiftConfig(segment_length=1024, learning_rate=3e-4, rank=128, epochs=8)
    return LiftConfig()


def read_rows(file: Path) -> list[dict]:
    """The rows of a CSV with numbers where numbers belong; a torn last line is left out."""
    if not file.exists():
        return []
    whole = file.read_text()
    lines = whole[: whole.rfind("\n") + 1].splitlines()
    rows = list(csv.DictReader(lines))
    for row in rows:
        row["tokens"], row["oom"] = int(row["tokens"]), row["oom"] == "True"
        for name in ("passes", "first_seconds", "question_seconds", "token_seconds", "peak_bytes"):
            row[name] = float(row[name]) if row[name] else None
    return rows


def point(way: str, tokens: int, args: argparse.Namespace, limit: float) -> dict:
    """One measurement in a child process; a child that is killed has run out of memory."""
    command = [sys.executable, "-m", "bench", "scaling", "--point", way, str(tokens)]
    command += ["--device", str(args.device), "--model", args.model]
    command += ["--memory-gib", str(args.memory_gib)] if args.memory_gib else []
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit)
    except subprocess.TimeoutExpired:
        return {}
    if done.returncode == -9:
        return {"oom": True}
    if done.returncode:
        raise SystemExit(f"{way}, {tokens} tokens:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def climb(args: argparse.Namespace, rows: Rows, known: dict, seconds: float) -> None:
    """Longer and longer documents for every way, the cheapest point first, until none that is
    left would fit `seconds`, or memory ends."""
    end = time.perf_counter() + seconds
    # (seconds that it will take at most, way, lengths still to do)
    waiting = [(0.0, way, list(args.lengths)) for way in args.only]
    while waiting:
        waiting.sort(key=lambda w: w[0])
        guess, way, lengths = waiting.pop(0)
        if not lengths:
            continue
        tokens, left = lengths.pop(0), end - time.perf_counter()
        measured, took = known.get((way, tokens)), 0.0
        if measured is None:
            if guess > left:
                print(f"{way}: {tokens:,} tokens would not fit the time", file=sys.stderr)
                continue
            begun = time.perf_counter()
            measured = point(way, tokens, args, max(left, 60.0))
            took = time.perf_counter() - begun
            if not measured:
                continue
            about = {"model": args.model, "way": way, "tokens": tokens}
            rows.add(**about, config=str(config_for(args.device)), **measured)
            shown = "out of memory" if measured["oom"] else f"{measured['first_seconds']:.2f} s"
            print(f"{way}, {tokens:,} tokens: {shown}", file=sys.stderr, flush=True)
        if measured["oom"]:
            continue
        waiting.append((_next(way, measured["first_seconds"], took), way, lengths))


def _next(way: str, first_seconds: float, took: float) -> float:
    """Seconds that twice the length will take at most: the start of the process and its
    questions are the same again."""
    return max(0.0, took - first_seconds) + (2 if way in SCHEDULES else 4) * first_seconds


def limit_memory(gib: float) -> None:
    """Lets this process have so much more memory than it has now (on Linux)."""
    import resource

    with contextlib.suppress(OSError, ValueError):
        held = int(Path("/proc/self/statm").read_text().split()[5]) * resource.getpagesize()
        allowed = held + int(gib * 2**30)
        resource.setrlimit(resource.RLIMIT_DATA, (allowed, allowed))


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench scaling",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--device", type=torch.device, default=torch.device(default_device()))
    parser.add_argument("--model", help="a name or folder; llama-3-8b is the shape alone")
    parser.add_argument("--lengths", type=int, nargs="+", help="tokens")
    parser.add_argument("--only", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--minutes", type=float, default=10.0, help="for all that is measured")
    parser.add_argument("--memory-gib", type=float, help="memory a point may take on a CPU")
    parser.add_argument("--out", type=Path, help="folder of the results")
    parser.add_argument("--fresh", action="store_true", help="measure again what is there")
    parser.add_argument("--plot-only", action="store_true", help="redraw from the CSV")
    parser.add_argument("--point", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    asked = args.model
    args.model = args.model or MODEL[args.device.type]
    args.lengths = sorted(args.lengths or LENGTHS[args.device.type])
    if args.point:
        model = scaling_run.load(args.model, args.device)
        if args.memory_gib and args.device.type == "cpu":
            limit_memory(args.memory_gib)
        way, tokens = args.point[0], int(args.point[1])
        print(json.dumps(scaling_run.measure(way, model, tokens, config_for(args.device))))
        return 0
    folder = args.out or RESULTS / results_name(args.device)
    file = folder / "scaling.csv"
    if not args.plot_only:
        before = [] if args.fresh else read_rows(file)
        rows = Rows(file, args.device, COLUMNS)
        for row in before:
            rows.writer.writerow({k: v for k, v in row.items() if v is not None})
        rows.file.flush()
        known = {(r["way"], r["tokens"]): r for r in before if r["model"] == args.model}
        climb(args, rows, known, 60 * args.minutes)
        rows.file.close()
    scaling_report.report(read_rows(file), folder, asked if args.plot_only else args.model)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
