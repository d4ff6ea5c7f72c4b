"""What a compiled kernel would make of a GPU, computed from its code and its tiles: no measurement.

    programs   that fit on a processor at once, by registers, shared memory and threads
    loop       instructions of the longest loop with a product, as PTX counts them
    traffic    bytes that the tiles of a product ask of the L2 cache, times the least that there is
    seconds    of a launch: whole waves of tiles at the tensor cores' rate, or the least bytes
               through memory, whichever takes longer; beside the floor, which knows no waves

Rates are an H100's: see bench/rehearsal/cost.py. What L2 makes of its traffic is not computed.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from bench.rehearsal import cost
from liftcore.kernels.device import PROCESSORS
from liftcore.kernels.tiles import ceil_div
from liftcore.kernels.tiling import Launch

# Of a processor: registers, threads, and bytes of shared memory by architecture.
REGISTERS, THREADS = 65536, 2048
SHARED = {80: 167_936, 89: 102_400, 90: 233_472, 100: 233_472, 120: 102_400}


PRODUCT = re.compile(r"wgmma\.mma_async|mma\.sync|tcgen05\.mma")


class Computed(NamedTuple):
    """See above; `traffic` is 0 without a product."""

    programs: int
    loop: int
    traffic: float
    seconds: float
    floor: float


def computed(launch: Launch, arch: int, registers: int, shared: int, ptx: str) -> Computed:
    programs = occupancy(arch, registers, shared, launch.warps)
    floor = cost.of_launch(launch)
    least = cost.bytes_of(launch)
    if not cost.products(launch):
        return Computed(programs, longest_loop(ptx), 0.0, least / cost.BANDWIDTH, floor)
    asked, tiles, each = _tiles(launch)
    waves = ceil_div(tiles, PROCESSORS[arch])
    seconds = max(waves * each * PROCESSORS[arch], least / cost.BANDWIDTH)
    return Computed(programs, longest_loop(ptx), asked / least, seconds, floor)


def occupancy(arch: int, registers: int, shared: int, warps: int) -> int:
    """Programs of so many warps that fit on a processor; registers are given out by eights."""
    by_registers = REGISTERS // max(1, -(-registers // 8) * 8 * 32 * warps)
    by_shared = SHARED[arch] // (shared + 1024)
    return min(by_registers, by_shared, THREADS // (32 * warps))


def longest_loop(ptx: str) -> int:
    """Instructions of the longest stretch that ends in a branch back and holds a product; 0 where
    there is none."""
    lines = [line.strip() for line in ptx.splitlines()]
    labels = {m.group(1): i for i, line in enumerate(lines) if (m := re.match(r"(\$\w+):", line))}
    longest = 0
    for i, line in enumerate(lines):
        branch = re.search(r"\bbra(?:\.uni)?\s+(\$\w+)", line)
        start = labels.get(branch.group(1), i) if branch else i
        body = lines[start:i]
        if start < i and any(map(PRODUCT.search, body)) and _innermost(body, labels, start):
            longest = max(longest, sum(text.endswith(";") for text in body))
    return longest


def _innermost(body: list[str], labels: dict[str, int], start: int) -> bool:
    """No other branch back lies in it."""
    for i, line in enumerate(body):
        branch = re.search(r"\bbra(?:\.uni)?\s+(\$\w+)", line)
        if branch and start <= labels.get(branch.group(1), -1) < start + i:
            return False
    return True


def _tiles(launch: Launch) -> tuple[float, int, float]:
    """(bytes that all tiles ask for, tiles, seconds of a tile at the rate of a whole card)."""
    c = launch.constexprs
    a = dict(zip(launch.kernel.arg_names, launch.args, strict=False))
    name = launch.kernel.__name__
    rows, cols = a.get("rows", a.get("most")), a.get("cols", a.get("V"))
    if name == "product_kernel":
        cols = a["K"]
    tiles = ceil_div(rows, c["BM"]) * ceil_div(cols, c["BN"])
    # Spans of the depth, or adapters.
    split = launch.grid[1] if len(launch.grid) > 1 else 1
    pair = 2 if name == "gate_up_kernel" else 1
    asked, each = rows * cols * cost.element_size(launch) * split, 0.0
    for volume, size in cost.products(launch):
        depth = volume / (rows * cols * pair)
        asked += tiles * depth * (c["BM"] + pair * c["BN"]) * size
        each += 2 * c["BM"] * c["BN"] * pair * depth / split / cost.RATES[size]
    return asked, tiles * split, each
