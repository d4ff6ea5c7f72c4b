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
import importlib
import io
import os
import shutil
import subprocess
import sys
import tempfile
import time
import types
from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from triton import knobs

from bench import gpu, profile, shapes
from bench.__main__ import BENCHMARKS
from bench.common import Timer, table
from bench.kernels import jit
from bench.kernels import main as kernels_main
from bench.kernels.compile_check import SHARED_LIMIT
from bench.rehearsal.card import MEMORY, Card, stand_in
from bench.rehearsal.parts import Clock, Found, inside, rehearsed
from bench.scaling import run as scaling_run

# Shapes of --small: hidden, MLP, layers, query heads, key and value heads, vocabulary.
TOY = (64, 96, 2, 4, 2, 512)
TOY_TOKENS = {"8192": "128", "2048": "64", "512": "32"}


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

    with (
        mock.patch.dict(shapes.SHAPES, small),
        mock.patch.dict(kernels_main.MODELS, dict.fromkeys(kernels_main.MODELS, widths)),
        mock.patch.object(gpu, "arguments", short),
    ):
        yield


@contextmanager
def once() -> Generator[None]:
    """Within it nothing is timed more often than once, and attention is the stand-in's."""
    compare = Timer.compare

    def attention(*args: Any, **options: Any) -> Any:
        return torch.nn.functional.scaled_dot_product_attention(*args, **options)

    def short(timer: Timer, variants: dict[str, Callable[[], Any]]) -> Any:
        timer.rounds = (1, 1)
        return compare(timer, variants)

    with (
        mock.patch.object(Timer, "compare", short),
        mock.patch.object(scaling_run, "REPEATS", 1),
        # A tensor of a class of its own, which cannot be made under a stand-in.
        mock.patch.object(scaling_run, "causal_lower_right", lambda *_: None),
        mock.patch.object(scaling_run, "scaled_dot_product_attention", attention),
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
    """Compiles every kernel that was launched, and tells how many Triton's cache had and what it
    holds then; the errors, and what takes more shared memory than the card has: Triton says so when
    it loads a kernel."""
    errors, found = [], []
    limit = SHARED_LIMIT[max(a for a in SHARED_LIMIT if a <= card.arch)]
    with mock.patch.object(
        knobs.compilation, "listener", lambda **about: found.append(about["cache_hit"])
    ):
        for launch in card.kernels.values():
            name = f"{launch.kernel.__name__} {launch.constexprs}"
            try:
                shared = jit.compiled(launch, card.arch).metadata.shared
            except Exception as error:
                errors.append(f"{name}: {error}"[:300])
                continue
            if shared > limit:
                errors.append(f"{name}: {shared} bytes of shared memory, of {limit}")
    cache = Path(knobs.cache.dir)
    mib = sum(f.stat().st_size for f in cache.rglob("*") if f.is_file()) / 2**20
    print(
        f"{len(found)} compiled for sm_{card.arch}, {sum(found)} of them by what was in the cache"
    )
    print(f"{cache}: {mib:.1f} MiB")
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
        print(f"{len(errors)} kernels with an error")
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
    parser.add_argument(
        "--seconds", type=float, default=120.0, help="of this process, a part (%(default)s)"
    )
    parser.add_argument("--minutes", type=float, default=27.0, help="of bench gpu (%(default)s)")
    parser.add_argument("--arch", type=int, default=90)
    parser.add_argument("--memory-gib", type=float, default=MEMORY / 2**30)
    parser.add_argument("--compile", action="store_true", help="and compile what was launched")
    args = parser.parse_args(argv)
    results: list[Found] = []
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        stack.enter_context(results_in(folder))
        stack.enter_context(once())
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
