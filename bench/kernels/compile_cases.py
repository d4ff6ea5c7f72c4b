"""The launches of Llama-3-8B and SmolLM2-135M as kernels to compile for a GPU that is not there.

The launchers are called with tensors of the meta device: they pick their tiles as on a GPU of the
named architecture, and leave a record of each launch in place of running it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bench.kernels.jit import specialised
from liftcore.kernels import head_loss_cublas, head_loss_logits, lora_fp8_triton
from liftcore.kernels.device import planned
from liftcore.kernels.fp8 import E4M3, Fp8Rows
from liftcore.kernels.head_loss import Inputs
from liftcore.kernels.head_loss_dhidden import scale_rows
from liftcore.kernels.lora_many_triton import own_outer, own_rows
from liftcore.kernels.lora_split_triton import split_product
from liftcore.kernels.lora_triton import chain, gate_up, swiglu_backward
from liftcore.kernels.tiling import Launch, recording

# Constants by which a kernel is told what its integers are multiples of.
PROMISES = "EVEN"
HARD = {torch.float16: "fp16", torch.float32: "fp32"}

# Hidden size, width of k and v, width of the MLP, vocabulary.
SIZES = ((4096, 1024, 14336, 128256), (576, 192, 1536, 49152))
TOKENS = (8192, 512)


@dataclass(frozen=True)
class CompileCase:
    """One kernel as one launch specialises it; its tensors lie on the meta device."""

    name: str
    launch: Launch


def record(arch: int, calls: Callable[[], Any]) -> list[CompileCase]:
    """The launches of `calls` on a GPU of this architecture, one for each kernel that Triton's JIT
    would compile."""
    by_kernel: dict[str, CompileCase] = {}

    def take(launch: Launch) -> None:
        by_kernel.setdefault(specialised(launch, arch), CompileCase(name_of(launch), launch))

    planned.append(arch)
    try:
        with recording(take):
            calls()
    finally:
        planned.pop()
    return list(by_kernel.values())


def name_of(launch: Launch) -> str:
    """A launch's kernel, tile and flags, for people."""
    given = launch.constexprs
    arguments = dict(zip(launch.kernel.arg_names, launch.args, strict=False))
    matrices = [getattr(value, "base", value) for value in launch.args]
    dtypes = {t.dtype for t in matrices if isinstance(t, Tensor) and t.is_floating_point()}
    sizes = "x".join(str(v) for k, v in given.items() if k.startswith("B") and k[1:] in "MNKT")
    words = [launch.kernel.__name__, sizes]
    words += [f"{given['PAIRS']} pairs"] if "PAIRS" in given else []
    words += [v for v in given.values() if isinstance(v, str)]
    words += [k.lower() for k, v in given.items() if v is True and not k.startswith(PROMISES)]
    words += [
        kind for dtype, kind in HARD.items() if dtype in dtypes and torch.bfloat16 not in dtypes
    ]
    strides = [v for n, v in arguments.items() if n.startswith("stride") and v is not None]
    promises = [v for k, v in given.items() if k.startswith(PROMISES)]
    words += ["unaligned"] if not all(promises or [v % 16 == 0 for v in strides]) else []
    return " ".join(filter(None, words))


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
    gate_up(matrix(t, k), weights, parts, lora_b, biases, gelu=gelu, keep=keep)


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
                split_product(matrix(n, 128), dy, s, "tn")
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
        own_outer(b, y, part, owners)
        if not odd:
            weights, lora_b = [matrix(wide, hidden)] * 2, [matrix(e, wide, r)] * 2
            given = x, weights, [part, s[:, :r]], lora_b, [None] * 2
            gate_up(*given, gelu=False, keep=True, owners=owners)


def fp8_rows(m: int, k: int) -> Fp8Rows:
    return Fp8Rows(matrix(m, k, dtype=E4M3), matrix(m, dtype=torch.int8))


def fp8_products() -> None:
    """A linear, q/k/v and gate/up over FP8, in the shapes of llama-3-8b; and a rank that fits no
    descriptor."""
    t, k = 8192, SIZES[0][0]
    lora_fp8_triton.quantise(matrix(t, k))
    for r, widths in (
        (128, (k,)),
        (128, (k, 1024, 1024)),
        (128, (14336,) * 2),
        (12, (k, 1024, 1024)),
    ):
        n, rank = widths[0], r * len(widths)
        y, pair = matrix(t, n), (fp8_rows(t, k), fp8_rows(n, k))
        lora_fp8_triton.chain(y, [pair])
        lora_fp8_triton.chain(y, [pair], (matrix(t, r), matrix(n, r)), bias=matrix(n))
        pairs = [(fp8_rows(t, n), fp8_rows(k, n)) for n in widths]
        lora_fp8_triton.chain(matrix(t, k), pairs, (matrix(t, rank), matrix(rank, k)), nt=False)


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


def more_products() -> None:
    """What is rarer: 16 bits of the other kind, fp32, odd ranks, and a single token."""
    for t, r, dtype in (
        (512, 128, torch.float16),
        (512, 16, torch.float32),
        (512, 24, torch.bfloat16),
        (512, 7, torch.bfloat16),
        (1, 8, torch.bfloat16),
    ):
        x, w, s = (matrix(*m, dtype=dtype) for m in ((t, 576), (1536, 576), (t, r)))
        a, b, y = (matrix(*m, dtype=dtype) for m in ((r, 576), (1536, r), (t, 1536)))
        chain(y, s, b, [(x, w)], nt=True)
        chain(x, s, a, [(y, w)], nt=False)
        parts = matrix(t, 2 * r, dtype=dtype).split(r, dim=1)
        gate_up(x, [w, w], parts, [b, b], [None, None], gelu=False, keep=True)
        split_product(s, x, a, "nt")
        split_product(s, y, b, "nn", 2.0)
        split_product(a, s, x, "tn")
        swiglu_backward(y, y, y, False)


# What the suite compiles, and what `python -m bench kernels --compile-only` does beside it.
CALLS = {
    "lora_triton": lora_products,
    "lora_split_triton": split_products,
    "lora_many_triton": many_adapters,
    "head_loss_logits": triton_head,
    "head_loss_cublas": cublas_head,
}
MORE = {"lora_fp8_triton": fp8_products, "more": more_products}
FP8 = 89  # the first architecture that multiplies it


def cases(module: str, arch: int) -> list[CompileCase]:
    """A module's cases; of those that share a name, which differ in what Triton makes of a model's
    sizes, the first."""
    if module == "lora_fp8_triton" and arch < FP8:
        return []
    recorded = record(arch, (CALLS | MORE)[module])
    return list({case.name: case for case in reversed(recorded)}.values())[::-1]


# Flags under which a kernel does something more, with the same products and copies.
MORE_WORK = {"bias", "bias_g", "bias_u", "gelu", "keep", "cap"}


def hardest(module: str, arch: int) -> list[int]:
    """The places among cases() of those that hold all that another of the same tile does: what
    fits and does not spill there does not elsewhere, as far as one can know beforehand."""
    flags = [set(case.name.replace(" pairs", "").split()) for case in cases(module, arch)]
    # Two pairs of matrices come before the third.
    done = [f | set("12"[: int(max(f & set("123")))]) if f & set("123") else f for f in flags]
    less = MORE_WORK | set("123")
    return [
        i for i, mine in enumerate(done)
        if not any(mine < other and other - mine <= less for other in done)
    ]  # fmt: skip
