"""What Triton's own JIT makes of a launch, for a GPU that is not there.

A stand-in for Triton's driver names the architecture, and `warmup` takes a launch's arguments as a
launch does: the specialisation, the source and the options are those of the real launch, and so is
the hash under which the cache (TRITON_CACHE_DIR) keeps the kernel. No GPU is asked.
"""

from __future__ import annotations

import json
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

from liftcore.kernels.tiling import Launch

# Of the stand-in's devices: what is only looked at, and what is compiled, which the JIT keeps.
_LOOKED_AT, _COMPILED = 0, 1000


class _Driver:
    """As much of a driver as the JIT asks for before it loads a kernel."""

    def __init__(self, arch: int, first: int):
        self.arch, self.first = arch, first

    def get_current_device(self) -> int:
        """A number for each architecture: the JIT keeps kernels by device."""
        return self.first + self.arch

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.arch, 32)


@contextmanager
def _driven(arch: int, first: int) -> Generator[None]:
    before = driver._active
    driver._active = _Driver(arch, first)  # ty: ignore[invalid-assignment]  # as much as is asked
    try:
        yield
    finally:
        driver._active = before


def compiled(launch: Launch, arch: int) -> Any:
    """The triton.compiler.CompiledKernel that the launch would run on sm_<arch>.

    Raises what Triton raises when it cannot. TRITON_CACHE_DIR keeps it.
    """
    with _driven(arch, _COMPILED):
        return _warmed(launch)


def specialised(launch: Launch, arch: int) -> str:
    """The name of the launch's kernel in Triton's cache: launches of one name share a kernel, and
    only the first of them compiles."""
    seen = []

    def hook(**about: Any) -> bool:
        seen.append(about["compile"])
        return True  # leave it at that

    before, knobs.runtime.jit_cache_hook = knobs.runtime.jit_cache_hook, hook
    try:
        with _driven(arch, _LOOKED_AT):
            _warmed(launch)
    finally:
        knobs.runtime.jit_cache_hook = before
    return launch.kernel.__name__ + " " + str(seen[0]["key"])


def _warmed(launch: Launch) -> Any:
    return launch.kernel.warmup(
        *launch.args,
        grid=tuple(launch.grid),
        **launch.constexprs,
        num_warps=launch.warps,
        num_stages=launch.stages,
    )


def moved(cache: Path) -> int:
    """Tells a cache that was carried to another folder where it is: Triton writes whole paths into
    it. The number of its kernels."""
    groups = list(cache.glob("*/__grp__*.json"))
    for group in groups:
        names = json.loads(group.read_text())["child_paths"]
        here = {name: str(group.resolve().with_name(name)) for name in names}
        group.write_text(json.dumps({"child_paths": here}))
    return len(groups)
