"""The launches of Llama-3-8B and SmolLM2-135M as kernels to compile for a GPU that is not there.

The launchers are called with tensors of the meta device: they pick their tiles as on a GPU of the
named architecture, and leave a record of each launch in place of running it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from liftcore.kernels import head_loss_cublas, head_loss_logits, tiling
from liftcore.kernels.device import planned
from liftcore.kernels.head_loss import Inputs
from liftcore.kernels.head_loss_dhidden import scale_rows
from liftcore.kernels.lora_many_triton import own_outer, own_rows
from liftcore.kernels.lora_split_triton import split_product
from liftcore.kernels.lora_triton import chain, gate_up, swiglu_backward

TYPES = {
    torch.bfloat16: "bf16",
    torch.float16: "fp16",
    torch.float32: "fp32",
    torch.int64: "i64",
    torch.int32: "i32",
    torch.int8: "i8",
    torch.float8_e4m3fn: "fp8e4nv",
}
# Hidden size, width of k and v, width of the MLP, vocabulary.
SIZES = ((4096, 1024, 14336, 128256), (576, 192, 1536, 49152))
TOKENS = (8192, 512)


@dataclass(frozen=True)
class CompileCase:
    """One kernel at one set of tiles.

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

    def source(self) -> Any:
        """The triton.compiler.ASTSource of this case, with the divisibility hints in it."""
        from triton.compiler import ASTSource

        names = list(self.signature)
        hints = {(names.index(n),): [["tt.divisibility", 16]] for n in self.divisible}
        return ASTSource(self.kernel, self.signature, self.constexprs, hints)

    @property
    def options(self) -> dict[str, int]:
        return {"num_warps": self.num_warps, "num_stages": self.num_stages}


def record(arch: int, calls: Callable[[], Any]) -> list[CompileCase]:
    """The launches of `calls` on a GPU of this architecture, each kernel and tile once."""
    planned.append(arch)
    try:
        calls()
        return list({str(case): case for case in map(_case, tiling.recorded)}.values())
    finally:
        planned.pop()
        tiling.recorded.clear()


def _case(launch: tiling.Launch) -> CompileCase:
    kernel, args, constexprs, warps, stages = launch
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


def _type(value: Any) -> str:
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


def matrix(*shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def linear(t: int, k: int, n: int, r: int = 128) -> None:
    x, w, a, b = matrix(t, k), matrix(n, k), matrix(r, k), matrix(n, r)
    s, y = matrix(t, r), matrix(t, n)
    chain(y, s, b, [(x, w)], nt=True)
    chain(y, s, b, [(x, w)], bias=matrix(n), nt=True)
    chain(x, s, a, [(y, w)], nt=False)


def group(t: int, k: int, widths: Sequence[int], r: int = 128) -> None:
    rank = r * len(widths)
    x, a, s = matrix(t, k), matrix(rank, k), matrix(t, rank)
    chain(x, s, a, [(matrix(t, n), matrix(n, k)) for n in widths], nt=False)


def mlp(t: int, k: int, n: int, keep: bool, *, bias: bool = False, gelu: bool = False) -> None:
    r = 128
    parts = matrix(t, 2 * r).split(r, dim=1)
    weights, lora_b = [matrix(n, k)] * 2, [matrix(n, r)] * 2
    biases = [matrix(n) if bias else None] * 2
    gate_up(matrix(t, k), weights, parts, lora_b, [1.0, 1.0], biases, gelu=gelu, keep=keep)


def lora_products() -> None:
    """Forward and dx, in bf16, and some with odd widths; SwiGLU's backward."""
    for t in TOKENS:
        for hidden, kv, wide, _ in SIZES:
            for k, n in ((hidden, hidden), (hidden, kv), (wide, hidden)):
                linear(t, k, n)
            group(t, hidden, (hidden, kv, kv))
            group(t, hidden, (wide, wide))
            for keep in (True, False):
                mlp(t, hidden, wide, keep)
    mlp(8192, 4096, 14336, True, bias=True, gelu=True)
    # Rows that start anywhere.
    linear(8192, 4095, 4097)
    group(8192, 4095, (4097, 1023, 1023))
    mlp(8192, 4095, 14335, True, bias=True, gelu=True)
    for t, wide in ((8192, 14336), (512, 1536)):
        for gelu in (False, True):
            swiglu_backward(*[matrix(t, wide)] * 3, gelu)


def split_products() -> None:
    """S, dS, dA and dB, in bf16, and some with odd widths."""
    for t in TOKENS:
        for hidden, kv, wide, _ in SIZES:
            for k in (hidden, wide):
                for r in (128, 256, 384):
                    x, s = matrix(t, k), matrix(t, r)
                    split_product(s, x, matrix(r, k), "nt")
                    split_product(matrix(r, k), s, x, "tn")
            for n in (hidden, kv, wide):
                dy, s = matrix(t, n), matrix(t, 384)[:, 128:256]
                split_product(s, dy, matrix(n, 128), "nn", 2.0)
                split_product(matrix(n, 128), dy, s, "tn", 2.0)
    # Rows that start anywhere.
    x, s, a = matrix(8192, 4095), matrix(8192, 128), matrix(128, 4095)
    split_product(s, x, a, "nt")
    split_product(s, x, matrix(4095, 128), "nn", 2.0)
    split_product(a, s, x, "tn")


def many_adapters() -> None:
    """The products of 16 adapters in one batch, of segments of 128 tokens; some of odd widths."""
    r, e, t = 128, 16, 2048
    owners = matrix(e, dtype=torch.int32)
    for hidden, kv, wide in (SIZES[0][:3], (4095, 1023, 14335)):
        odd = hidden % 2
        x, s, y = matrix(t, hidden), matrix(t, 3 * r), matrix(t, kv)
        w, a, b = matrix(kv, hidden), matrix(e, 3 * r, hidden), matrix(e, kv, r)
        part = s[:, r : 2 * r]
        chain(y, part, b, [(x, w)], bias=matrix(kv) if odd else None, nt=True, owners=owners)
        pairs = [(y, w)] if odd else [(x, matrix(hidden, hidden)), (y, w), (y, w)]
        chain(x, s, a, pairs, nt=False, owners=owners)
        own_rows(s, x, a, owners, "nt")
        own_rows(part, y, b, owners, "nn", 2.0)
        own_outer(b, y, part, owners, 2.0)
        if not odd:
            weights, lora_b = [matrix(wide, hidden)] * 2, [matrix(e, wide, r)] * 2
            given = x, weights, [part, s[:, :r]], lora_b, [1.0, 1.0], [None] * 2
            gate_up(*given, gelu=False, keep=True, owners=owners)


def head_inputs(t: int, k: int, v: int, dtype: torch.dtype = torch.bfloat16) -> tuple[Tensor, ...]:
    """hidden, weight, labels and weights."""
    hidden, weight = (matrix(n, k, dtype=dtype) for n in (t, v))
    return hidden, weight, matrix(t, dtype=torch.int64), matrix(t, dtype=torch.float32)


def triton_head() -> None:
    """The head in bf16; in fp32, and of rows that are not aligned."""

    def head_loss(*args: Any) -> None:
        head_loss_logits.head_loss(Inputs(*args, want_weight=False, way="triton"))

    for t in TOKENS:
        for k, *_, v in SIZES:
            inputs = head_inputs(t, k, v)
            head_loss(*inputs, matrix(t, dtype=torch.int64), None, 1.0, True)
            head_loss(*inputs, None, 30.0, 1.0, True)
            head_loss(*inputs, None, None, 1.0, False)
            scale_rows(inputs[0], inputs[3])
    for k, dtype in ((576, torch.float32), (4095, torch.bfloat16)):
        inputs = head_inputs(512, k, 49153, dtype)
        for cap in (None, 30.0):
            head_loss(*inputs, None, cap, 1.0, True)
        scale_rows(inputs[0], inputs[3])


def cublas_head() -> None:
    """The kernels between the products of cuBLAS; their tiles suit every model."""
    hidden, weight, labels, w = head_inputs(512, 4096, 128256)
    ids = matrix(512, 20, dtype=torch.int64)
    for cap in (None, 30.0):
        for want in (True, False):
            rest = (w, None, cap, 1.0, want, False, "cublas")
            for targets in ((labels, *rest), (ids, *rest, ids.float())):
                head_loss_cublas.head_loss(Inputs(hidden, weight, *targets))


CALLS = {
    "lora_triton": lora_products,
    "lora_split_triton": split_products,
    "lora_many_triton": many_adapters,
    "head_loss_logits": triton_head,
    "head_loss_cublas": cublas_head,
}


def cases(module: str, arch: int) -> list[CompileCase]:
    """A module's cases; of those that share a name, which differ in alignment, the first."""
    recorded = record(arch, CALLS[module])
    return list({case.name: case for case in reversed(recorded)}.values())[::-1]
