"""Measures tiles of the Triton kernels for the shapes of a model, and writes tiles.CARD.json.

Every kernel is launched alone, at each of its shapes: first with the tile of the tables, then with
candidates for as long as there is time. A candidate whose result is another one is left out. The
file is written as it goes; what it holds is not measured again, but for --fresh. Last, the ways to
run a single linear are measured and shown. The package takes the file from LIFTCORE_TILES, or from
its own folder:

    python -m bench tune --minutes 5
    cp bench/results/CARD/tiles.CARD.json kernels/
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench.common import RESULTS, Timer, device_name, relative_error, results_name, table, versions
from bench.kernels.compile_check import SHARED_LIMIT
from bench.kernels.main import MODELS, Model, cases
from liftcore.kernels import tiles
from liftcore.kernels.device import architecture, processors
from liftcore.kernels.tiles import Tile
from liftcore.model import default_device

TOLERANCE = 1e-2
# A tile is worth an entry when it is so much faster than that of the tables.
WORTH = 0.98
RANK = 128
# The ways to run a single linear, as bench.kernels names them.
LINEAR = ("ours plain", "ours triton", "ours concat")


@dataclass(frozen=True)
class Problem:
    """One launch: the kind of its tile, its output [rows, cols], and a function that makes the
    inputs and returns a call of the launcher.

    The head's tiles do not depend on the shape: rows and cols are 0.
    """

    kind: str
    rows: int
    cols: int
    start: Callable[[], Callable[[], Any]]

    @property
    def key(self) -> tuple[str, int, int]:
        return self.kind, self.rows, self.cols


def problems(model: Model, tokens: int, device: torch.device) -> list[Problem]:
    """Every shape of the kernels in a model's layers and head, each once; of several products
    with the same output the largest."""
    from liftcore.kernels.head_loss import Inputs
    from liftcore.kernels.head_loss_logits import head_loss
    from liftcore.kernels.lora_split_triton import split_product
    from liftcore.kernels.lora_triton import chain, gate_up

    hidden, kv, mlp = model.hidden, model.kv, model.mlp

    def m(*shape: int) -> Tensor:
        return torch.randn(shape, device=device, dtype=torch.bfloat16)

    def forward(k: int, n: int) -> Callable[[], Any]:
        given = m(tokens, n), m(tokens, RANK), m(n, RANK), [(m(tokens, k), m(n, k))]
        return lambda: chain(*given, nt=True)

    def dx(k: int, *widths: int) -> Callable[[], Any]:
        rank = RANK * len(widths)
        pairs = [(m(tokens, n), m(n, k)) for n in widths]
        given = m(tokens, k), m(tokens, rank), m(rank, k), pairs
        return lambda: chain(*given, nt=False)

    def swiglu() -> Callable[[], Any]:
        weights, lora_b = [m(mlp, hidden), m(mlp, hidden)], [m(mlp, RANK), m(mlp, RANK)]
        given = m(tokens, hidden), weights, m(tokens, 2 * RANK).split(RANK, dim=1), lora_b
        return lambda: gate_up(*given, [None, None], gelu=False, keep=True)

    def down(k: int, rank: int) -> Callable[[], Any]:
        given = m(tokens, rank), m(tokens, k), m(rank, k)
        return lambda: split_product(*given, "nt")

    def outer(rows: int, cols: int) -> Callable[[], Any]:
        given = m(rows, cols), m(tokens, rows), m(tokens, cols)
        return lambda: split_product(*given, "tn")

    def head(softcap: float | None) -> Callable[[], Any]:
        scored = m(tokens, hidden), m(model.vocab, hidden) * 0.02
        labels = torch.randint(model.vocab, (tokens,), device=device)
        weights = torch.ones(tokens, device=device)
        given = Inputs(*scored, labels, weights, None, softcap, 1.0, True, False, "triton")
        return lambda: head_loss(given)

    ranks = (RANK, 2 * RANK, 3 * RANK)
    return [
        Problem("forward", tokens, hidden, partial(forward, mlp, hidden)),
        Problem("forward", tokens, mlp, partial(forward, hidden, mlp)),
        Problem("forward", tokens, kv, partial(forward, hidden, kv)),
        Problem("gate_up", tokens, mlp, swiglu),
        Problem("dx", tokens, hidden, partial(dx, hidden, mlp, mlp)),
        Problem("dx", tokens, mlp, partial(dx, mlp, hidden)),
        *(
            Problem("down", tokens, r, partial(down, mlp if r == RANK else hidden, r))
            for r in ranks
        ),
        Problem("outer", RANK, mlp, partial(outer, RANK, mlp)),
        *(Problem("outer", r, hidden, partial(outer, r, hidden)) for r in ranks),
        *(Problem("outer", n, RANK, partial(outer, n, RANK)) for n in (mlp, hidden, kv)),
        Problem("logits", 0, 0, partial(head, None)),
        Problem("capped", 0, 0, partial(head, 30.0)),
        Problem("head_dx", 0, 0, partial(head, None)),
    ]


def candidates(kind: str, arch: int) -> list[Tile]:
    """Tiles that may run on an architecture, those of the tables first, and then the larger ones
    first."""
    listed = [
        tile
        for of, first, tile in (*tiles.BF16_TILES, *tiles.BF16_SPLIT_TILES, *tiles.HEAD_TILES)
        if of == kind and first <= arch
    ]
    pair = 2 if kind == "gate_up" else 1
    limit = SHARED_LIMIT[max(a for a in SHARED_LIMIT if a <= arch)]
    more = [
        Tile(bm, bn, bk, warps, stages, group)
        for bm, bn, bk, warps, stages, group in itertools.product(
            (128, 64, 256), (256, 128, 64, 32), (64, 128, 32), (8, 4), (4, 3, 5), (8, 16)
        )
        # An accumulator has 255 registers a thread at most; a stage holds one piece of each side.
        if pair * bm * bn <= 128 * 32 * warps
        and bm * bn >= 64 * 32 * warps // 4
        and 2 * stages * bk * (bm + pair * bn) <= limit
    ]
    more.sort(key=lambda tile: -tile.bm * tile.bn)
    return [*dict.fromkeys([*reversed(listed), *more])]


def best(
    problem: Problem, arch: int, timer: Timer, seconds: float
) -> tuple[Tile, dict[str, float]] | None:
    """The fastest tile of a problem and {milliseconds, of the tables', tried}; None when no
    candidate is worth an entry."""
    end = time.monotonic() + seconds
    call = problem.start()
    truth = _copies(call())
    running: dict[str, Callable[[], Any]] = {"tables": call}
    by_name: dict[str, Tile] = {}
    for tile in candidates(problem.kind, arch):
        if by_name and time.monotonic() > end:
            break

        def run(tile: Tile = tile) -> Any:
            with tiles.trying(problem.kind, tile):
                return call()

        try:
            right = all(
                relative_error(a, b) < TOLERANCE for a, b in zip(_copies(run()), truth, strict=True)
            )
        except Exception as error:  # too many registers, too much shared memory
            print(f"{problem.key} {tile}: {str(error)[:80]}", file=sys.stderr)
            continue
        if right:
            by_name[str(tile)] = tile
            running[str(tile)] = run
    times, _ = timer.compare(running)
    usual = times.pop("tables", float("inf"))
    fastest = min(times, key=lambda name: times[name], default=None)
    if fastest is None or times[fastest] > WORTH * usual:
        return None
    figures = {
        "milliseconds": round(1e3 * times[fastest], 4),
        "tables_milliseconds": round(1e3 * usual, 4),
        "tried": len(times),
    }
    return by_name[fastest], figures


def ways(name: str, tokens: int, timer: Timer) -> list[list[str]]:
    """Lines of a table: milliseconds of each way to run a model's single linears, forward and
    backward, the fastest last. "ours concat" is not in the package: it belongs there if it wins.
    """
    lines = []
    for case in cases(("linear",), [name]):
        problem = case.problem(tokens, RANK, timer.device, torch.bfloat16)
        times, _ = timer.compare({way: case.variants[way](problem) for way in LINEAR})
        shown = [f"{1e3 * times[way]:.3f}" if way in times else "-" for way in LINEAR]
        fastest = min(times, key=lambda way: times[way], default="-")
        lines.append([f"{name} {case.name}", str(tokens), *shown, fastest])
    return lines


def _copies(result: Any) -> list[Tensor]:
    given = result if isinstance(result, tuple) else (result,)
    return [t.clone() for t in given if t is not None and t.numel()]


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench tune",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--device", type=torch.device, default=default_device())
    parser.add_argument("--model", nargs="+", choices=MODELS, default=["llama-3-8b"])
    parser.add_argument("--tokens", type=int, nargs="+", default=[8192, 2048])
    parser.add_argument("--minutes", type=float, default=5.0, help="for everything (%(default)s)")
    parser.add_argument("--seconds", type=float, default=0.05, help="to time each tile")
    parser.add_argument("--out", type=Path, help="folder of the file (bench/results/DEVICE)")
    parser.add_argument("--fresh", action="store_true", help="measure again what is there")
    args = parser.parse_args(argv)
    if args.device.type != "cuda":
        print("tiles are of a GPU, and this machine has none")
        return 1
    arch, name = architecture(args.device), results_name(args.device)
    file = (args.out or RESULTS / name) / f"tiles.{name}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    done = {} if args.fresh else read(file)
    about: dict[str, object] = {
        "device": device_name(args.device),
        "processors": processors(args.device),
        "versions": versions(),
        "command": " ".join(["python -m bench tune", *argv]),
    }
    end = time.monotonic() + 60 * args.minutes
    timer = Timer(args.device, args.seconds, (3, 20))
    lines = [["kind", "rows", "cols", "tile", "ms", "tables, ms"]]
    late = []
    for model, tokens in itertools.product(args.model, args.tokens):
        todo = [p for p in problems(MODELS[model], tokens, args.device) if p.key not in done]
        for i, problem in enumerate(todo):
            left = end - time.monotonic()
            if left < 0:
                late.append(" ".join(map(str, problem.key)))
                continue
            share = left / (len(todo) - i)
            won = best(problem, arch, timer, share / 2)
            done[problem.key] = won
            kept = [(*key, *entry) for key, entry in done.items() if entry]
            file.write_text(tiles.file_of(arch, about, kept))
            if won:
                tile, figures = won
                spent = figures["milliseconds"], figures["tables_milliseconds"]
                lines.append([*map(str, problem.key), str(tile), *map(str, spent)])
    print(f"{about['device']}\n{table(lines)}")
    if time.monotonic() < end:
        head = ["linear, forward and backward, ms", "tokens", *LINEAR, "fastest"]
        measured = [ways(m, t, timer) for m, t in itertools.product(args.model, args.tokens)]
        print(table([head, *itertools.chain(*measured)]))
    if late:
        print(f"not measured, the time was up: {', '.join(late)}")
    print(f"{len(lines) - 1} tiles are faster than those of the tables: {file}")
    return 0


def read(file: Path) -> dict[tuple[str, int, int], tuple[Tile, dict] | None]:
    """What a file of tiles holds, by (kind, rows, cols); of no file nothing."""
    if not file.exists():
        return {}
    entries: Sequence[dict] = json.loads(file.read_text())["tiles"]
    keys = ("kind", "rows", "cols", "tile")
    return {
        (e["kind"], e["rows"], e["cols"]): (
            Tile(*e["tile"]), {k: v for k, v in e.items() if k not in keys}
        )
        for e in entries
    }  # fmt: skip


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
