"""The Triton kernels over FP8 on a GPU from sm_89 on, against plain products there."""

import pytest
import torch
from errors_and_seeds import fresh_seed, rel
from lora_checks import make_group, names, run

from liftcore.kernels import fp8
from liftcore.kernels.device import HAS_TRITON, architecture
from liftcore.kernels.fp8 import Fp8Weight, quantise_weight
from liftcore.kernels.lora import lora_gate_up, lora_qkv
from liftcore.kernels.lora_fp8 import fp8_linear

able = torch.cuda.is_available() and HAS_TRITON and architecture(torch.device("cuda")) >= 89
pytestmark = pytest.mark.skipif(not able, reason="needs an NVIDIA GPU of sm_89 and Triton")


def on_gpu(weight: Fp8Weight) -> Fp8Weight:
    return Fp8Weight(*(fp8.Fp8Rows(*(t.cuda() for t in rows)) for rows in weight))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_rows_are_quantised_as_by_torch(dtype):
    from liftcore.kernels import lora_fp8_triton

    scale = 10.0 ** torch.randint(-4, 3, (300, 1), generator=fresh_seed())
    x = (torch.randn(300, 1500, generator=fresh_seed()) * scale).to("cuda", dtype)[:, :1456]
    for ours, right in zip(lora_fp8_triton.quantise(x), fp8.quantise(x), strict=True):
        assert torch.equal(ours.view(torch.uint8), right.view(torch.uint8))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    "tokens, k, widths, ranks",
    [(1, 64, (96,), (8,)), (300, 1024, (1024, 256, 256), (16, 16, 16)), (513, 4096, (512,), (12,))],
)
def test_groups(dtype, tokens, k, widths, ranks):
    g = fresh_seed()
    group = make_group(g, tokens, k, widths, ranks)
    weights = [on_gpu(quantise_weight(w)) for w in group.weights]
    dys = [(torch.randn(tokens, n, generator=g) / 30).to("cuda", dtype) for n in widths]
    group = group.to(device="cuda", dtype=dtype)
    args = group.x, weights, *group.args[2:]
    ours, plain = (run(lambda *a, w=w: lora_qkv(*a, way=w), group, dys, args) for w in WAYS)
    for name, a, b in zip(names(group, len(widths)), ours, plain, strict=True):
        assert rel(a, b) < 0.01, name


def test_gate_up_and_the_linear_without_lora():
    g = fresh_seed()
    group = make_group(g, 200, 512, (768, 768), (16, 16))
    weights = [on_gpu(quantise_weight(w)) for w in group.weights]
    dys = [torch.randn(200, 768, generator=g).cuda().bfloat16()]
    group = group.to(device="cuda", dtype=torch.bfloat16)
    args = group.x, weights, *group.args[2:]
    ours, plain = (run(lambda *a, w=w: lora_gate_up(*a, way=w), group, dys, args) for w in WAYS)
    # What rounds to another code differs by a sixteenth; dy of the linears does so now and then.
    for name, a, b in zip(names(group, 1), ours, plain, strict=True):
        assert rel(a, b) < 0.03, name
    outs = [fp8_linear(group.x, weights[0], group.biases[0], way=w) for w in WAYS]
    grads = [torch.autograd.grad(out, group.x, dys[0])[0] for out in outs]
    assert rel(*outs) < 0.01 and rel(*grads) < 0.01


WAYS = ("triton", "plain")
