"""The launches of the kernels over FP8, to compile for GPUs that are not there; sm_89 and newer."""

from __future__ import annotations

import torch
from torch import Tensor

from bench.kernels.compile_cases import CompileCase, matrix, record
from liftcore.kernels.fp8 import E4M3, Fp8Rows
from liftcore.kernels.lora_fp8_triton import chain, quantise


def rows(m: int, k: int) -> Fp8Rows:
    return Fp8Rows(matrix(m, k, dtype=E4M3), matrix(m, dtype=torch.int8))


def products(t: int, k: int, widths: tuple[int, ...], r: int = 128) -> None:
    """y of the first width, alone and with a low-rank product and a bias; dx of all of them."""
    n, rank = widths[0], r * len(widths)
    y: Tensor = matrix(t, n)
    pair = rows(t, k), rows(n, k)
    chain(y, [pair])
    chain(y, [pair], (matrix(t, r), matrix(n, r)), bias=matrix(n))
    pairs = [(rows(t, n), rows(k, n)) for n in widths]
    chain(matrix(t, k), pairs, (matrix(t, rank), matrix(rank, k)), nt=False)


def calls() -> None:
    """The shapes of llama-3-8b: a linear, q/k/v and gate/up; and a rank that fits no descriptor."""
    quantise(matrix(8192, 4096))
    for widths in ((4096,), (4096, 1024, 1024), (14336, 14336)):
        products(8192, 4096, widths)
    products(8192, 4096, (4096, 1024, 1024), r=12)


def cases(arch: int) -> list[CompileCase]:
    """Each kernel and set of tiles once."""
    return list({case.name: case for case in record(arch, calls)}.values())
