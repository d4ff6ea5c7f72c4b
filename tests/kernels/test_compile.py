"""Every Triton kernel compiled for GPUs that are not there.

For two generations, of each tile the kernels that do most in it, and a few rarer cases; `python -m
bench kernels --compile-only` takes all."""

import json
import os
from dataclasses import asdict

import pytest
import torch
from native_build import once

from bench.kernels.compile_cases import CALLS, cases, chain, matrix, record, split_product
from bench.kernels.compile_check import (
    SHARED_LIMIT,
    STACK_LIMIT,
    Usage,
    compile_all,
    compile_case,
)
from liftcore.kernels.device import HAS_TRITON

pytestmark = [
    pytest.mark.skipif(not HAS_TRITON, reason="no Triton that the kernels can use"),
    pytest.mark.skipif(
        os.environ.get("TRITON_INTERPRET") == "1", reason="the interpreter does not compile"
    ),
]
ARCHITECTURES = (80, 90)
PRODUCT = {90: "wgmma.mma_async", 100: "tcgen05.mma"}  # mma.sync on all others
WITH_PRODUCTS = {"lora_triton", "lora_split_triton", "lora_many_triton", "head_loss_logits"}


@pytest.fixture(scope="session")
def usages(tmp_path_factory):
    """What the kernels use of every GPU, compiled once for all processes of the session."""

    def build(folder):
        everything = compile_all(ARCHITECTURES, 1, list(CALLS), hardest_only=True)
        (folder / "usages.json").write_text(json.dumps([asdict(u) for u in everything]))

    folder = once(tmp_path_factory, "compiled-kernels", build)
    return [Usage(**u) for u in json.loads((folder / "usages.json").read_text())]


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_every_kernel_compiles_and_fits(usages, arch):
    of_arch = [u for u in usages if u.arch == arch]
    assert {u.module for u in of_arch} == set(CALLS)
    failed = [u for u in of_arch if u.error]
    assert not failed, "\n".join(f"{u.kernel}: {u.error}" for u in failed)
    spilled = [u for u in of_arch if u.spilled > STACK_LIMIT[arch]]
    assert not spilled, spilled
    too_large = [u for u in of_arch if u.shared > SHARED_LIMIT[arch]]
    assert not too_large, too_large


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_every_product_uses_the_tensor_cores_of_its_part(usages, arch):
    products = [u for u in usages if u.arch == arch and u.has_product]
    assert {u.module for u in products} == WITH_PRODUCTS
    # fp32 is multiplied in full precision, without tensor cores.
    right = PRODUCT.get(arch, "mma.sync")
    wrong = [u for u in products if u.matrix != ("" if "fp32" in u.kernel else right)]
    assert not wrong, wrong


def test_products_of_aligned_rows_overlap_their_copies(usages):
    """On sm_90: loads and stores by TMA, and a wgmma that runs on while operands are awaited."""
    products = [u for u in usages if u.arch == 90 and u.has_product and "tma" in u.kernel.split()]
    assert {u.kernel.split()[0] for u in products} == {
        "chain_kernel", "gate_up_kernel", "split_kernel", "logits_kernel", "product_kernel"
    }  # fmt: skip
    assert not [u for u in products if not (u.loads >= 2 and u.pending >= 1 and u.loop)]
    stored = {"chain_kernel": 1, "gate_up_kernel": 1, "logits_kernel": "keep"}
    wrong = [
        u for u in products
        if (u.stores > 0) != (stored.get(u.kernel.split()[0]) in (1, *u.kernel.split()))
    ]  # fmt: skip
    assert not wrong
    rest = [u for u in usages if u.arch == 90 and u not in products]
    assert not any(u.loads or u.stores for u in rest)


def odd_launches():
    for tokens, rank, dtype in ((512, 7, torch.bfloat16), (1, 8, torch.float16)):
        x, w, s = (matrix(*m, dtype=dtype) for m in ((tokens, 96), (192, 96), (tokens, rank)))
        a, b, y = (matrix(*m, dtype=dtype) for m in ((rank, 96), (192, rank), (tokens, 192)))
        chain(y, s, b, [(x, w)], nt=True)
        split_product(a, s, x, "tn")


def test_odd_ranks_other_dtypes_and_one_token_compile_too():
    made = [compile_case(case, 90) for case in record(90, odd_launches)]
    assert len(made) >= 4 and not any(u.spilled for u in made if "unaligned" not in u.kernel)
    assert {"wgmma.mma_async"} == {u.matrix for u in made if u.has_product}


def test_unaligned_and_fp32_launches_of_the_head_are_among_them(usages):
    names = {u.kernel for u in usages if u.module == "head_loss_logits"}
    assert {"fp32", "unaligned", "cap"} <= {word for name in names for word in name.split()}


def test_a_spill_is_seen():
    """The checker itself: a kernel that must spill is reported as such."""
    case = next(c for c in cases("head_loss_logits", 90) if "logits" in c.name and "256" in c.name)
    squeezed = type(case)(case.name, case.launch._replace(warps=4))
    assert compile_case(squeezed, 90).spilled > 0
