"""Tile sizes and the way to run a product, by GPU, dtype and shape; one entry a line.

The tables are not measured yet. `python -m bench tune` measures tiles on a card for the shapes of
a model and writes tiles.CARD.json, which comes before the tables: the file that LIFTCORE_TILES
names, else those beside this one. A tile only changes the speed, never the result beyond rounding.
"""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import astuple, dataclass
from pathlib import Path


@dataclass(frozen=True)
class Tile:
    """Rows, columns and depth of a tile, warps, pipeline stages, and row tiles per L2 group."""

    bm: int
    bn: int
    bk: int
    warps: int
    stages: int
    group: int = 8

    @property
    def shape(self) -> dict[str, int]:
        """What a kernel that walks over tiles takes as constants."""
        return {"BM": self.bm, "BN": self.bn, "BK": self.bk, "GROUP": self.group}


# By kind: what is taken in place of every other tile, while it is tried.
_tried: dict[str, Tile] = {}


@contextmanager
def trying(kind: str, tile: Tile) -> Generator[None]:
    """Within it aligned products of this kind in 16 bits, and the head's, take this tile."""
    _tried[kind] = tile
    try:
        yield
    finally:
        del _tried[kind]


@functools.cache
def measured(arch: int) -> dict[tuple[str, int], list[tuple[int, Tile]]]:
    """(kind, columns) -> [(rows, tile)] of the files of this architecture.

    Raises ValueError when a file cannot be read.
    """
    named = os.environ.get("LIFTCORE_TILES")
    files = [Path(named)] if named else sorted(Path(__file__).parent.glob("tiles.*.json"))
    entries: dict[tuple[str, int], list[tuple[int, Tile]]] = {}
    for file in files:
        try:
            made = json.loads(file.read_text())
            for entry in made["tiles"] if made["architecture"] == arch else ():
                tile = Tile(*map(int, entry["tile"]))
                key = entry["kind"], int(entry["cols"])
                entries.setdefault(key, []).append((int(entry["rows"]), tile))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{file} is no file of tiles: {error!r}") from error
    return entries


def _fitting(kind: str, arch: int, rows: int, cols: int) -> Tile | None:
    """The measured tile for an output [rows, cols]: the same columns, and rows at most twice as
    many or half as many."""
    near = [
        (max(n, rows) / max(1, min(n, rows)), tile)
        for n, tile in measured(arch).get((kind, cols), ())
    ]
    ratio, tile = min(near, key=lambda entry: entry[0], default=(0.0, None))
    return tile if ratio <= 2 else None


def file_of(
    arch: int, about: dict[str, object], entries: Sequence[tuple[str, int, int, Tile, dict]]
) -> str:
    """The text of tiles.CARD.json: (kind, rows, cols, tile, what was measured) by entry."""
    lines = [
        json.dumps({"kind": kind, "rows": rows, "cols": cols, "tile": astuple(tile), **figures})
        for kind, rows, cols, tile, figures in entries
    ]
    head = json.dumps({**about, "architecture": arch})[:-1]
    return head + ', "tiles": [\n' + ",\n".join(lines) + "\n]}\n"


def ceil_div(a: int, b: int) -> int:
    return -(-a // b)


# One entry a line: (kind, first architecture, tile), from the widest tile to the smallest. The
# first whose tiles keep nine processors of ten busy is taken, else the smallest.
#   forward  y = x Wᵀ + tail     dx  Σ dy W + tail     gate_up  two products and SwiGLU
BF16_TILES = (
    ("forward", 80, Tile(128, 128, 64, 8, 3)),
    ("forward", 80, Tile(64, 128, 64, 4, 3)),
    ("forward", 80, Tile(64, 64, 64, 4, 3)),
    ("forward", 90, Tile(128, 256, 64, 8, 4)),
    ("forward", 90, Tile(128, 128, 64, 8, 4)),
    ("forward", 90, Tile(64, 128, 64, 4, 4)),
    ("forward", 90, Tile(64, 64, 64, 4, 4)),
    ("dx", 80, Tile(128, 128, 64, 8, 3)),
    ("dx", 80, Tile(64, 128, 64, 4, 3)),
    ("dx", 80, Tile(64, 64, 64, 4, 3)),
    ("dx", 90, Tile(128, 256, 64, 8, 4)),
    ("dx", 90, Tile(128, 128, 64, 8, 4)),
    ("dx", 90, Tile(64, 128, 64, 4, 4)),
    ("dx", 90, Tile(64, 64, 64, 4, 4)),
    ("gate_up", 80, Tile(128, 128, 32, 8, 3)),
    ("gate_up", 80, Tile(64, 64, 64, 4, 3)),
    ("gate_up", 90, Tile(128, 128, 64, 8, 4)),
    ("gate_up", 90, Tile(64, 64, 64, 4, 4)),
)
# Products split over their depth: the first tile that is not larger than the result, else the
# last.         down  x Aᵀ and dy B, [T, R]         outer  dA [R, K] and dB [N, R]
BF16_SPLIT_TILES = (
    ("down", 80, Tile(64, 128, 64, 8, 4)),
    ("down", 80, Tile(64, 64, 64, 4, 4)),
    ("down", 80, Tile(64, 32, 64, 4, 4)),
    ("down", 90, Tile(64, 128, 64, 4, 5)),
    ("down", 90, Tile(64, 64, 64, 4, 5)),
    ("down", 90, Tile(64, 32, 64, 4, 5)),
    ("outer", 80, Tile(128, 128, 64, 8, 3)),
    ("outer", 80, Tile(64, 64, 64, 4, 3)),
    ("outer", 90, Tile(128, 128, 64, 8, 4)),
    ("outer", 90, Tile(64, 64, 64, 4, 4)),
)
# The head loss takes the first of its kind.
#   logits  h Wᵀ      capped  beside the cap's derivative, which takes registers      head_dx  dz W
HEAD_TILES = (
    ("logits", 80, Tile(128, 128, 64, 8, 3)),
    ("logits", 90, Tile(128, 256, 64, 8, 4)),
    ("capped", 80, Tile(128, 64, 64, 8, 3)),
    ("capped", 90, Tile(128, 128, 64, 8, 4)),
    ("head_dx", 80, Tile(128, 128, 64, 8, 3)),
    ("head_dx", 90, Tile(128, 256, 64, 8, 4)),
)
# Rows that do not start at multiples of 16 bytes come through registers, and a larger tile spills.
UNALIGNED_TILE = Tile(64, 64, 32, 8, 2)
UNALIGNED_PAIR_TILE = Tile(64, 32, 32, 8, 2)  # gate_up has two accumulators
# fp32 runs without tensor cores.
FP32_TILE = Tile(64, 64, 32, 4, 2)
FP32_PAIR_TILE = Tile(32, 64, 32, 4, 2)  # gate_up has two accumulators
HEAD_UNALIGNED_TILE = Tile(64, 64, 32, 4, 2)  # elements are loaded one by one
INTERPRETER_TILE = Tile(64, 64, 64, 1, 1, group=2)  # few, large steps: each costs a millisecond
HEAD_INTERPRETER_TILE = Tile(64, 128, 128, 1, 1, group=2)


def pick(
    kind: str, arch: int, itemsize: int, rows: int, cols: int, sms: int, aligned: bool = True
) -> Tile:
    """The tile for an output [rows, cols] of `itemsize` bytes an element on `sms` processors.

    `aligned`: every row starts at a multiple of 16 bytes.
    """
    return _tried.get(kind) or _pick(kind, arch, itemsize, rows, cols, sms, aligned)


@functools.lru_cache(4096)
def _pick(
    kind: str, arch: int, itemsize: int, rows: int, cols: int, sms: int, aligned: bool
) -> Tile:
    if arch and itemsize == 2 and aligned and (tile := _fitting(kind, arch, rows, cols)):
        return tile
    for tile in (tiles := _table(BF16_TILES, kind, arch, itemsize, aligned)):
        if 10 * ceil_div(rows, tile.bm) * ceil_div(cols, tile.bn) >= 9 * sms:
            return tile
    return tiles[-1]


def pick_split(
    kind: str, arch: int, itemsize: int, rows: int, cols: int, aligned: bool = True
) -> Tile:
    """The tile for a split product with an output [rows, cols]; `aligned` as for pick."""
    return _tried.get(kind) or _pick_split(kind, arch, itemsize, rows, cols, aligned)


@functools.lru_cache(4096)
def _pick_split(kind: str, arch: int, itemsize: int, rows: int, cols: int, aligned: bool) -> Tile:
    if arch and itemsize == 2 and aligned and (tile := _fitting(kind, arch, rows, cols)):
        return tile
    for tile in (tiles := _table(BF16_SPLIT_TILES, kind, arch, itemsize, aligned)):
        if tile.bm <= rows and tile.bn <= cols:
            return tile
    return tiles[-1]


def head_tiles(arch: int, itemsize: int, aligned: bool, capped: bool) -> tuple[Tile, Tile]:
    """The tiles of the head's logits and of dz W; `aligned` says whether rows start on 16 bytes."""
    if arch == 0:
        return HEAD_INTERPRETER_TILE, HEAD_INTERPRETER_TILE
    if itemsize == 2 and not aligned:
        return HEAD_UNALIGNED_TILE, HEAD_UNALIGNED_TILE
    first, second = (
        _tried.get(kind)
        or (_fitting(kind, arch, 0, 0) if itemsize == 2 else None)
        or _table(HEAD_TILES, kind, arch, itemsize)[0]
        for kind in ("capped" if capped else "logits", "head_dx")
    )
    return first, second


def _table(
    table: Sequence[tuple[str, int, Tile]],
    kind: str,
    arch: int,
    itemsize: int,
    aligned: bool = True,
) -> list[Tile]:
    if arch == 0:
        return [INTERPRETER_TILE]
    if itemsize != 2:
        return [FP32_PAIR_TILE if kind == "gate_up" else FP32_TILE]
    if not aligned:
        return [UNALIGNED_PAIR_TILE if kind == "gate_up" else UNALIGNED_TILE]
    # sm_120 has the shared memory and the mma instructions of sm_80's kin.
    arch = 80 if arch >= 120 else arch
    newest = max(first for k, first, _ in table if k == kind and first <= arch)
    return [tile for k, first, tile in table if k == kind and first == newest]


# One entry a line: (op, first architecture, most tokens or None, way); the first that fits wins,
# and where none does (GPUs without bf16 tensor cores) the way is plain.
#   triton  the fused kernels      plain  library products, as on a CPU
# Of so few tokens no pass over them is worth a fusion, and each launch counts. From sm_90 on a
# library's product is expected to come nearer to the card's rate than Triton's: there Triton runs
# what saves a pass, SwiGLU in its product and the sum of a group's dx. Over a base in FP8 the plain
# way writes W anew in 16 bits at each call, which no library's rate makes up for. Not measured.
FEW = 31
WAYS = (
    ("linear", 80, FEW, "plain"),
    ("group", 80, FEW, "plain"),
    ("gate_up", 80, FEW, "plain"),
    ("linear", 90, None, "plain"),
    ("linear", 80, None, "triton"),
    ("group", 80, None, "triton"),
    ("gate_up", 80, None, "triton"),
    ("fp8", 89, None, "triton"),
)


def way(op: str, arch: int, tokens: int) -> str:
    """The way to run an op on CUDA."""
    for name, first, most, chosen in WAYS:
        if name == op and first <= arch and (most is None or tokens <= most):
            return chosen
    return "plain"
