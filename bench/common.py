"""What the benchmarks share: the machine's description, interleaved timing, rows on disk."""

from __future__ import annotations

import contextlib
import csv
import json
import os
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import Any

import torch

from liftcore.cli import info
from liftcore.cli.info import device_name

# The pause before a timed call: up to this many seconds, at the clock of today's GPUs.
LONGEST_PAUSE, CYCLES = 0.01, 2e9
RESULTS = Path(__file__).resolve().parent / "results"
PACKAGES = (
    "torch", "triton", "transformers", "peft", "accelerate", "liger-kernel", "cut-cross-entropy",
    "quack-kernels", "unsloth", "lorafusion",
)  # fmt: skip


def versions() -> dict[str, str]:
    """The versions of Python and of every package that a result may depend on."""
    known = {**info.versions(PACKAGES), "cuda": torch.version.cuda or "none"}
    return {name: version for name, version in known.items() if version != "not installed"}


class Timer:
    """Median seconds of variants that take turns, each from a cold L2 cache on a GPU.

    On a GPU it is the time of the device: the launches are queued behind a pause, so that Python
    is not what is measured. A variant that waits for the device in its midst still pays for that.
    """

    def __init__(self, device: torch.device, seconds: float, rounds: tuple[int, int]):
        self.device, self.seconds, self.rounds = device, seconds, rounds
        if device.type == "cuda":
            self.flush = torch.empty(2**28, dtype=torch.int8, device=device)

    def compare(
        self, variants: dict[str, Callable[[], Any]]
    ) -> tuple[dict[str, float], dict[str, Exception]]:
        """Median seconds by variant, and what the others raised.

        As many rounds as fit into `seconds` for each of them.
        """
        times, pauses, failed = {}, {}, {}
        for name, run in variants.items():
            with _kept(failed, name):
                run()
                self._synchronize()
                start = time.perf_counter()
                run()
                pauses[name] = min(2 * (time.perf_counter() - start), LONGEST_PAUSE)
                times[name] = []
        started = time.perf_counter()
        least, most = self.rounds
        for done in range(most):
            if done >= least and time.perf_counter() - started > self.seconds * len(variants):
                break
            for name in [n for n in times if n not in failed]:
                with _kept(failed, name):
                    times[name].append(self._once(variants[name], pauses[name]))
        return {n: statistics.median(t) for n, t in times.items() if n not in failed}, failed

    def _synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def _once(self, run: Callable[[], Any], pause: float) -> float:
        if self.device.type != "cuda":
            start = time.perf_counter()
            run()
            return time.perf_counter() - start
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        self.flush.zero_()
        torch.cuda._sleep(int(CYCLES * pause))
        begin.record()
        run()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) / 1e3


@contextlib.contextmanager
def _kept(failed: dict[str, Exception], name: str) -> Generator[None]:
    try:
        yield
    except Exception as error:
        failed[name] = error


def peak_mib(run: Callable[[], Any], device: torch.device) -> float | None:
    """MiB that a call needs at most beyond what is already there; None on a CPU."""
    if device.type != "cuda":
        return None
    torch.cuda.synchronize(device)
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    run()
    torch.cuda.synchronize(device)
    return (torch.cuda.max_memory_allocated(device) - before) / 2**20


def relative_error(a: torch.Tensor, b: torch.Tensor) -> float:
    """‖a − b‖ / ‖b‖ in fp32; NaN if a holds one."""
    a, b = a.float(), b.float()
    return ((a - b).norm() / b.norm().clamp_min(1e-30)).item()


def command_result(
    verb: str, *options: str, processes: int | None = None, **environment: str
) -> dict:
    """What `liftcore VERB OPTIONS --json` prints, run as a user would: by a process of its own, or
    by so many under torchrun. Ends with what it says where it fails."""
    launch = [] if processes is None else ["torch.distributed.run", "--nproc-per-node"]
    launch += [] if processes is None else [str(processes), "-m"]
    command = [sys.executable, "-m", *launch, "liftcore", verb, *options, "--json"]
    env = {**os.environ, **environment}
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def read_lines(file: Path) -> list[dict]:
    """The whole lines of a JSON-lines file; a last line that a kill tore is cut off the file."""
    if not file.exists():
        return []
    whole = file.read_bytes()
    end = whole.rfind(b"\n") + 1
    if end < len(whole):
        os.truncate(file, end)
    return [json.loads(line) for line in whole[:end].splitlines()]


def append(file: Path, row: dict) -> None:
    """Adds a line in one write, and waits until the disk has it."""
    with file.open("ab", buffering=0) as out:
        out.write(json.dumps(row, ensure_ascii=False).encode() + b"\n")
        os.fsync(out.fileno())


class Rows:
    """Rows of a CSV file that is written as it goes, each with the machine and the command.

    With `append` rows of the same columns are added to a file that is there.
    """

    def __init__(
        self, path: Path, device: torch.device, columns: Sequence[str], append: bool = False
    ):
        self.path = path
        self.fixed = {
            "device": device_name(device),
            "versions": " ".join(f"{k}={v}" for k, v in versions().items()),
            "command": " ".join(["python -m bench", *sys.argv[1:]]),
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        columns = [*columns, *self.fixed]
        append = append and path.exists() and _header(path) == columns
        self.file = path.open("a" if append else "w", newline="")
        self.writer = csv.DictWriter(self.file, columns, restval="")
        if not append:
            self.writer.writeheader()

    def add(self, **row: object) -> None:
        self.writer.writerow({**row, **self.fixed})
        self.file.flush()
        os.fsync(self.file.fileno())


def known(file: Path, *columns: str) -> set[tuple[str, ...]]:
    """What these columns hold in the rows of a CSV file that Rows wrote; of no file nothing."""
    if not file.exists():
        return set()
    with file.open(newline="") as lines:
        return {tuple(row[c] for c in columns) for row in csv.DictReader(lines)}


def _header(path: Path) -> list[str]:
    with path.open(newline="") as file:
        return next(csv.reader(file), [])


def slug(device: torch.device) -> str:
    """The device's name as a part of a file name."""
    if device.type == "cpu":
        return "cpu"
    return re.sub(r"[^a-z0-9]+", "-", torch.cuda.get_device_name(device).lower()).strip("-")


def table(rows: Sequence[Sequence[str]]) -> str:
    """Rows of text in columns; the first column to the left, the others to the right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join(
        "  ".join(
            c.rjust(w) if i else c.ljust(w) for i, (c, w) in enumerate(zip(r, widths, strict=True))
        )
        for r in rows
    )


def results_name(device: torch.device) -> str:
    """The folder of a device under bench/results: the card, or the processor without its maker."""
    if device.type == "cuda":
        return slug(device)
    words = re.findall(r"[a-z0-9]+", device_name(device).split(",")[0].lower())
    return "-".join(["cpu", *(w for w in words if w not in ("amd", "intel", "cpu", "processor"))])
