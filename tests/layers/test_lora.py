"""The LoRA ops where no GPU is: plain PyTorch and the concatenated product, and the dispatch."""

import pytest
import torch
from errors_and_seeds import fresh_seed, rel
from lora_checks import (
    assert_close,
    check_parallel,
    make_group,
    names,
    run,
    truth,
)
from torch.utils.checkpoint import checkpoint

from bench.kernels.lora_concat import concat_linear, pack, with_slack
from liftcore.kernels import lora, reference, tiles
from liftcore.kernels.device import HAS_TRITON, INTERPRET
from liftcore.kernels.lora import lora_gate_up, lora_linear, lora_qkv, path

pytestmark = pytest.mark.skipif(INTERPRET, reason="TRITON_INTERPRET=1 takes another path")


def test_the_plain_path_is_live_on_a_cpu():
    assert path(torch.ones(2, 3)) == "plain"
    with pytest.raises(ValueError, match="TRITON_INTERPRET"):
        lora.choose("linear", torch.ones(2, 3), "triton")


@pytest.mark.parametrize("widths", [(80,), (80, 48, 33)])
def test_group(widths):
    g = fresh_seed()
    group = make_group(g, 7, 57, widths, (8, 1, 16)[: len(widths)])
    dys = [torch.randn(7, n, generator=g) for n in widths]
    assert_close(
        run(lora_qkv, group, dys), truth("lora_qkv", group, dys), names(group, len(widths))
    )


@pytest.mark.parametrize("activation", ["silu", "gelu_tanh"])
@pytest.mark.parametrize("lead", [(), (2, 3)])
def test_gate_up(activation, lead):
    g = fresh_seed()
    group = make_group(g, 6, 57, (80, 80), (8, 3))
    dy = torch.randn(6, 80, generator=g)

    def op(x, *rest):
        return lora_gate_up(x.view(*lead, -1, 57), *rest, activation=activation).view(6, 80)

    right = truth("lora_gate_up", group, [dy], activation)
    assert_close(run(op, group, [dy]), right, names(group, 1))


@pytest.mark.parametrize("op", [lora_qkv, lora_gate_up])
@pytest.mark.parametrize("bias", [False, True])
def test_gradcheck_in_fp64(op, bias):
    group = make_group(fresh_seed(), 3, 7, (5, 5), (2, 1), bias).to(dtype=torch.float64)

    def call(x, a0, a1, b0, b1):
        return op(x, group.weights, (a0, a1), (b0, b1), group.scalings, group.biases)

    assert torch.autograd.gradcheck(call, group.trained)


def test_double_backward_is_refused():
    group = make_group(fresh_seed(), 3, 7, (5,), (2,))
    (dx,) = torch.autograd.grad(
        lora_linear(*group.single).square().sum(), group.x, create_graph=True
    )
    with pytest.raises(RuntimeError, match="once_differentiable"):
        dx.sum().backward()


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing_gives_the_same(reentrant):
    group = make_group(fresh_seed(), 9, 20, (24,), (4,))

    def call(x):
        return lora_linear(x, *group.single[1:])

    right = torch.autograd.grad(call(group.x).square().sum(), group.trained)
    checkpoint(call, group.x, use_reentrant=reentrant).square().sum().backward()
    assert all(torch.equal(t.grad, r) for t, r in zip(group.trained, right, strict=True))


# N below and above K: dx is one product over [dy | dS] or two.
@pytest.mark.parametrize("n", [33, 80])
@pytest.mark.parametrize("slack", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_concatenated(n, slack, bias):
    g = fresh_seed()
    group = make_group(g, 7, 48, (n,), (5,), bias)
    dy = torch.randn(7, n, generator=g)
    right = truth("lora_qkv", group, [dy])
    x, w, a, b, scaling, bias = group.single
    packed = pack(w, a, b, scaling)
    if slack:
        wide = with_slack(x, 7, 48, 5)
        group.x = wide.copy_(x.detach()).requires_grad_()

    def op():
        return concat_linear(group.x, packed, a, b, scaling, bias, slack)

    version = group.x._version
    y = op()
    assert group.x._version == version
    other = op()  # writes the same slack again: the first graph must not notice
    ours = [y, *torch.autograd.grad(y, group.trained, dy)]
    assert_close(ours, right, names(group, 1))
    assert torch.equal(y, other)


def test_concatenated_follows_the_shadow_of_the_adapter():
    """What an optimizer writes into the views is what the next call computes with."""
    g = fresh_seed()
    group = make_group(g, 7, 48, (33,), (5,))
    x, w, a, b, scaling, bias = group.single
    packed = pack(w, torch.zeros_like(a), torch.zeros_like(b), scaling)
    base = concat_linear(x, packed, a, b, scaling, bias)
    assert rel(base, torch.nn.functional.linear(x, w, bias)) < 1e-5
    packed.lora_a.copy_(a.detach())
    packed.scaled_b.copy_(scaling * b.detach())
    y = concat_linear(x, packed, a, b, scaling, bias)
    assert rel(y, lora_linear(x, w, a, b, scaling, bias)) < 1e-5


def test_concatenated_compiles_and_checkpoints():
    group = make_group(fresh_seed(), 7, 48, (33,), (5,))
    x, w, a, b, scaling, bias = group.single
    packed = pack(w, a, b, scaling)

    def op(x):
        return concat_linear(x, packed, a, b, scaling, bias)

    right = torch.autograd.grad(op(x).square().sum(), group.trained)
    torch._dynamo.reset()
    for call in (
        torch.compile(op, fullgraph=True, backend="aot_eager"),
        lambda x: checkpoint(op, x, use_reentrant=False),
    ):
        ours = torch.autograd.grad(call(x).square().sum(), group.trained)
        assert_close(ours, right, ["dx", "dA", "dB"], bound=1e-6)


def test_table_prefers_large_tiles_that_fill_the_gpu():
    for arch, sms in ((80, 108), (90, 132), (100, 148), (120, 170)):
        large = tiles.pick("forward", arch, 2, 8192, 4096, sms)
        small = tiles.pick("forward", arch, 2, 16, 576, sms)
        assert large.bm * large.bn > small.bm * small.bn
        assert tiles.way("gate_up", arch, 8192) == "triton"
    assert tiles.way("gate_up", 75, 8192) == "plain"


@pytest.mark.parametrize("op", [lora_linear, lora_qkv, lora_gate_up])
@pytest.mark.parametrize("late", [False, True])
def test_under_autocast_it_runs_as_the_linear_of_torch(op, late):
    """Outputs in the dtype of autocast, gradients in that of their inputs, by the error rule."""
    g = fresh_seed()
    n = 1 if op is lora_linear else 2
    group = make_group(g, 33, 57, (80, 80)[:n], (8, 3)[:n])
    if op is not lora_linear:
        group.x = group.x.view(3, 11, 57)
    args = group.single if op is lora_linear else group.args

    def gradients(op):
        with torch.autocast("cpu", torch.bfloat16):
            out = op(*args)
            outs = [out] if isinstance(out, torch.Tensor) else list(out)
            assert all(y.dtype == torch.bfloat16 for y in outs)
            total = sum((y.float() ** 2).sum() for y in outs)
            if late:
                return [*outs, *torch.autograd.grad(total, group.trained)]
        return [*outs, *torch.autograd.grad(total, group.trained)]

    ours, plain = gradients(op), gradients(getattr(reference, op.__name__))
    wide = group.to(dtype=torch.float64)
    out = getattr(reference, op.__name__)(*(wide.single if op is lora_linear else wide.args))
    outs = [out] if isinstance(out, torch.Tensor) else list(out)
    right = [*outs, *torch.autograd.grad(sum((y**2).sum() for y in outs), wide.trained)]
    for a, b, c in zip(ours, plain, right, strict=True):
        assert a.dtype == b.dtype and rel(a, c) <= 2 * rel(b, c) + 2e-4


@pytest.mark.parametrize("concat", [False, True])
def test_autocast_in_the_backward_alone_changes_nothing(concat):
    group = make_group(fresh_seed(), 7, 48, (80,), (5,))
    x, w, a, b, scaling, bias = group.single
    packed = pack(w, a, b, scaling)

    def op():
        if not concat:
            return lora_linear(*group.single)
        return concat_linear(x, packed, a, b, scaling, bias)

    right = torch.autograd.grad(op().square().sum(), group.trained)
    total = op().square().sum()
    with torch.autocast("cpu", torch.bfloat16):
        ours = torch.autograd.grad(total, group.trained)
    assert all(torch.equal(p, q) for p, q in zip(ours, right, strict=True))


@pytest.mark.parametrize("op", [lora_qkv, lora_gate_up])
def test_compiled_under_autocast(op):
    g = fresh_seed()
    group = make_group(g, 9, 20, (24, 24), (4, 3))

    def call(*args):
        with torch.autocast("cpu", torch.bfloat16):
            return op(*args)

    dys = [torch.randn(9, 24, generator=g).bfloat16() for _ in range(1 + (op is lora_qkv))]
    right = run(call, group, dys)
    torch._dynamo.reset()
    ours = run(torch.compile(call, fullgraph=True, backend="aot_eager"), group, dys)
    assert_close(ours, right, names(group, len(dys)), bound=1e-2)


def test_no_tokens():
    group = make_group(fresh_seed(), 0, 20, (24,), (4,))
    y = lora_linear(*group.single)
    assert y.shape == (0, 24)
    grads = torch.autograd.grad(y.sum(), group.trained)
    assert grads[0].shape == (0, 20) and not any(t.any() for t in grads)


@pytest.mark.parametrize("arch", [80, 90, 100])
def test_rows_that_start_anywhere_take_small_tiles(arch):
    """Their large tiles would spill; an odd rank alone is no reason for small ones."""
    if not HAS_TRITON:
        pytest.skip("no Triton that the kernels can use")
    from bench.kernels.compile_cases import record
    from liftcore.kernels.lora_triton import chain

    def launched(k, r):
        def matrix(*shape):
            return torch.empty(shape, dtype=torch.bfloat16, device="meta")

        x, w, s, b = matrix(8192, k), matrix(4096, k), matrix(8192, r), matrix(4096, r)
        (case,) = record(arch, lambda: chain(matrix(8192, 4096), s, b, [(x, w)], nt=True))
        return case.launch.constexprs["BM"] * case.launch.constexprs["BN"]

    assert launched(4096, 128) == launched(4096, 4) >= 128 * 128
    assert launched(4095, 128) == launched(4092, 128) == 64 * 64


@pytest.mark.parametrize("op", [lora_qkv, lora_gate_up])
@pytest.mark.parametrize("way", ["concat", "fast"])
def test_groups_refuse_a_way_they_lack(op, way):
    group = make_group(fresh_seed(), 3, 7, (5, 5), (2, 2))
    with pytest.raises(ValueError, match="not one of triton, plain"):
        op(*group.args, way=way)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"way": "fast"}, "way"),
        ({"way": "concat"}, "not one of"),
    ],
)
def test_options_that_do_not_fit_are_refused(change, message):
    group = make_group(fresh_seed(), 3, 7, (5,), (2,))
    with pytest.raises(ValueError, match=message):
        lora_linear(*group.single, **change)


def test_groups_that_do_not_fit_are_refused():
    g = fresh_seed()
    group = make_group(g, 3, 7, (5, 5), (2, 2))
    x, w, a, b, scalings, biases = group.args
    with pytest.raises(ValueError, match="one each"):
        lora_qkv(x, w, a, b, scalings[:1], biases)
    with pytest.raises(ValueError, match="do not fit"):
        lora_qkv(x, w, a, [b[0], b[1][:4]], scalings, biases)
    with pytest.raises(ValueError, match="activation"):
        lora_gate_up(x, w, a, b, scalings, biases, activation="relu")
    uneven = make_group(g, 3, 7, (5, 6), (2, 2))
    with pytest.raises(ValueError, match="two of one shape"):
        lora_gate_up(*uneven.args)


def test_parameters_of_ddp_and_fsdp2_on_two_processes():
    check_parallel(fresh_seed().initial_seed())
