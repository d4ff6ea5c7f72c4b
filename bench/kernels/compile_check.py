"""Compiles Triton kernels for a GPU that is not there, and reads what they would use of it.

Registers and stack come from the cubin through the `cuobjdump` that Triton carries: a kernel
without a stack does not spill. Shared memory is what Triton would ask for at launch.
"""

from __future__ import annotations

import functools
import multiprocessing
import re
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.kernels.compile_cases import CALLS, MORE, CompileCase, cases, hardest
from bench.kernels.computed import computed
from bench.kernels.jit import compiled

ARCHITECTURES = (80, 89, 90, 100, 120)
# Bytes of shared memory that one program may have: A100; L4 and RTX 40; H100; B200; RTX 50.
SHARED_LIMIT = {80: 166_912, 89: 101_376, 90: 232_448, 100: 232_448, 120: 101_376}
# Bytes of stack that a thread may have: GPUs that borrow the tiles of sm_80 may spill a little.
STACK_LIMIT = {80: 0, 89: 256, 90: 0, 100: 0, 120: 256}


@dataclass(frozen=True)
class Usage:
    """What one compiled kernel uses of a GPU, or the error that Triton raised.

    matrix       the tensor-core instruction in its PTX
    has_product  whether the kernel asks for a product at all
    loads, stores   copies by TMA in its PTX, into and out of shared memory
    pending      most wgmma that may run on while the next one's operands are waited for
    programs, loop, traffic, seconds, floor   of one launch, as computed.py computes them
    """

    module: str
    kernel: str
    arch: int
    warps: int
    stages: int
    registers: int = 0
    spilled: int = 0
    shared: int = 0
    matrix: str = ""
    has_product: bool = False
    loads: int = 0
    stores: int = 0
    pending: int = 0
    programs: int = 0
    loop: int = 0
    traffic: float = 0.0
    seconds: float = 0.0
    floor: float = 0.0
    error: str = ""


def compile_all(
    archs: Sequence[int] = ARCHITECTURES,
    processes: int = 2,
    modules: Sequence[str] = (*CALLS, *MORE),
    hardest_only: bool = False,
) -> list[Usage]:
    """Every case of these modules for these architectures, or the hardest, in this process or in
    several; an error is reported, not raised."""
    places = hardest if hardest_only else _numbers
    jobs = [(m, arch, i) for arch in archs for m in modules for i in places(m, arch)]
    if processes == 1:
        return [_job(job) for job in jobs]
    # Not a fork: Triton's compiler and torch keep threads.
    with multiprocessing.get_context("spawn").Pool(processes) as pool:
        return pool.map(_job, jobs, chunksize=4)


def compile_case(case: CompileCase, arch: int, module: str = "") -> Usage:
    """Compiles one case for sm_<arch>; raises what Triton raises when it cannot."""
    kernel = compiled(case.launch, arch)
    ptx = kernel.asm["ptx"]
    registers, stack = resources(kernel.asm["cubin"])
    return Usage(
        module=module,
        kernel=case.name,
        arch=arch,
        warps=case.launch.warps,
        stages=case.launch.stages,
        registers=registers,
        spilled=stack,
        shared=kernel.metadata.shared,
        matrix=_matrix_instruction(ptx),
        has_product="tt.dot" in kernel.asm["ttir"],
        loads=len(re.findall(r"cp\.async\.bulk\.tensor\S*shared\S*\.global", ptx)),
        stores=len(re.findall(r"cp\.async\.bulk\.tensor\S*global\S*\.shared", ptx)),
        pending=max(
            map(int, re.findall(r"wgmma\.wait_group\.sync\.aligned (\d+)", ptx)), default=0
        ),
        **computed(case.launch, arch, registers, kernel.metadata.shared, ptx)._asdict(),
    )


_cases = functools.cache(cases)


def _numbers(module: str, arch: int) -> range:
    return range(len(_cases(module, arch)))


def _job(job: tuple[str, int, int]) -> Usage:
    module, arch, i = job
    case = _cases(module, arch)[i]
    try:
        return compile_case(case, arch, module)
    except Exception as error:
        launch = case.launch
        return Usage(module, case.name, arch, launch.warps, launch.stages, error=repr(error))


def resources(cubin: bytes) -> tuple[int, int]:
    """Registers a thread and bytes of stack a thread of the one kernel in a cubin."""
    import triton

    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        text = subprocess.run(
            [tool, "-res-usage", file.name], check=True, capture_output=True, text=True
        ).stdout
    usage = re.search(r"REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)", text)
    if usage is None:
        raise RuntimeError(f"cuobjdump said nothing of registers:\n{text}")
    registers, stack, local = map(int, usage.groups())
    return registers, max(stack, local)


def _matrix_instruction(ptx: str) -> str:
    for name in ("tcgen05.mma", "wgmma.mma_async", "mma.sync"):
        if name in ptx:
            return name
    return ""
