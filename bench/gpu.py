"""Everything that needs a GPU, in one command, the most important first.

Runs from a bare checkout with the machine's own Python and no network. Each part is a process of
its own with a share of the time, and what it finds lies in bench/results/CARD/ as soon as it is
known. A part that cannot run is named with the reason.

    python -m bench gpu
    python -m bench gpu --only kernels --minutes 3
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from bench.common import PACKAGES, RESULTS, results_name, table, versions

ROOT = Path(__file__).resolve().parent.parent
EMBEDDED = "the embedded model"


@dataclass(frozen=True)
class Part:
    """One process: arguments of Python with {minutes} filled in, a share of the time, and the
    modules that it needs, or EMBEDDED."""

    name: str
    command: tuple[str, ...]
    share: float
    needs: tuple[str, ...] = ()


PARTS = (
    Part("tests", ("-m", "pytest", "-q", "-x", "tests/gpu"), 0.25, ("pytest",)),
    Part(
        "kernels",
        ("-m", "bench", "kernels", "--device", "cuda", "--minutes", "{minutes}"),
        0.3,
    ),
    Part(
        "step",
        ("-m", "bench", "step", "--device", "cuda", "--minutes", "{minutes}"),
        0.15,
        ("peft", "accelerate"),
    ),
    Part(
        "scaling",
        ("-m", "bench", "scaling", "--device", "cuda", "--minutes", "{minutes}"),
        0.2,
        ("transformers",),
    ),
    Part(
        "recall",
        ("-m", "bench", "recall", "--device", "cuda", "--minutes", "{minutes}", "--documents",
         "fiction-0", "fiction-1", "fiction-2", "--only", "schedule"),
        0.1,
        ("transformers", EMBEDDED),
    ),
)  # fmt: skip


def is_there(need: str) -> bool:
    if need != EMBEDDED:
        return importlib.util.find_spec(need) is not None
    try:
        from liftcore import embedded
    except ImportError:  # something that liftcore needs itself
        return False
    return embedded.is_available()


def run(part: Part, minutes: float, folder: Path) -> dict:
    """Runs one part for at most `minutes` and returns how it ended; its output goes into a log."""
    missing = [need for need in part.needs if not is_there(need)]
    if missing:
        return {"part": part.name, "ran": False, "reason": f"{', '.join(missing)} not installed"}
    # A part that counts its own minutes needs some of them to start and to draw.
    filled = [a.format(minutes=round(max(0.2, minutes - 0.5), 2)) for a in part.command]
    started, log = time.perf_counter(), folder / f"{part.name}.log"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    with log.open("w") as out:
        # A session of its own, so that what the part started ends with it.
        child = subprocess.Popen(
            [sys.executable, *filled], cwd=ROOT, env=environment, stdout=out,
            stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
        try:
            code = child.wait(60 * minutes)
        except subprocess.TimeoutExpired:
            code = None
            os.killpg(child.pid, signal.SIGKILL)
            child.wait()
    last = next((t for t in reversed(log.read_text().splitlines()) if t.strip()), "")
    return {
        "part": part.name,
        "ran": True,
        "seconds": round(time.perf_counter() - started, 1),
        "code": code,
        "last_line": last[:200],
        "command": "python " + " ".join(filled),
    }


def said(result: dict) -> str:
    if not result["ran"]:
        return f"not run: {result['reason']}"
    if result["code"] is None:
        return "cut off: its time was over; what it had found is kept"
    return "done" if result["code"] == 0 else f"failed: {result['last_line']}"


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench gpu",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--only", nargs="+", choices=[p.name for p in PARTS])
    parser.add_argument("--minutes", type=float, default=8.5, help="for everything")
    args = parser.parse_args(argv)
    end = time.monotonic() + 60 * args.minutes
    parts = [p for p in PARTS if not args.only or p.name in args.only]
    here, results = versions(), []
    if not torch.cuda.is_available():
        for part in parts:
            print(f"{part.name}: skipped, this machine has no CUDA GPU")
        return 0
    device = torch.device("cuda")
    folder = RESULTS / results_name(device)
    folder.mkdir(parents=True, exist_ok=True)
    for i, part in enumerate(parts):
        left, shares = (end - time.monotonic()) / 60, sum(p.share for p in parts[i:])
        if left < 0.3:
            result = {"part": part.name, "ran": False, "reason": "the time is over"}
        else:
            result = run(part, left * part.share / shares, folder)
        results.append(result)
        print(f"{part.name}: {said(result)}", file=sys.stderr, flush=True)
        about = {"command": " ".join(["python -m bench gpu", *argv]), "versions": here}
        text = json.dumps({**about, "parts": results}, indent=1)
        (folder / "gpu.json").write_text(text + "\n")
    rows = [(r["part"], f"{r.get('seconds', 0):.0f} s", said(r)) for r in results]
    print(
        f"{torch.cuda.get_device_name(device)}\n{table([('part', 'time', 'how it ended'), *rows])}"
    )
    print("peers not installed, so not run: " + ", ".join(n for n in PACKAGES if n not in here))
    print(f"results: {folder}")
    return int(any(r["ran"] and r["code"] not in (0, None) for r in results))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
