"""The fused LoRA ops in autograd, checkpointing, torch.compile and a training loop."""

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

from liftcore.kernels import lora_plain, lora_triton
from liftcore.kernels.lora import lora_gate_up, lora_linear, lora_qkv


@pytest.fixture
def launches(monkeypatch):
    """What the chain products that were launched computed, in order: "forward" or "dx"."""
    kinds = []
    chain = lora_triton.chain

    def spy(*args, nt, **kwargs):
        kinds.append("forward" if nt else "dx")
        return chain(*args, nt=nt, **kwargs)

    monkeypatch.setattr(lora_triton, "chain", spy)
    return kinds


def small(generator, members=1, **kwargs):
    widths, ranks = (24, 16, 8)[:members], (4, 3, 8)[:members]
    return make_group(generator, 9, 20, widths, ranks, **kwargs)


def test_x_without_gradient_costs_no_dx(launches):
    g = fresh_seed()
    group = small(g, members=2)
    group.x = group.x.detach()
    dys = [torch.randn(9, 24, generator=g), torch.randn(9, 16, generator=g)]
    ys = lora_qkv(*group.args)
    ours = torch.autograd.grad(ys, [*group.lora_a, *group.lora_b], dys)
    assert launches == ["forward", "forward"]
    right = truth("lora_qkv", group, dys)
    assert_close(ours, right[3:], names(group, 2)[3:])


def test_frozen_adapter_still_passes_dx(launches):
    g = fresh_seed()
    group = small(g)
    dy = torch.randn(9, 24, generator=g)
    x, w, a, b, scaling, bias = group.single
    y = lora_linear(x, w, a.detach(), b.detach(), scaling, bias)
    (dx,) = torch.autograd.grad(y, x, dy)
    assert launches == ["forward", "dx"]
    assert_close([dx], truth("lora_qkv", group, [dy])[1:2], ["dx"])


def transposed(x):
    return x.T.contiguous().T


def sliced(x):
    return torch.cat([x, torch.full_like(x, torch.nan)], dim=1)[:, : x.shape[1]]


def strided(x):
    return torch.stack([x, torch.full_like(x, torch.nan)], dim=1)[:, 0]


@pytest.mark.parametrize("layout", [transposed, sliced, strided])
def test_layouts_of_x_and_dy(layout):
    g = fresh_seed()
    group = small(g)
    dy = torch.randn(9, 24, generator=g)
    right = truth("lora_qkv", group, [dy])
    group.x = layout(group.x.detach()).requires_grad_()
    ours = run(lora_linear, group, [layout(dy)], group.single)
    assert_close(ours, right, names(group, 1))


def test_expanded_gradient_and_leading_dimensions():
    g = fresh_seed()
    group = small(g)
    x, *rest = group.single
    y = lora_linear(x.view(3, 1, 3, 20), *rest)
    assert y.shape == (3, 1, 3, 24)
    grads = torch.autograd.grad(y.sum(), group.trained)
    right = truth("lora_qkv", group, [torch.ones(9, 24)])
    assert_close(grads, right[1:], names(group, 1)[1:])


def test_adapters_that_lie_in_one_buffer_are_not_copied():
    g = fresh_seed()
    group = small(g, members=3)
    buffer = torch.cat([a.detach() for a in group.lora_a])
    views = list(buffer.split([a.shape[0] for a in group.lora_a]))
    assert lora_plain.stack(views).data_ptr() == buffer.data_ptr()
    assert torch.equal(lora_plain.stack(views), buffer)
    assert torch.equal(lora_plain.stack(views[::-1]), torch.cat(views[::-1]))
    # Neighbours in memory that belong to different buffers cannot be one view.
    array = buffer.numpy().copy()
    apart = [torch.frombuffer(array[i : i + 4].data, dtype=buffer.dtype) for i in (0, 4)]
    apart = [t.view(4, -1) for t in apart]
    assert torch.equal(lora_plain.stack(apart), torch.cat(apart))


@pytest.mark.parametrize("op", [lora_qkv, lora_gate_up])
def test_backward_twice_gives_the_same_bits(op):
    g = fresh_seed()
    group = make_group(g, 130, 20, (24, 24), (4, 4))
    out = op(*group.args)
    total = sum((y * y).sum() for y in ([out] if op is lora_gate_up else out))
    first = torch.autograd.grad(total, group.trained, retain_graph=True)
    second = torch.autograd.grad(total, group.trained)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("op", [lora_qkv, lora_gate_up])
def test_double_backward_is_refused(op):
    group = make_group(fresh_seed(), 3, 20, (24, 24), (4, 4))
    out = op(*group.args)
    y = out if op is lora_gate_up else out[0]
    (dx,) = torch.autograd.grad(y.square().sum(), group.x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        dx.sum().backward()


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("op", [lora_qkv, lora_gate_up])
def test_checkpointing_gives_the_same(op, reentrant):
    g = fresh_seed()
    group = make_group(g, 9, 20, (24, 24), (4, 4))

    def call(x):
        out = op(x, *group.args[1:])
        return out if op is lora_gate_up else out[0] * out[1]

    def gradients(y):
        for t in group.trained:
            t.grad = None
        y.square().sum().backward()
        return [t.grad for t in group.trained]

    right = gradients(call(group.x))
    ours = gradients(checkpoint(call, group.x, use_reentrant=reentrant))
    assert all(torch.equal(a, b) for a, b in zip(ours, right, strict=True))


@pytest.mark.parametrize("frozen_a", [False, True])
@pytest.mark.parametrize("op", [lora_qkv, lora_gate_up])
def test_compiled_in_one_graph(op, frozen_a):
    g = fresh_seed()
    group = make_group(g, 9, 20, (24, 24), (4, 3))
    trained = [group.x, *group.lora_b] if frozen_a else group.trained
    for a in group.lora_a:
        a.requires_grad_(not frozen_a)
    dys = [torch.randn(9, 24, generator=g) for _ in range(1 if op is lora_gate_up else 2)]

    def run(op):
        out = op(*group.args)
        outs = [out] if torch.is_tensor(out) else list(out)
        return [*outs, *torch.autograd.grad(outs, trained, dys)]

    right = run(op)
    torch._dynamo.reset()
    ours = run(torch.compile(op, fullgraph=True, backend="aot_eager"))
    assert_close(ours, right, [f"output {i}" for i in range(len(right))], bound=1e-6)


def test_registered_ops_agree_with_their_fakes():
    g = fresh_seed()
    group = small(g, members=2)
    x, *members, biases = (
        [t.detach() if torch.is_tensor(t) else t for t in m] if isinstance(m, list) else m.detach()
        for m in group.args
    )
    ops = torch.ops.liftcore
    check = ("test_schema", "test_faketensor")
    torch.library.opcheck(ops.lora_forward, (x, *members, biases), test_utils=check)
    *ys, s = ops.lora_forward(x, *members, biases)
    weights, a, b, scalings = members
    of_dx, of_db = (weights, a, b, scalings), ([], [], b, scalings)
    for args in ((x, s, *of_dx), (x, s, *of_db), (None, s, *of_dx), (None, s, *of_db)):
        torch.library.opcheck(ops.lora_backward, (ys, *args), test_utils=check)
    torch.library.opcheck(ops.lora_backward, (ys, None, None, *of_dx), test_utils=check)
    pair = make_group(g, 9, 20, (24, 24), (4, 4))
    x, *members = (
        [t.detach() if torch.is_tensor(t) else t for t in m] if isinstance(m, list) else m.detach()
        for m in pair.args
    )
    for keep in (True, False):
        torch.library.opcheck(ops.gate_up_forward, (x, *members, False, keep), test_utils=check)
    h, gate, up, _ = ops.gate_up_forward(x, *members, False, True)
    torch.library.opcheck(ops.swiglu_backward, (h, gate, up, True), test_utils=check)


def test_ten_steps_of_training_follow_the_plain_path():
    """A block with attention and an MLP, all linears adapted, trained on both paths."""
    g = fresh_seed()
    x, target = torch.randn(12, 32, generator=g), torch.randn(12, 32, generator=g)
    qkv = make_group(g, 12, 32, (32, 16, 16), (4, 4, 4), bias=False)
    out = make_group(g, 12, 32, (32,), (4,), bias=False)
    mlp = make_group(g, 12, 32, (48, 48), (4, 4), bias=False)
    down = make_group(g, 12, 48, (32,), (4,), bias=False)

    def train(way):
        groups = [group.to(dtype=torch.float32) for group in (qkv, out, mlp, down)]
        for group in groups:
            for b in group.lora_b:
                b.data.zero_()
        parameters = [p for group in groups for p in group.trained[1:]]
        optimizer = torch.optim.AdamW(parameters, lr=1e-2)
        losses = []
        for _ in range(10):
            q, k, v = lora_qkv(x, *groups[0].args[1:], way=way)
            heads = [t.view(12, -1, 16).transpose(0, 1) for t in (q, k, v)]
            attended = torch.nn.functional.scaled_dot_product_attention(
                *heads, is_causal=True, enable_gqa=True
            )
            y = x + lora_linear(
                attended.transpose(0, 1).reshape(12, 32), *groups[1].single[1:], way=way
            )
            h = lora_gate_up(y, *groups[2].args[1:], way=way)
            y = y + lora_linear(h, *groups[3].single[1:], way=way)
            loss = (y - target).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        return losses

    ours, right = train("triton"), train("plain")
    assert right[-1] < 0.99 * right[0]
    assert max(abs(a - b) for a, b in zip(ours, right, strict=True)) < 1e-4


def test_no_tokens_and_the_way_named():
    group = make_group(fresh_seed(), 0, 20, (24,), (4,))
    assert lora_linear(*group.single, way="triton").shape == (0, 24)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("op", [lora_qkv, lora_gate_up])
def test_dtypes_that_the_kernels_would_get_wrong_are_refused(op, dtype):
    group = make_group(fresh_seed(), 3, 20, (24, 24), (4, 4)).to(dtype=dtype)
    with pytest.raises(ValueError, match="takes"):
        op(*group.args, way="triton")


def test_rel_sees_nan():
    assert not rel(torch.tensor([torch.nan]), torch.ones(1)) <= 1e9


def test_parameters_of_ddp_and_fsdp2_on_two_processes():
    check_parallel(fresh_seed().initial_seed())
