"""Runs `python -m bench gpu` without a GPU: every line of it, on a stand-in for a card.

Tensors have the shapes that they have on the card and hold nothing, so its results mean nothing:
they go into a folder that is deleted. What is found is what would end a run there: an error, a
mixture of devices, memory that ends, what a capture refuses, a kernel that does not compile. For
each part it tells the peak of memory, the kernels that are compiled, and the seconds that it needs
at least.

    python -m bench rehearse --small                      toy sizes, half a minute
    python -m bench rehearse --compile                    every kernel of every part
    TRITON_CACHE_DIR=FOLDER TRITON_STORE_BINARY_ONLY=1 python -m bench rehearse --compile

With --compile Triton's cache holds what a card of this architecture would compile, under the same
names, where Python and Triton have the versions that are there.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import importlib
import io
import os
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
import types
from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from bench import gpu, profile, shapes
from bench.__main__ import BENCHMARKS
from bench.common import Timer, table
from bench.kernels import jit
from bench.kernels import main as kernels_main
from bench.rehearsal.card import MEMORY, Card, stand_in

# Shapes of --small: hidden, MLP, layers, query heads, key and value heads, vocabulary.
TOY = (64, 96, 2, 4, 2, 512)
TOY_TOKENS = {"8192": "128", "2048": "64", "512": "32"}
# Seconds that Triton needs for a kernel on one core, by measurement on a core of an AMD EPYC.
COMPILE_SECONDS = 1.2
_real = time.perf_counter  # which the rehearsal replaces
# Processes that compile side by side: those of pytest, and one everywhere else.
PROCESSES = {"tests": 6}


@dataclass
class Found:
    """What a rehearsal of one part found."""

    part: str
    minutes: float
    how: str = ""
    failed: bool = False
    compiled: int = 0
    launches: int = 0
    peak: int = 0
    host: float = 0.0
    device: float = 0.0
    notes: list[str] = field(default_factory=list)

    @property
    def seconds(self) -> float:
        """The least that the part takes: kernels that it compiles, then the host or the device."""
        compiling = self.compiled * COMPILE_SECONDS / PROCESSES.get(self.part, 1)
        return compiling + max(self.host, self.device)


class Clock:
    """The card's time. When a part has had its real seconds, its box is over all at once."""

    def __init__(self, card: Card, seconds: float) -> None:
        self.card, self.seconds = card, seconds
        self.at = _real()
        self.end, self.box, self.over = float("inf"), 0.0, 0.0

    def begin(self, minutes: float) -> None:
        self.box, self.end = 60 * minutes, _real() + self.seconds

    def now(self) -> float:
        if _real() > self.end:
            self.over, self.end = self.over + self.box, float("inf")
        return self.at + self.card.host + self.over

    @property
    def cut_off(self) -> bool:
        return self.end == float("inf")


class Numbers:
    """A pytest plugin: a test that gets as far as comparing numbers has run."""

    def __init__(self, end: float) -> None:
        self.counts = dict.fromkeys(("to the end", "as far as its numbers", "skipped", "failed"), 0)
        self.failures: list[str] = []
        self.end = end

    def pytest_runtest_setup(self, item: Any) -> None:
        if _real() > self.end:
            import pytest

            pytest.skip("its time is over")

    def pytest_runtest_makereport(self, item: Any, call: Any) -> None:
        if call.excinfo is None:
            if call.when == "call":
                self.counts["to the end"] += 1
            return
        error = call.excinfo.value
        if type(error).__name__ == "Skipped":
            self.counts["skipped"] += 1
        elif isinstance(error, AssertionError):
            self.counts["as far as its numbers"] += 1
        else:
            self.counts["failed"] += 1
            where = call.excinfo.traceback[-1]
            self.failures.append(
                f"{item.nodeid}: {type(error).__name__}: {str(error).splitlines()[0][:160]} "
                f"({Path(str(where.path)).name}:{where.lineno + 1})"
            )


def inside(arguments: list[str], found: Found, seconds: float = 600.0) -> int:
    """`python ARGUMENTS` in this process: its exit status; tests for so many real seconds."""
    if arguments[1] == "pytest":
        return _tests(arguments[2:], found, seconds)
    module, _, function = BENCHMARKS[arguments[2]].partition(":")
    return getattr(importlib.import_module(module), function or "main")(arguments[3:])


def _tests(arguments: list[str], found: Found, seconds: float) -> int:
    import pytest

    alone = []
    skip = 0
    for argument in arguments:
        # In this process, without the plugin that starts others.
        if skip or argument in ("-n", "--maxschedchunk"):
            skip = 0 if skip else 1
        else:
            alone.append(argument)
    numbers = Numbers(_real() + seconds)
    options = ["-p", "no:cacheprovider", "-p", "no:xdist", "-W", "ignore", "--tb=no"]
    pytest.main([*alone, *options], plugins=[numbers])
    found.notes += [", ".join(f"{count} {how}" for how, count in numbers.counts.items())]
    found.notes += numbers.failures
    return int(bool(numbers.failures))


def rehearsed(card: Card, clock: Clock, results: list[Found]) -> Callable[..., dict]:
    """What stands in the place of bench.gpu.run."""

    def run(part: gpu.Part, minutes: float, folder: Path, fresh: bool = False) -> dict:
        found = Found(part.name, minutes)
        results.append(found)
        missing = [need for need in part.needs if not gpu.is_there(need)]
        if missing:
            found.how = f"not run: {', '.join(missing)} not installed"
            return {"part": part.name, "ran": False, "reason": found.how}
        card.reset()
        clock.begin(minutes)
        before = len(card.kernels), card.host, card.device
        arguments = gpu.arguments(part, minutes, folder, fresh)
        log = folder / f"{part.name}.log"
        rows = said_in(folder, [])
        with log.open("w") as out, contextlib.redirect_stdout(out):
            try:
                code = inside(arguments, found, clock.seconds)
                found.how = f"exit status {code}" if code else "ran to the end"
                found.how += ", cut off" if clock.cut_off else ""
            except Exception as error:
                code = 1
                found.how = f"{type(error).__name__}: {error}".splitlines()[0][:160]
                found.notes.append(traceback.format_exc())
        found.failed = bool(code)
        found.compiled = len(card.kernels) - before[0]
        found.launches = card.launches.total()
        found.peak = card.peak + sum(card.pools.values())
        found.host, found.device = card.host - before[1], card.device - before[2]
        found.notes += said_in(folder, rows)
        if code:
            found.notes.append(log.read_text()[-1500:])
        card.pools.clear()
        ended = {"seconds": 0.0, "code": code, "last_line": found.how, "command": ""}
        return {"part": part.name, "ran": True, **ended}

    return run


def said_in(folder: Path, before: list[str]) -> list[str]:
    """What the notes of rows say that did not run, but for what was said before."""
    found = []
    for file in sorted(folder.glob("*.csv")):
        with file.open(newline="") as lines:
            for row in csv.DictReader(lines):
                if (note := row.get("note") or "").startswith("not run"):
                    found.append(f"{row.get('variant') or file.stem}: {note}")
    return [note for note in dict.fromkeys(found) if note not in before]


@contextmanager
def toys() -> Generator[None]:
    """Within it every model has the toy's shape, and batches are short."""
    small = {name: (kind, TOY, extra) for name, (kind, _, extra) in shapes.SHAPES.items()}
    small = {
        n: (k, s, {**e, "head_dim": 16} if "head_dim" in e else e) for n, (k, s, e) in small.items()
    }
    hidden, mlp, _, heads, kv, vocab = TOY
    widths = kernels_main.Model(hidden, hidden // heads * kv, mlp, vocab)
    arguments = gpu.arguments

    def short(*args: Any) -> list[str]:
        return [TOY_TOKENS.get(a, a) for a in arguments(*args)]

    compare = Timer.compare

    def once(timer: Timer, variants: dict[str, Callable[[], Any]]) -> Any:
        timer.rounds = (1, 1)
        return compare(timer, variants)

    with (
        mock.patch.dict(shapes.SHAPES, small),
        mock.patch.dict(kernels_main.MODELS, dict.fromkeys(kernels_main.MODELS, widths)),
        mock.patch.object(gpu, "arguments", short),
        mock.patch.object(Timer, "compare", once),
    ):
        yield


@contextmanager
def results_in(folder: Path) -> Generator[None]:
    """Within it all benchmarks write their rows there."""
    names = {target.partition(":")[0] for target in BENCHMARKS.values()}
    for name in names:
        importlib.import_module(name)
    with ExitStack() as stack:
        for name, module in list(sys.modules.items()):
            if name.startswith("bench") and hasattr(module, "RESULTS"):
                stack.enter_context(mock.patch.object(module, "RESULTS", folder))
        yield


class Watched:
    """torch's profiler, as far as bench.profile asks it: one kernel."""

    def __init__(self, **_: Any) -> None: ...

    def __enter__(self) -> Watched:
        return self

    def __exit__(self, *_: Any) -> None: ...

    def key_averages(self) -> list[Any]:
        spent = dict(self_device_time_total=1e3, self_cpu_time_total=1e3)
        return [types.SimpleNamespace(key="chain_kernel", count=3, **spent)]


_RUN = subprocess.run


def _run_here(command: list[str], **options: Any) -> subprocess.CompletedProcess:
    """subprocess.run: another process of ours runs in this one. A program of the machine runs as
    it is, since libraries call some (matplotlib asks for fonts), where it is there."""
    if command[0] != sys.executable and shutil.which(command[0]):
        return _RUN(command, **options)
    if command[:3] != [sys.executable, "-m", "bench"]:
        return subprocess.CompletedProcess(command, 1, "", "not rehearsed")
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        code = inside(["-m", *command[2:]], Found("", 0.0))
    return subprocess.CompletedProcess(command, code, out.getvalue(), "")


def compile_all(card: Card) -> list[str]:
    """Compiles every kernel that was launched; the errors."""
    errors = []
    for launch in card.kernels.values():
        try:
            jit.compiled(launch, card.arch)
        except Exception as error:
            errors.append(f"{launch.kernel.__name__} {launch.constexprs}: {error}"[:300])
    return errors


def report(results: list[Found], errors: list[str] | None, card: Card) -> int:
    lines = [["part", "box, s", "at least, s", "compiles", "launches", "peak, GiB", "how"]]
    for f in results:
        box = f"{60 * f.minutes:.0f}"
        least = f"{f.seconds:.0f}" + (" too long" if f.seconds > 60 * f.minutes else "")
        peak = f"{f.peak / 2**30:.1f}"
        lines.append([f.part, box, least, str(f.compiled), str(f.launches), peak, f.how])
    print(table(lines))
    for f in results:
        for note in f.notes:
            print(f"{f.part}: {note}")
    memory = card.memory / 2**30
    print(f"{len(card.kernels)} kernels; memory ends at {memory:.0f} GiB; seconds are floors")
    if errors is not None:
        print(f"{len(card.kernels)} compiled for sm_{card.arch}, {len(errors)} with an error")
        print("\n".join(errors))
    return int(any(f.failed for f in results) or bool(errors))


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench rehearse",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--only", nargs="+", choices=[p.name for p in gpu.PARTS])
    parser.add_argument("--small", action="store_true", help="toy sizes")
    parser.add_argument("--seconds", type=float, default=60.0, help="a part (%(default)s)")
    parser.add_argument("--minutes", type=float, default=27.0, help="of bench gpu (%(default)s)")
    parser.add_argument("--arch", type=int, default=90)
    parser.add_argument("--memory-gib", type=float, default=MEMORY / 2**30)
    parser.add_argument("--compile", action="store_true", help="and compile what was launched")
    args = parser.parse_args(argv)
    results: list[Found] = []
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        stack.enter_context(results_in(folder))
        if args.small:
            stack.enter_context(toys())
        card = stack.enter_context(stand_in(args.arch, int(args.memory_gib * 2**30)))
        clock = Clock(card, args.seconds)
        run = rehearsed(card, clock, results)
        for name in ("perf_counter", "monotonic"):
            stack.enter_context(mock.patch.object(time, name, clock.now))
        stack.enter_context(mock.patch.object(gpu, "run", run))
        stack.enter_context(mock.patch.object(subprocess, "run", _run_here))
        stack.enter_context(mock.patch.object(profile, "profile", Watched))
        stack.enter_context(mock.patch.object(torch, "compile", lambda f=None, **_: f))
        stack.enter_context(mock.patch.dict(os.environ, LIFTCORE_CACHE=str(folder / "cache")))
        only = ["--only", *args.only] if args.only else []
        chosen = [p.minutes for p in gpu.PARTS if not args.only or p.name in args.only]
        minutes = args.minutes * (sum(chosen) / sum(p.minutes for p in gpu.PARTS) or 0.1)
        with contextlib.redirect_stdout(io.StringIO()):
            gpu.main(["--minutes", str(minutes), "--fresh", *only])
    return report(results, compile_all(card) if args.compile else None, card)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
