"""Every Triton kernel compiled for sm_80, sm_90 and sm_100, on a machine without a GPU."""

import importlib.util
import os

import pytest

from liftcore.kernels.compile_check import ARCHITECTURES, MODULES, SHARED_LIMIT, compile_all

pytestmark = [
    pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not there"),
    pytest.mark.skipif(
        os.environ.get("TRITON_INTERPRET") == "1", reason="the interpreter does not compile"
    ),
]
PRODUCT = {80: "mma.sync", 90: "wgmma.mma_async", 100: "tcgen05.mma"}


@pytest.fixture(scope="module")
def usages():
    return compile_all(ARCHITECTURES, processes=2)


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_every_kernel_compiles_and_fits(usages, arch):
    found = [u for u in usages if u.arch == arch]
    assert {u.module for u in found} == set(MODULES)
    failed = [u for u in found if u.error]
    assert not failed, "\n".join(f"{u.kernel}: {u.error}" for u in failed)
    spilled = [u for u in found if u.spilled]
    assert not spilled, spilled
    too_large = [u for u in found if u.shared > SHARED_LIMIT[arch]]
    assert not too_large, too_large


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_every_product_uses_the_tensor_cores_of_its_part(usages, arch):
    products = [u for u in usages if u.arch == arch and u.has_product]
    assert len({u.module for u in products}) >= 2
    wrong = [u for u in products if u.matrix != PRODUCT[arch]]
    assert not wrong, wrong


def test_a_spill_is_seen():
    """The checker itself: a kernel that must spill is reported as such."""
    from liftcore.kernels.compile_check import compile_case
    from liftcore.kernels.head_loss_fused import compile_cases

    case = next(c for c in compile_cases(90) if "logits" in c.name and "256" in c.name)
    squeezed = type(case)(**{**vars(case), "num_warps": 4})
    assert compile_case(squeezed, 90).spilled > 0
