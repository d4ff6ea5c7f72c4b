"""The parts of `bench gpu`, one after the other in this process, and what was found in each."""

from __future__ import annotations

import contextlib
import csv
import importlib
import time
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench import gpu
from bench.__main__ import BENCHMARKS
from bench.rehearsal.card import Card
from bench.scaling.main import read_rows
from bench.scaling.report import lines_of, memory_ends

# Seconds that Triton needs for a kernel, measured on one idle core of an EPYC; a busy host takes up
# to four times as long.
COMPILE_SECONDS = 0.3
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
    """The card's time. When a part has had its seconds of this process, its box is over all at
    once."""

    def __init__(self, card: Card, seconds: float) -> None:
        self.card, self.seconds = card, seconds
        self.at = time.perf_counter()
        self.end, self.box, self.over = float("inf"), 0.0, 0.0

    def begin(self, minutes: float) -> None:
        self.box, self.end = 60 * minutes, time.process_time() + self.seconds

    def now(self) -> float:
        if time.process_time() > self.end:
            self.over, self.end = self.over + self.box, float("inf")
        return self.at + self.card.host + self.over

    @property
    def cut_off(self) -> bool:
        return self.end == float("inf")


class Numbers:
    """A pytest plugin: a test that gets as far as comparing numbers has run.

    asserted   how often each assertion ended a test: numbers that are not there, or a fault
    """

    def __init__(self, end: float) -> None:
        self.counts = dict.fromkeys(("to the end", "as far as its numbers", "skipped", "failed"), 0)
        self.asserted: Counter[str] = Counter()
        self.failures: list[str] = []
        self.end = end

    def pytest_collection_modifyitems(self, items: list[Any]) -> None:
        items.sort(key=lambda item: "test_steps" in item.nodeid)  # whole steps take longest here

    def pytest_runtest_setup(self, item: Any) -> None:
        if time.process_time() > self.end:
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
            where = call.excinfo.traceback[-1]
            line = str(where.statement).strip()[:100]
            self.asserted[f"{Path(str(where.path)).name}:{where.lineno + 1}: {line}"] += 1
        else:
            self.counts["failed"] += 1
            where = call.excinfo.traceback[-1]
            self.failures.append(
                f"{item.nodeid}: {type(error).__name__}: {str(error).splitlines()[0][:160]} "
                f"({Path(str(where.path)).name}:{where.lineno + 1})"
            )


def inside(arguments: list[str], found: Found, seconds: float = 600.0) -> int:
    """`python ARGUMENTS` in this process: its exit status; tests for so many seconds."""
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
    numbers = Numbers(time.process_time() + seconds)
    options = ["-p", "no:cacheprovider", "-p", "no:xdist", "-W", "ignore", "--tb=no"]
    pytest.main([*alone, *options], plugins=[numbers])
    found.notes += [", ".join(f"{count} {how}" for how, count in numbers.counts.items())]
    found.notes += [f"{count} at {where}" for where, count in numbers.asserted.most_common()]
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
        card.restart()
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
        found.peak = card.top
        found.host, found.device = card.host - before[1], card.device - before[2]
        found.notes += said_in(folder, rows)
        if part.name == "scaling":
            found.notes += memory_ends(lines_of(read_rows(folder / "scaling.csv")), card.memory)
        if code:
            found.notes.append(log.read_text()[-1500:])
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
