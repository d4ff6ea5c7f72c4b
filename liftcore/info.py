"""What runs here: device, versions, and which path each op takes."""

from __future__ import annotations

import importlib.metadata
import os
import platform

import torch

from liftcore import __version__
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


def path() -> tuple[str, str]:
    """(path the ops take by default, why)."""
    if not torch.cuda.is_available():
        if os.environ.get("TRITON_INTERPRET") == "1":
            return "reference", "Triton kernels are not part of this version"
        return "plain PyTorch", "no CUDA device"
    return "plain PyTorch", "Triton kernels are not part of this version"


def info() -> dict:
    """Everything `liftcore info` prints."""
    device = torch.device(default_device())
    ops, why = path()
    return {
        "device": str(device),
        "device_name": device_name(device),
        "dtype": str(default_dtype(device)).removeprefix("torch."),
        "cpu_bf16": cpu_has_bf16(),
        "ops": ops,
        "ops_because": why,
        "versions": versions(),
    }
