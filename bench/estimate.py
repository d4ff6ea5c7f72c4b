"""liftcore estimate against the truth: each is a process of its own, one after the other.

python -m bench estimate --device cpu
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

import torch

from bench.common import RESULTS, command_result, results_name
from liftcore.cli import info
from liftcore.device_memory import gib
from liftcore.fiction.documents import fictional_document

CASES = (
    (800, ["--epochs", "6"]),
    (1550, []),
    (3000, ["--segment-length", "256", "--rank", "32", "--epochs", "4"]),
    (1550, ["--schedule", "overlap", "--overlap-loss", "new", "--epochs", "3", "--rank", "128"]),
)


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench estimate", description=__doc__)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--out", type=Path, help="folder of the results")
    args = parser.parse_args(argv)
    print(f"python -m bench estimate {' '.join(argv)}".rstrip())
    versions = info.versions()
    print(f"{args.device}, torch {versions['torch']}, transformers {versions['transformers']}")
    print(f"{'words':>6} {'settings':44} {'seconds: estimate, truth, ratio':>32} {'memory':>26}")
    results, worst = [], 0.0
    for words, options in CASES:
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "document.txt"
            file.write_text(fictional_document(1, words).text)
            common = [str(file), "--device", args.device, *options]
            guess = command_result("estimate", *common)
            truth = command_result("absorb", *common, "--out", str(Path(folder) / "memory"))
        time_ratio = guess["seconds"] / truth["total_seconds"]
        memory_ratio = guess["peak_bytes"] / truth["peak_bytes"]
        worst = max(worst, abs(time_ratio - 1), abs(memory_ratio - 1))
        seconds = f"{guess['seconds']:.1f}, {truth['total_seconds']:.1f}, {time_ratio:.2f}"
        memory = f"{gib(guess['peak_bytes'])}, {gib(truth['peak_bytes'])}, {memory_ratio:.2f}"
        print(f"{words:>6} {' '.join(options) or 'defaults':44} {seconds:>32} {memory:>26}")
        results.append({"words": words, "options": options, "estimate": guess, "truth": truth})
    print(f"largest error {worst:.0%} (25 % is allowed)")
    folder = args.out or RESULTS / results_name(torch.device(args.device))
    folder.mkdir(parents=True, exist_ok=True)
    about = {"command": " ".join(["python -m bench estimate", *argv]), "largest_error": worst}
    (folder / "estimate.json").write_text(json.dumps({**about, "cases": results}, indent=1) + "\n")
    if args.json:
        print(json.dumps(results))
    return 0 if worst <= 0.25 else 1
