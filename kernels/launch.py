"""One door for every kernel launch, so that a launch can also be recorded and not run.

Under `record` the launchers, given tensors of the meta device, pick their tiles as on a GPU of
the named architecture, and each launch becomes a CompileCase.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from liftcore.kernels.tiles import CompileCase, planned

TYPES = {
    torch.bfloat16: "bf16",
    torch.float16: "fp16",
    torch.float32: "fp32",
    torch.int64: "i64",
    torch.int32: "i32",
}
_cases: list[CompileCase] = []


def launch(
    kernel, grid: Sequence[int], args: Sequence[Any], constexprs: dict, warps=4, stages=3
) -> None:
    """kernel[grid](*args, **constexprs), or only its record under `record`."""
    if planned:
        _cases.append(_case(kernel, args, constexprs, warps, stages))
    else:
        kernel[grid](*args, **constexprs, num_warps=warps, num_stages=stages)


def on_device(x: Tensor):
    """Triton launches on the current device: make it the one of x."""
    if x.device.type == "cuda" and x.device.index != torch.cuda.current_device():
        return torch.cuda.device(x.device)
    return nullcontext()


def record(arch: int, calls: Callable[[], Any]) -> list[CompileCase]:
    """The launches of `calls` on a GPU of this architecture, each kernel and tile once."""
    planned.append(arch)
    try:
        calls()
        return list({str(case): case for case in _cases}.values())
    finally:
        planned.pop()
        _cases.clear()


def _case(kernel, args, constexprs, warps, stages) -> CompileCase:
    signature, values, divisible = {}, dict(constexprs), []
    for name, value in zip(kernel.arg_names, args, strict=False):
        signature[name] = _type(value)
        if signature[name] == "constexpr":
            values[name] = value
        elif isinstance(value, Tensor) or (isinstance(value, int) and value % 16 == 0):
            divisible.append(name)
    signature.update(dict.fromkeys(constexprs, "constexpr"))
    sizes = "x".join(str(v) for k, v in constexprs.items() if k.startswith("B") and k[1:] in "MNKT")
    flags = "".join(f" {v}" for v in constexprs.values() if isinstance(v, str))
    flags += "".join(f" {k.lower()}" for k, v in constexprs.items() if v is True)
    pairs = f" {constexprs['PAIRS']} pairs" if "PAIRS" in constexprs else ""
    strides = [n for n, t in signature.items() if n.startswith("stride") and t != "constexpr"]
    half = any("bf16" in t or "fp16" in t for t in signature.values())
    hard = "" if half else " fp32"
    hard += " unaligned" if not set(strides) <= set(divisible) else ""
    name = f"{kernel.__name__} {sizes}{pairs}{flags}{hard}".strip()
    return CompileCase(name, kernel, signature, values, warps, stages, tuple(divisible))


def _type(value) -> str:
    """The type of an argument as Triton's signatures spell it."""
    if isinstance(value, Tensor):
        return "*" + TYPES[value.dtype]
    if isinstance(value, float):
        return "fp32"
    if isinstance(value, int) and value != 1:  # Triton makes a constant of 1
        return "i32" if abs(value) < 2**31 else "i64"
    if value is None or value == 1:
        return "constexpr"
    return f"tensordesc<{TYPES[value.base.dtype]}{value.block_shape}>"
