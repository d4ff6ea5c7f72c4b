"""What runs here: device, versions, and which path each op takes."""

from __future__ import annotations

import importlib.metadata
import platform

import torch

from liftcore import __version__
from liftcore.kernels import lora, native
from liftcore.kernels.device import HAS_TRITON
from liftcore.model import cpu_has_bf16, default_device, default_dtype

PACKAGES = ("torch", "triton", "transformers", "safetensors", "numpy", "peft", "matplotlib")


def versions() -> dict[str, str]:
    """liftcore, Python and the packages that matter, with "not installed" where so."""
    found = {"liftcore": __version__, "python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def device_name(device: torch.device) -> str:
    """The GPU's name, or the processor's with the number of threads in use."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    name = (
        torch.cpu.get_capabilities().get("cpu_name")
        if hasattr(torch.cpu, "get_capabilities")
        else ""
    )
    return (
        f"{name or platform.processor() or platform.machine()}, {torch.get_num_threads()} threads"
    )


def path(device: torch.device) -> tuple[str, str]:
    """(path the ops take on a device, why)."""
    x = torch.empty(1, 1, device=device, dtype=default_dtype(device))
    chosen = lora.path(x)
    if chosen != "plain":
        return f"Triton kernels ({chosen})", f"a {device.type} device that they are made for"
    if not HAS_TRITON:
        return "plain PyTorch", "Triton is not installed, or older than 3.6"
    if device.type != "cuda":
        return "plain PyTorch", f"Triton kernels need a CUDA device; this is {device}"
    return "plain PyTorch", f"{device_name(device)} is older than the kernels are made for"


def info() -> dict:
    """Everything `liftcore info` prints."""
    device = torch.device(default_device())
    ops, why = path(device)
    library, where = native.status()
    return {
        "device": str(device),
        "device_name": device_name(device),
        "dtype": str(default_dtype(device)).removeprefix("torch."),
        "cpu_bf16": cpu_has_bf16(),
        "ops": ops,
        "ops_because": why,
        "library": library,
        "library_because": where,
        "versions": versions(),
    }
