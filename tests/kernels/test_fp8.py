"""A frozen W in FP8: its codes, the plain ops over it, and the kernels compiled for GPUs."""

import pytest
import torch
from errors_and_seeds import fresh_seed, rel
from fp8_checks import lora_qkv as truth_of
from fp8_checks import rounded
from lora_checks import assert_close, make_group, names, run

from liftcore.kernels import fp8
from liftcore.kernels.device import HAS_TRITON, INTERPRET
from liftcore.kernels.fp8 import Fp8Weight, dequantise, quantise, quantise_weight
from liftcore.kernels.lora import lora_gate_up, lora_linear, lora_qkv
from liftcore.kernels.lora_fp8 import fp8_linear


def fp8_args(group, backward=True):
    weights = [quantise_weight(w, backward=backward) for w in group.weights]
    return group.x, weights, *group.args[2:]


def test_codes_are_those_of_torch_under_a_power_of_two():
    g = fresh_seed()
    x = torch.randn(40, 70, generator=g) * 10.0 ** torch.randint(-9, 9, (40, 1), generator=g)
    x[3] = 0
    x[4] = 448.0 * 2.0 ** torch.randint(-9, 9, (70,), generator=g)
    rows = quantise(x)
    assert rows.codes.dtype == torch.float8_e4m3fn and rows.exponents.dtype == torch.int8
    assert torch.equal(dequantise(rows, torch.float32).double(), rounded(x))
    # The range is used: the largest code of a row that is not 0 lies in the last binade but one.
    assert rows.codes.float().abs().amax(1)[x.any(1)].min() >= 224
    assert rel(dequantise(rows, torch.float32), x) < 0.04


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_every_code_is_read_as_torch_reads_it(dtype):
    codes = torch.arange(256).to(torch.uint8).view(torch.float8_e4m3fn)
    codes = codes[~codes.float().isnan()]
    assert torch.equal(fp8.decoded(codes, dtype), codes.float().to(dtype))


def test_the_transpose_keeps_the_values():
    weight = torch.randn(96, 64, generator=fresh_seed()) * 0.02
    forward, backward = quantise_weight(weight)
    kept = dequantise(backward, torch.float32).T
    # Below the range of its column a number loses bits; nearly none is.
    assert (kept == dequantise(forward, torch.float32)).float().mean() > 0.99
    made = Fp8Weight(forward).transposed()
    assert all(torch.equal(a, b) for a, b in zip(made, backward, strict=True))


def run_both(group, dys, **kwargs):
    """Ours, and the truth in fp64."""
    wide = group.to(dtype=torch.float64)
    right = run(truth_of, wide, [dy.double() for dy in dys])
    return run(lora_qkv, group, dys, fp8_args(group, **kwargs)), right


@pytest.mark.parametrize("widths, ranks", [((80,), (8,)), ((80, 48, 33), (8, 1, 16))])
@pytest.mark.parametrize("backward", [True, False])
def test_the_plain_ops_against_fp64(widths, ranks, backward):
    g = fresh_seed()
    group = make_group(g, 21, 50, widths, ranks)
    dys = [torch.randn(21, n, generator=g) * 1e-4 for n in widths]
    ours, right = run_both(group, dys, backward=backward)
    assert_close(ours, right, names(group, len(widths)))


def test_16_bit_sums_are_within_twice_the_rounding_of_plain_products():
    g = fresh_seed()
    group = make_group(g, 21, 64, (80,), (8,)).to(dtype=torch.bfloat16)
    dys = [torch.randn(21, 80, generator=g).bfloat16()]
    ours, right = run_both(group, dys)
    wide = group.to(dtype=torch.float64)
    exact = run(lora_qkv, wide, [dy.double() for dy in dys])
    peer = run(lora_qkv, group, dys)
    for name, a, b, c, d in zip(names(group, 1), ours, right, peer, exact, strict=True):
        assert a.dtype == torch.bfloat16 and rel(a, b) <= 2 * rel(c, d), name
    half = group.to(dtype=torch.float16)
    y = lora_linear(half.x * 64, *(m[0] for m in fp8_args(half)[1:]))
    assert y.isfinite().all()  # sums of codes are no sums of fp16


@pytest.mark.parametrize("activation", ["silu", "gelu_tanh"])
def test_gate_up_is_that_of_its_linears(activation):
    g = fresh_seed()
    group = make_group(g, 21, 50, (48, 48), (8, 4))
    dys = [torch.randn(21, 48, generator=g)]

    def apart(*args):
        gate, up = lora_qkv(*args)
        gelu = torch.nn.functional.gelu
        act = gelu(gate, approximate="tanh") if activation != "silu" else gate * gate.sigmoid()
        return act * up

    args = fp8_args(group)
    ours = run(lambda *a: lora_gate_up(*a, activation=activation), group, dys, args)
    # What rounds to another code differs by a sixteenth; dy of the linears does so now and then.
    assert_close(ours, run(apart, group, dys, args), names(group, 1), bound=0.02)


def test_without_lora_the_linear_is_the_same_and_keeps_nothing():
    g = fresh_seed()
    x, weight = (
        torch.randn(2, 9, 50, generator=g).requires_grad_(),
        torch.randn(48, 50, generator=g),
    )
    bias, dy = torch.randn(48, generator=g), torch.randn(2, 9, 48, generator=g)
    group = make_group(g, 1, 50, (48,), (1,))
    none = [torch.zeros_like(m[0]) for m in (group.lora_a, group.lora_b)]
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t), lambda t: t):
        y = fp8_linear(x, quantise_weight(weight), bias)
    right = lora_linear(x, quantise_weight(weight), *none, 1.0, bias)
    assert torch.equal(y, right) and not kept
    assert rel(*(torch.autograd.grad(out, x, dy)[0] for out in (y, right))) < 1e-6
    with pytest.raises(ValueError, match="do not fit"):
        fp8_linear(x, quantise_weight(weight.T))


def test_members_are_all_in_fp8_or_none():
    group = make_group(fresh_seed(), 3, 16, (16, 16), (2, 2))
    x, weights, *rest = fp8_args(group)
    with pytest.raises(ValueError, match="some of the weights are in FP8"):
        lora_qkv(x, [weights[0], group.weights[1]], *rest)


def test_a_row_does_not_see_the_others():
    g = fresh_seed()
    group = make_group(g, 12, 48, (80,), (8,))
    x, *rest = fp8_args(group)
    rest = [m[0] for m in rest]
    louder = torch.cat([x[:5] * 1000, x[5:]])
    assert rel(lora_linear(louder, *rest)[5:], lora_linear(x, *rest)[5:]) < 1e-6


@pytest.mark.skipif(not HAS_TRITON, reason="no Triton that the kernels can use")
@pytest.mark.skipif(INTERPRET, reason="the interpreter does not compile")
@pytest.mark.parametrize(
    "arch, which, product",
    [
        (89, "1 pairs tail bias", "mma.sync.aligned.m16n8k32.row.col.f32.e4m3.e4m3"),
        (90, "3 pairs tail", "wgmma.mma_async.sync.aligned.m64n128k32.f32.e4m3.e4m3"),
        (90, "quantise", "cvt.rn.satfinite.e4m3x2"),
        (100, "1 pairs tail bias", "kind::f8f6f4"),
    ],
)
def test_the_kernels_compile_with_products_of_fp8(arch, which, product):
    """For GPUs that are not there: without spills, within the shared memory."""
    from bench.kernels.compile_cases import cases
    from bench.kernels.compile_check import SHARED_LIMIT, resources
    from bench.kernels.jit import compiled

    case = next(c for c in cases("lora_fp8_triton", arch) if which in c.name)
    made = compiled(case.launch, arch)
    assert product in made.asm["ptx"]
    _, stack = resources(made.asm["cubin"])
    assert stack == 0 and made.metadata.shared <= SHARED_LIMIT[arch]
