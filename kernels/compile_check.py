"""Compiles Triton kernels for a GPU that is not there, and reads what they would use of it.

Registers and stack come from the cubin through the `cuobjdump` that Triton carries: a kernel
without a stack does not spill. Shared memory is what Triton would ask for at launch.
"""

from __future__ import annotations

import importlib
import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from liftcore.kernels.tiles import CompileCase

MODULES = ("lora_triton", "lora_backward_triton", "head_loss_fused", "head_loss_cublas")
# Bytes of shared memory that one program may have: A100; H100; B200.
SHARED_LIMIT = {80: 166_912, 90: 232_448, 100: 232_448}


@dataclass(frozen=True)
class Usage:
    """What one compiled kernel uses of a GPU; `matrix` names its tensor-core instruction."""

    kernel: str
    arch: int
    warps: int
    stages: int
    registers: int
    spilled: int
    shared: int
    matrix: str


def all_cases(arch: int) -> list[CompileCase]:
    """The cases of every Triton module, for one architecture (80, 90, 100)."""
    cases = []
    for name in MODULES:
        module = importlib.import_module(f"liftcore.kernels.{name}")
        cases += module.compile_cases(arch)
    return cases


def compile_case(case: CompileCase, arch: int) -> Usage:
    """Compiles one case for sm_<arch>; raises what Triton raises when it cannot."""
    import triton
    from triton.backends.compiler import GPUTarget

    compiled = triton.compile(
        case.source(), target=GPUTarget("cuda", arch, 32), options=dict(case.options)
    )
    registers, stack = _resources(compiled.asm["cubin"])
    return Usage(
        case.name,
        arch,
        case.num_warps,
        case.num_stages,
        registers,
        stack,
        compiled.metadata.shared,
        _matrix_instruction(compiled.asm["ptx"]),
    )


def _resources(cubin: bytes) -> tuple[int, int]:
    """Registers a thread and bytes of stack a thread of the one kernel in a cubin."""
    import triton

    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        text = subprocess.run(
            [tool, "-res-usage", file.name], check=True, capture_output=True, text=True
        ).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)", text)
    if found is None:
        raise RuntimeError(f"cuobjdump said nothing of registers:\n{text}")
    registers, stack, local = map(int, found.groups())
    return registers, max(stack, local)


def _matrix_instruction(ptx: str) -> str:
    for name in ("tcgen05.mma", "wgmma.mma_async", "mma.sync"):
        if name in ptx:
            return name
    return ""
