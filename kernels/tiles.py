"""Tile sizes and the way to run a product, by GPU, dtype and shape; one entry a line.

Every entry carries the figure that justifies it, or says that it is not measured yet. A tile
only changes the speed, never the result beyond rounding.
"""

from __future__ import annotations

import functools
import os
from dataclasses import dataclass, field
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


@functools.cache
def architecture(device: torch.device) -> int:
    """Compute capability as 80, 90, 100; 0 for the interpreter on a CPU."""
    if device.type != "cuda":
        return 0
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor


@functools.cache
def processors(device: torch.device) -> int:
    """Streaming multiprocessors; few on the interpreter, so that a program runs several tiles."""
    if device.type != "cuda":
        return 3
    return torch.cuda.get_device_properties(device).multi_processor_count


@functools.cache
def interpreting() -> bool:
    """True when TRITON_INTERPRET=1 asks for the Triton path on CPU tensors."""
    return os.environ.get("TRITON_INTERPRET", "0") == "1"
