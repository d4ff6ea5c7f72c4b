"""liftcore info: device, versions, and which path each op takes."""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from liftcore import __version__
from liftcore.cli import options
from liftcore.terminal import table

if TYPE_CHECKING:
    import torch

PACKAGES = ("torch", "triton", "transformers", "safetensors", "numpy", "peft", "matplotlib")


def add(verbs: options.Verbs) -> None:
    options.verb(verbs, "info", run, "device, versions, and which path the ops take")


def run(args: argparse.Namespace) -> dict:
    facts = info()
    library = "in use" if facts["library"] else "not in use"
    lines = [
        ("device", f"{facts['device']} ({facts['device_name']}), {facts['dtype']}"),
        ("ops", f"{facts['ops']}, because: {facts['ops_because']}"),
        ("library", f"{library}: {facts['library_because']}"),
    ]
    versions = [*facts["versions"].items()]
    text = [f"{name:<9} {value}" for name, value in lines]
    text += [f"{name:<12} {version}" for name, version in versions]
    table("\n".join(text), ("", ""), [*lines, *versions], {"^not .*": "yellow"})
    return facts


def versions(packages: Sequence[str] = PACKAGES) -> dict[str, str]:
    """liftcore, Python and the packages, with "not installed" where so."""
    known = {"liftcore": __version__, "python": platform.python_version()}
    for name in packages:
        try:
            known[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            known[name] = "not installed"
    return known


def device_name(device: torch.device) -> str:
    """The GPU's name, or the processor's with the number of threads in use."""
    import torch

    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{_processor()}, {torch.get_num_threads()} threads"


def _processor() -> str:
    import torch

    with contextlib.suppress(OSError, IndexError):
        line = Path("/proc/cpuinfo").read_text().split("model name")[1].splitlines()[0]
        return line.split(":")[1].strip()
    known = getattr(torch.cpu, "get_capabilities", dict)()
    return known.get("cpu_name") or platform.processor() or platform.machine()


def path(device: torch.device) -> tuple[str, str]:
    """(path the ops take on a device, why)."""
    import torch

    from liftcore.kernels import lora
    from liftcore.kernels.device import HAS_TRITON
    from liftcore.model import default_dtype

    x = torch.empty(1024, 1, device=device, dtype=default_dtype(device))  # fewer gain nothing
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
    import torch

    from liftcore.kernels import native
    from liftcore.model import cpu_has_bf16, default_device, default_dtype

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
