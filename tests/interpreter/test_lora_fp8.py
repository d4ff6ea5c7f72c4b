"""The Triton kernels over FP8 against torch's own casts, in fp32 beside them."""

import numpy as np
import pytest
import torch
from errors_and_seeds import fresh_seed, rel
from fp8_checks import lora_qkv as truth_of
from lora_checks import assert_close, make_group, names, run
from triton.runtime import interpreter

from liftcore.kernels import fp8, lora_fp8_triton
from liftcore.kernels.fp8 import quantise_weight
from liftcore.kernels.lora import lora_gate_up, lora_qkv
from liftcore.kernels.lora_fp8 import fp8_linear


@pytest.fixture(autouse=True)
def rounds_to_nearest(monkeypatch):
    """Triton's interpreter rounds to e4m3 wrongly where that carries into the exponent."""
    convert = interpreter._convert_float

    def right(values, source, target, mode):
        if target.name != "fp8e4nv":
            return convert(values, source, target, mode)
        wide = torch.from_numpy(np.ascontiguousarray(values).view(np.float32))
        return wide.to(torch.float8_e4m3fn).view(torch.uint8).numpy()

    monkeypatch.setattr(interpreter, "_convert_float", right)


@pytest.mark.parametrize("tokens, k", [(1, 48), (7, 1025), (5, 2048)])
def test_rows_are_quantised_as_by_torch(tokens, k):
    g = fresh_seed()
    x = torch.randn(tokens, k + 3, generator=g)[:, :k] * 3e-5
    x[0, :5] = 0
    ours, right = lora_fp8_triton.quantise(x), fp8.quantise(x)
    assert torch.equal(ours.codes.view(torch.uint8), right.codes.view(torch.uint8))
    assert torch.equal(ours.exponents, right.exponents)
    assert ours.codes.stride(0) % 16 == 0


# K and N that are multiples of 16 take descriptors, others pointers.
@pytest.mark.parametrize(
    "tokens, k, widths, ranks",
    [(1, 48, (80,), (8,)), (33, 48, (80, 16, 32), (16, 16, 16)), (9, 57, (41, 80), (8, 1))],
)
def test_groups(tokens, k, widths, ranks):
    g = fresh_seed()
    group = make_group(g, tokens, k, widths, ranks, bias=tokens != 9)
    dys = [torch.randn(tokens, n, generator=g) * 10.0**-i for i, n in enumerate(widths)]
    dys[0][0] = 0  # a row whose scale says nothing
    weights = [quantise_weight(w) for w in group.weights]
    ours = run(lora_qkv, group, dys, (group.x, weights, *group.args[2:]))
    right = run(truth_of, group.to(dtype=torch.float64), [dy.double() for dy in dys])
    assert_close(ours, right, names(group, len(widths)))


def test_gate_up_and_the_linear_without_lora():
    g = fresh_seed()
    group = make_group(g, 9, 48, (80, 80), (8, 8))
    dys = [torch.randn(9, 80, generator=g)]
    weights = [quantise_weight(w) for w in group.weights]
    args = group.x, weights, *group.args[2:]
    ours, plain = (
        run(lambda *a, way=way: lora_gate_up(*a, way=way), group, dys, args)
        for way in ("triton", "plain")
    )
    # What rounds to another code differs by a sixteenth; dy of the linears does so now and then.
    assert_close(ours, plain, names(group, 1), bound=0.02)
    outs = [fp8_linear(group.x, weights[0], group.biases[0], way=w) for w in ("triton", "plain")]
    assert rel(*outs) < 1e-6
    grads = [torch.autograd.grad(out, group.x, dys[0])[0] for out in outs]
    assert rel(*grads) < 1e-6


def test_a_scaling_of_0_leaves_the_base():
    group = make_group(fresh_seed(), 5, 48, (80,), (8,))
    weight = quantise_weight(group.weights[0])
    (y,) = lora_qkv(group.x, [weight], group.lora_a, group.lora_b, [0.0], group.biases)
    assert rel(y, fp8_linear(group.x, weight, group.biases[0])) < 1e-6
