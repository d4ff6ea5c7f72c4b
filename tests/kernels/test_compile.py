"""Every Triton kernel compiled for the GPUs of ARCHITECTURES, on a machine without a GPU."""

import json
import os
from dataclasses import asdict

import pytest
from native_build import once

from bench.kernels.compile_cases import CALLS, cases
from bench.kernels.compile_check import (
    ARCHITECTURES,
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
PRODUCT = {90: "wgmma.mma_async", 100: "tcgen05.mma"}  # mma.sync on all others
WITH_PRODUCTS = {"lora_triton", "lora_split_triton", "lora_many_triton", "head_loss_logits"}


@pytest.fixture(scope="session")
def usages(tmp_path_factory):
    """What every kernel uses of every GPU, compiled once for all processes of the session."""

    def build(folder):
        everything = compile_all(ARCHITECTURES, processes=2)
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


def test_unaligned_and_fp32_launches_of_the_head_are_among_them(usages):
    names = {u.kernel for u in usages if u.module == "head_loss_logits"}
    assert {"fp32", "unaligned", "cap"} <= {word for name in names for word in name.split()}


def test_a_spill_is_seen():
    """The checker itself: a kernel that must spill is reported as such."""
    case = next(c for c in cases("head_loss_logits", 90) if "logits" in c.name and "256" in c.name)
    squeezed = type(case)(**{**vars(case), "num_warps": 4})
    assert compile_case(squeezed, 90).spilled > 0
