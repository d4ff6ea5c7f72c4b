"""The demo, several times over, each a process of its own.

Every run and its figures go into bench/results/DEVICE/demo.json.

    python -m bench demo                   the document of `make demo`, twice, and two others
    python -m bench demo --seeds 0 0 0 --tokens 1000
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

from bench.common import RESULTS, results_name, table
from liftcore.model import default_device

SEEDS = (0, 0, 1, 2)


def run(seed: int, tokens: int) -> dict:
    """What `liftcore demo --json` says."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "liftcore", "demo", "--json", "--seed", str(seed)]
        command += ["--tokens", str(tokens)]
        done = subprocess.run(
            [*command, "--out", str(Path(folder) / "memory")], capture_output=True, text=True
        )
    if done.returncode:
        raise SystemExit(done.stderr)
    return {"seed": seed, **json.loads(done.stdout.splitlines()[-1])}


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench demo",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS, help="a document each")
    parser.add_argument(
        "--tokens", type=int, default=2000, help="length of the documents (%(default)s)"
    )
    parser.add_argument("--out", type=Path, help="folder of the results")
    args = parser.parse_args(argv)
    folder = args.out or RESULTS / results_name(torch.device(default_device()))
    folder.mkdir(parents=True, exist_ok=True)
    runs = []
    for seed in args.seeds:
        figures = run(seed, args.tokens)
        runs.append({k: v for k, v in figures.items() if k != "adapter"})
        result = {"command": " ".join(["python -m bench demo", *argv]), "runs": runs}
        (folder / "demo.json").write_text(json.dumps(result, indent=1) + "\n")
    rows = [
        (str(r["seed"]), f"{r['recall_before']:.1%} to {r['recall_after']:.1%}",
         f"{r['facts_before']} to {r['facts_after']} of {r['facts']}",
         f"{r['training_seconds']:.0f} s", f"{r['seconds']:.0f} s")
        for r in runs
    ]  # fmt: skip
    print(table([("seed", "recall", "facts", "training", "whole"), *rows]))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
