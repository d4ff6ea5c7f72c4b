"""Tile sizes and the way to run a product, by GPU, dtype and shape; one entry a line.

Every entry carries the figure that justifies it, or says that it is not measured yet. A tile
only changes the speed, never the result beyond rounding.
"""

from __future__ import annotations

import functools
import importlib.util
import os
from dataclasses import dataclass, field
from importlib import metadata
from typing import Any

import torch


@dataclass(frozen=True)
class CompileCase:
    """One kernel at one set of tiles, to compile for a GPU that is not there.

    `signature` maps every argument to its type ("*bf16", "i32", "fp32", "constexpr",
    "tensordesc<bf16[128, 64]>"), `constexprs` the "constexpr" ones to their values. `divisible`
    names the pointers and integers that are multiples of 16, as the launcher would find them.
    """

    name: str
    kernel: Any
    signature: dict[str, str]
    constexprs: dict[str, Any]
    num_warps: int
    num_stages: int
    divisible: tuple[str, ...] = field(default=())

    def source(self):
        """The triton.compiler.ASTSource of this case, with the divisibility hints in it."""
        from triton.compiler import ASTSource

        names = list(self.signature)
        hints = {(names.index(n),): [["tt.divisibility", 16]] for n in self.divisible}
        return ASTSource(self.kernel, self.signature, self.constexprs, hints)

    @property
    def options(self) -> dict[str, int]:
        return {"num_warps": self.num_warps, "num_stages": self.num_stages}


@dataclass(frozen=True)
class Tile:
    """Rows, columns and depth of a tile, warps, pipeline stages, and row tiles per L2 group."""

    bm: int
    bn: int
    bk: int
    warps: int
    stages: int
    group: int = 8


# Architectures that launches are recorded for (launch.py); the last is that of the meta device.
planned: list[int] = []
# A100, RTX 4090, H100 and H200, B200, RTX 5090
PROCESSORS = {80: 108, 89: 128, 90: 132, 100: 148, 120: 170}


def read_facts(device: torch.device) -> tuple[int, int]:
    """(architecture, processors) of a device that is there."""
    if device.type != "cuda":
        return 0, 3  # few, so that a program of the interpreter runs several tiles
    card = torch.cuda.get_device_properties(device)
    return 10 * card.major + card.minor, card.multi_processor_count


facts = functools.cache(read_facts)


def architecture(device: torch.device) -> int:
    """Compute capability as 80, 90, 100; 0 for the interpreter on a CPU."""
    if device.type == "meta":
        return planned[-1]
    # torch.compile folds the plain call into a constant and warns of a cache.
    return (read_facts if torch.compiler.is_compiling() else facts)(device)[0]


def processors(device: torch.device) -> int:
    """Streaming multiprocessors."""
    return PROCESSORS[planned[-1]] if device.type == "meta" else facts(device)[1]


# TRITON_INTERPRET=1 asks for the Triton path on CPU tensors; Triton reads it when imported.
INTERPRET = os.environ.get("TRITON_INTERPRET", "0") == "1"


def _has_triton() -> bool:
    """Whether Triton 3.6 or newer targets NVIDIA GPUs here; the kernels run on no older one."""
    if torch.version.hip is not None or importlib.util.find_spec("triton") is None:
        return False
    try:
        version = metadata.version("triton")
    except metadata.PackageNotFoundError:  # a distribution of another name
        import triton

        version = triton.__version__
    return tuple(int(part) for part in version.split(".")[:2]) >= (3, 6)


HAS_TRITON = _has_triton()


def interpreting() -> bool:
    """True when CPU tensors take the Triton path."""
    return INTERPRET and HAS_TRITON


def ceil_div(a: int, b: int) -> int:
    return -(-a // b)


# One entry a line: (kind, first architecture, tile), from the widest tile to the smallest. The
# first whose tiles keep nine processors of ten busy is taken, else the smallest.
#   forward  y = x Wᵀ + tail     dx  Σ dy W + tail     gate_up  two products and SwiGLU
BF16_TILES = (
    ("forward", 80, Tile(128, 128, 64, 8, 3)),  # not measured yet
    ("forward", 80, Tile(64, 128, 64, 4, 3)),  # not measured yet
    ("forward", 80, Tile(64, 64, 64, 4, 3)),  # not measured yet
    ("forward", 90, Tile(128, 256, 64, 8, 3)),  # not measured yet
    ("forward", 90, Tile(128, 128, 64, 8, 4)),  # not measured yet
    ("forward", 90, Tile(64, 128, 64, 4, 4)),  # not measured yet
    ("forward", 90, Tile(64, 64, 64, 4, 4)),  # not measured yet
    ("dx", 80, Tile(128, 128, 64, 8, 3)),  # not measured yet
    ("dx", 80, Tile(64, 128, 64, 4, 3)),  # not measured yet
    ("dx", 80, Tile(64, 64, 64, 4, 3)),  # not measured yet
    ("dx", 90, Tile(128, 256, 64, 8, 3)),  # not measured yet
    ("dx", 90, Tile(128, 128, 64, 8, 4)),  # not measured yet
    ("dx", 90, Tile(64, 128, 64, 4, 4)),  # not measured yet
    ("dx", 90, Tile(64, 64, 64, 4, 4)),  # not measured yet
    ("gate_up", 80, Tile(128, 128, 32, 8, 3)),  # not measured yet
    ("gate_up", 80, Tile(64, 64, 64, 4, 3)),  # not measured yet
    ("gate_up", 90, Tile(128, 128, 64, 8, 3)),  # not measured yet
    ("gate_up", 90, Tile(64, 64, 64, 4, 4)),  # not measured yet
)
# Products split over their depth: the first tile that is not larger than the result, else the
# last.         down  x Aᵀ and dy B, [T, R]         outer  dA [R, K] and dB [N, R]
BF16_SPLIT_TILES = (
    ("down", 80, Tile(64, 128, 64, 4, 4)),  # not measured yet
    ("down", 80, Tile(64, 64, 64, 4, 4)),  # not measured yet
    ("down", 80, Tile(64, 32, 64, 4, 4)),  # not measured yet
    ("down", 90, Tile(64, 128, 64, 4, 5)),  # not measured yet
    ("down", 90, Tile(64, 64, 64, 4, 5)),  # not measured yet
    ("down", 90, Tile(64, 32, 64, 4, 5)),  # not measured yet
    ("outer", 80, Tile(128, 128, 64, 8, 3)),  # not measured yet
    ("outer", 80, Tile(64, 64, 64, 4, 3)),  # not measured yet
    ("outer", 90, Tile(128, 128, 64, 8, 4)),  # not measured yet
    ("outer", 90, Tile(64, 64, 64, 4, 4)),  # not measured yet
)
# The head loss takes the first of its kind.
#   logits  h Wᵀ      capped  beside the cap's derivative, which takes registers      head_dx  dz W
HEAD_TILES = (
    ("logits", 80, Tile(128, 128, 64, 8, 3)),  # not measured yet
    ("logits", 90, Tile(128, 256, 64, 8, 3)),  # not measured yet
    ("capped", 80, Tile(128, 64, 64, 8, 3)),  # not measured yet
    ("capped", 90, Tile(128, 128, 64, 8, 4)),  # not measured yet
    ("head_dx", 80, Tile(128, 128, 64, 8, 3)),  # not measured yet
    ("head_dx", 90, Tile(128, 256, 64, 8, 4)),  # not measured yet
)
# Rows that do not start at multiples of 16 bytes come through registers, and a larger tile spills.
UNALIGNED_TILE = Tile(64, 64, 32, 8, 2)  # not measured yet
UNALIGNED_PAIR_TILE = Tile(64, 32, 32, 8, 2)  # gate_up has two accumulators; not measured yet
# fp32 runs without tensor cores.
FP32_TILE = Tile(64, 64, 32, 4, 2)  # not measured yet
FP32_PAIR_TILE = Tile(32, 64, 32, 4, 2)  # gate_up has two accumulators; not measured yet
HEAD_UNALIGNED_TILE = Tile(64, 64, 32, 4, 2)  # elements are loaded one by one; not measured yet
INTERPRETER_TILE = Tile(64, 64, 64, 1, 1, group=2)  # few, large steps: each costs a millisecond
HEAD_INTERPRETER_TILE = Tile(64, 128, 128, 1, 1, group=2)


@functools.lru_cache(4096)
def pick(
    kind: str, arch: int, itemsize: int, rows: int, cols: int, sms: int, aligned: bool = True
) -> Tile:
    """The tile for an output [rows, cols] of `itemsize` bytes an element on `sms` processors.

    `aligned`: every row starts at a multiple of 16 bytes.
    """
    for tile in (tiles := _table(BF16_TILES, kind, arch, itemsize, aligned)):
        if 10 * ceil_div(rows, tile.bm) * ceil_div(cols, tile.bn) >= 9 * sms:
            return tile
    return tiles[-1]


@functools.lru_cache(4096)
def pick_split(
    kind: str, arch: int, itemsize: int, rows: int, cols: int, aligned: bool = True
) -> Tile:
    """The tile for a split product with an output [rows, cols]; `aligned` as for pick."""
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
    logits = _table(HEAD_TILES, "capped" if capped else "logits", arch, itemsize)
    return logits[0], _table(HEAD_TILES, "head_dx", arch, itemsize)[0]


def _table(table, kind: str, arch: int, itemsize: int, aligned: bool = True) -> list[Tile]:
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
# The K-concatenated product needs its own weight buffer, so only the caller can choose it.
WAYS = (
    ("linear", 80, None, "triton"),  # not measured yet
    ("group", 80, None, "triton"),  # not measured yet
    ("gate_up", 80, None, "triton"),  # not measured yet
)


def way(op: str, arch: int, tokens: int) -> str:
    """The way to run an op on CUDA."""
    for name, first, most, chosen in WAYS:
        if name == op and first <= arch and (most is None or tokens <= most):
            return chosen
    return "plain"
