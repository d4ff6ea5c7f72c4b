"""Memory of this process or device: the peak, what is left, and whether it was too little."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path

import torch


def peak_bytes(device: torch.device) -> int:
    """The high-water mark: allocated memory on a GPU, resident memory of the process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    with contextlib.suppress(OSError, ValueError, IndexError):
        status = Path("/proc/self/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) * 1024
    if sys.platform == "win32":
        return 0
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def reset_peak(device: torch.device) -> None:
    """Starts the high-water mark anew where the system allows it."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def gib(n: float) -> str:
    return f"{n / 2**30:.1f} GiB"


def free_bytes(device: torch.device) -> int | None:
    """Memory that can still be taken: on a GPU what the driver and torch's own cache have left,
    on a CPU what the system and a container's limit leave; None where that cannot be asked."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    left = []
    with contextlib.suppress(OSError, ValueError, IndexError):
        meminfo = Path("/proc/meminfo").read_text()
        left.append(int(meminfo.split("MemAvailable:")[1].split()[0]) * 1024)
    with contextlib.suppress(OSError, ValueError, IndexError):
        group = Path("/sys/fs/cgroup")
        limit = int((group / "memory.max").read_text())
        used = int((group / "memory.current").read_text())
        # Pages of files that were read are counted as used, but are given back on demand.
        cached = (group / "memory.stat").read_text().split("inactive_file ")[1].split()[0]
        left.append(limit - used + int(cached))
    return min(left, default=None)


def out_of_memory(error: BaseException) -> bool:
    """Whether an error, of whatever library, says that the memory is full."""
    text = str(error)
    return (
        isinstance(error, torch.OutOfMemoryError)
        or ("DefaultCPUAllocator" in text and "memory" in text)
        or ("CUDA" in text and "out of memory" in text)
        or "CUBLAS_STATUS_ALLOC_FAILED" in text
    )
