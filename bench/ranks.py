"""absorb by several processes against one: tokens a second, and what the adapters differ by.

python -m bench ranks --device cpu

Each process has one thread. The loss of the last epoch must be the same to 1 %, or there is no
ratio. On GPUs each process has one.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

from bench.common import RESULTS, command_result
from liftcore.cli import info
from liftcore.fiction.documents import fictional_document

WORDS, EPOCHS = 750, 2
SETTINGS = ["--preset", "plain", "--learning-rate", "3e-4"]
SETTINGS += ["--dtype", "fp32"]


def run(folder: Path, processes: int, batch: int, model: str, device: str) -> dict:
    """The result of one absorb on so many processes."""
    options = [str(folder / "document.txt"), "--out", str(folder / f"{processes} {batch}")]
    options += ["--force", "--model", model, "--device", device, *SETTINGS]
    options += ["--epochs", str(EPOCHS), "--batch-size", str(batch)]
    return command_result("absorb", *options, processes=processes, OMP_NUM_THREADS="1")


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench ranks", description=__doc__)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--processes", default="1,2", help="numbers with commas between")
    parser.add_argument("--batch", default="2,4,8", help="segments a step, likewise")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=RESULTS / "cpu-epyc")
    args = parser.parse_args(argv)
    processes, batches = (list(map(int, x.split(","))) for x in (args.processes, args.batch))
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "document.txt").write_text(fictional_document(0, WORDS).text)
        for batch in batches:
            made: dict[int, list[dict]] = {count: [] for count in processes}
            for _ in range(args.rounds):  # they take turns
                for count in processes:
                    made[count].append(run(folder, count, batch, args.model, args.device))
            rates = {
                count: sorted(r["token_passes"] / r["seconds"] for r in results)
                for count, results in made.items()
            }
            losses = [r["loss"] for results in made.values() for r in results]
            same = max(losses) - min(losses) <= 0.01 * min(losses)
            one = rates[processes[0]][len(rates[processes[0]]) // 2]
            for count in processes:
                low, middle, high = (rates[count][i] for i in (0, len(rates[count]) // 2, -1))
                row = {
                    "processes": count,
                    "batch": batch,
                    "tokens_per_second": round(middle, 1),
                    "slowest": round(low, 1),
                    "fastest": round(high, 1),
                    "times": round(middle / one, 2) if same else None,
                    "loss": made[count][0]["loss"],
                }
                rows.append(row)
                print(json.dumps(row), flush=True)
    command = f"python -m bench ranks {' '.join(argv)}".strip()
    result = {"command": command, "versions": info.versions(), "rows": rows}
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "ranks.json").write_text(json.dumps(result, indent=1) + "\n")
    return 0
