"""The fused LoRA ops on a GPU in bf16, fp16 and fp32.

The rule: ‖ours − truth‖ ≤ 2 ‖plain − truth‖ + tiny, plain being PyTorch in the same dtype and
truth fp64 from the same rounded inputs.
"""

import pytest
import torch
from errors_and_seeds import fresh_seed, rel
from lora_checks import (
    make_group,
    names,
    run,
    truth,
)
from torch.utils.checkpoint import checkpoint

from bench.kernels.lora_concat import concat_linear, pack
from liftcore.kernels import reference, tiles
from liftcore.kernels.lora import lora_gate_up, lora_linear, lora_qkv, path

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU")
DTYPES = [torch.bfloat16, torch.float16, torch.float32]
TINY = {torch.bfloat16: 2e-4, torch.float16: 3e-5, torch.float32: 1e-6}
# T, K, widths, ranks: tile multiples (TMA on sm_90), odd sizes (pointers), one token, wide rank.
SHAPES = [
    (512, 576, (576, 192, 192), (128, 128, 128)),
    (1, 576, (1536,), (8,)),
    (129, 257, (80, 33), (8, 1)),
    (1000, 512, (1024, 256, 256), (16, 16, 16)),
    (300, 256, (512,), (512,)),
    (2048, 4096, (4096,), (128,)),
]


@pytest.fixture(autouse=True)
def fused(monkeypatch):
    """The kernels run whatever the table says of an op and of few tokens."""
    monkeypatch.setattr(tiles, "WAYS", [(op, 80, None, "triton") for op, *_ in tiles.WAYS])


@pytest.fixture(autouse=True)
def poisoned():
    """Memory that an op allocates and does not write holds NaN."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


def on_gpu(group, dtype):
    return group.to(dtype=dtype, device="cuda")


def assert_rule(ours, plain, right, labels, dtype):
    bad = {}
    for label, a, b, c in zip(labels, ours, plain, right, strict=True):
        mine, theirs = rel(a, c), rel(b, c)
        if not mine <= 2 * theirs + TINY[dtype]:
            bad[label] = (mine, theirs)
    assert not bad, f"relative errors (ours, plain) over the rule: {bad}"


def test_the_triton_path_is_live():
    assert path(torch.ones(200, 3, device="cuda").bfloat16()) == "triton"


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("bias", [False, True])
def test_group(shape, dtype, bias):
    g = fresh_seed()
    t, k, widths, ranks = shape
    group = on_gpu(make_group(g, t, k, widths, ranks, bias), dtype)
    dys = [torch.randn(t, n, generator=g).to("cuda", dtype) for n in widths]
    ours = run(lora_qkv, group, dys)
    plain = run(reference.lora_qkv, group, dys)
    assert_rule(ours, plain, truth("lora_qkv", group, dys), names(group, len(widths)), dtype)
    again = run(lora_qkv, group, dys)
    assert all(torch.equal(a, b) for a, b in zip(ours, again, strict=True))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("activation", ["silu", "gelu_tanh"])
@pytest.mark.parametrize("shape", [(512, 576, 1536, 128), (129, 257, 80, 8), (1, 64, 48, 3)])
def test_gate_up(shape, dtype, activation):
    g = fresh_seed()
    t, k, n, r = shape
    group = on_gpu(make_group(g, t, k, (n, n), (r, r)), dtype)
    dys = [torch.randn(t, n, generator=g).to("cuda", dtype)]
    ours = run(lambda *args: lora_gate_up(*args, activation=activation), group, dys)
    plain = run(reference.lora_gate_up, group, dys, (*group.args, activation))
    right = truth("lora_gate_up", group, dys, activation)
    assert_rule(ours, plain, right, names(group, 1), dtype)


@pytest.mark.parametrize("n", [192, 1536])
def test_concatenated(n):
    g = fresh_seed()
    group = on_gpu(make_group(g, 512, 576, (n,), (128,)), torch.bfloat16)
    dys = [torch.randn(512, n, generator=g).to("cuda", torch.bfloat16)]
    x, w, a, b, scaling, bias = group.single
    packed = pack(w, a, b, scaling)
    ours = run(
        lambda: concat_linear(x, packed, a, b, scaling, bias),
        group, dys, (),
    )  # fmt: skip
    plain = run(reference.lora_qkv, group, dys)
    assert_rule(ours, plain, truth("lora_qkv", group, dys), names(group, 1), torch.bfloat16)


@pytest.mark.parametrize("op", [lora_qkv, lora_gate_up])
def test_in_a_cuda_graph(op):
    g = fresh_seed()
    group = on_gpu(make_group(g, 256, 128, (192, 192), (16, 16)), torch.bfloat16)
    dys = [torch.randn(256, 192, generator=g).to("cuda", torch.bfloat16) for _ in range(2)]
    dys = dys[: 1 if op is lora_gate_up else 2]
    run(op, group, dys)  # compiles outside of the capture
    torch.use_deterministic_algorithms(False)
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        run(op, group, dys)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = run(op, group, dys)
    with torch.no_grad():
        group.x.copy_(torch.randn(256, 128, generator=g))
    graph.replay()
    torch.cuda.synchronize()
    assert all(torch.equal(a, b) for a, b in zip(captured, run(op, group, dys), strict=True))


@pytest.mark.parametrize("op", [lora_qkv, lora_gate_up])
def test_compiled_in_one_graph(op):
    g = fresh_seed()
    group = on_gpu(make_group(g, 64, 128, (192, 192), (16, 16)), torch.bfloat16)
    dys = [torch.randn(64, 192, generator=g).to("cuda", torch.bfloat16) for _ in range(2)]
    dys = dys[: 1 if op is lora_gate_up else 2]
    right = run(op, group, dys)
    torch._dynamo.reset()
    ours = run(torch.compile(op, fullgraph=True), group, dys)
    assert all(rel(a, b) < 1e-2 for a, b in zip(ours, right, strict=True))


@pytest.mark.parametrize("odd", [0, 1])
def test_rows_beyond_two_to_the_31_elements(odd):
    """T · N over 2³¹, by descriptors and (odd N) by pointers: the last rows must be their own."""
    t, k, n, r = 2**17, 64, 2**14 + 128 + odd, 16
    if torch.cuda.mem_get_info()[0] < 20 * 2**30:
        pytest.skip("needs 20 GiB of free GPU memory")
    torch.use_deterministic_algorithms(False)
    group = on_gpu(make_group(fresh_seed(), 1, k, (n,), (r,)), torch.bfloat16)
    x = torch.randn(t, k, device="cuda", dtype=torch.bfloat16).requires_grad_()
    _, *rest = group.single
    a, b = rest[1], rest[2]
    last = x.detach()[-64:].clone().requires_grad_()
    dy = torch.zeros(t, n, device="cuda", dtype=torch.bfloat16)
    dy[-64:].normal_()
    y, few = lora_linear(x, *rest), lora_linear(last, *rest)
    assert rel(y[-64:], few) < 1e-2
    ours = torch.autograd.grad(y, (x, a, b), dy)
    right = torch.autograd.grad(few, (last, a, b), dy[-64:])
    assert rel(ours[0][-64:], right[0]) < 1e-2 and not ours[0][:-64].any()
    assert rel(ours[1], right[1]) < 1e-2 and rel(ours[2], right[2]) < 1e-2


def transposed(x):
    return x.T.contiguous().T


def sliced(x):
    return torch.cat([x, torch.full_like(x, torch.nan)], dim=1)[:, : x.shape[1]]


def shifted(x):
    """Aligned rows that start in the middle of 16 bytes."""
    return torch.cat([torch.full_like(x[:, :1], torch.nan), x, x[:, :7]], dim=1)[:, 1:-7]


def strided(x):
    return torch.stack([x, torch.full_like(x, torch.nan)], dim=1)[:, 0]


@pytest.mark.parametrize("layout", [transposed, sliced, shifted, strided])
def test_layouts_of_x_and_dy(layout):
    g = fresh_seed()
    group = on_gpu(make_group(g, 129, 128, (192,), (16,)), torch.bfloat16)
    dy = torch.randn(129, 192, generator=g).to("cuda", torch.bfloat16)
    plain = run(reference.lora_qkv, group, [dy])
    right = truth("lora_qkv", group, [dy])
    group.x = layout(group.x.detach()).requires_grad_()
    ours = run(lora_linear, group, [layout(dy)], group.single)
    assert_rule(ours, plain, right, names(group, 1), torch.bfloat16)


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("op", [lora_qkv, lora_gate_up])
def test_checkpointing_gives_the_same(op, reentrant):
    group = on_gpu(make_group(fresh_seed(), 130, 128, (192, 192), (16, 16)), torch.bfloat16)

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


def test_x_without_gradient_costs_no_dx(monkeypatch):
    from liftcore.kernels import lora_triton

    launched, chain = [], lora_triton.chain

    def spy(*args, nt, **kwargs):
        launched.append(nt)
        return chain(*args, nt=nt, **kwargs)

    monkeypatch.setattr(lora_triton, "chain", spy)
    g = fresh_seed()
    group = on_gpu(make_group(g, 129, 128, (192,), (16,)), torch.bfloat16)
    dy = torch.randn(129, 192, generator=g).to("cuda", torch.bfloat16)
    _, dx, *right = run(lora_linear, group, [dy], group.single)
    assert launched == [True, False] and dx.shape == group.x.shape
    launched.clear()
    y = lora_linear(group.x.detach(), *group.single[1:])
    ours = torch.autograd.grad(y, group.trained[1:], dy)
    assert launched == [True] and all(torch.equal(a, b) for a, b in zip(ours, right, strict=True))


def test_concatenated_in_a_cuda_graph():
    g = fresh_seed()
    group = on_gpu(make_group(g, 256, 128, (96,), (16,)), torch.bfloat16)
    dys = [torch.randn(256, 96, generator=g).to("cuda", torch.bfloat16)]
    x, w, a, b, scaling, bias = group.single
    packed = pack(w, a, b, scaling)

    def both():
        return run(
            lambda: concat_linear(x, packed, a, b, scaling, bias),
            group, dys, (),
        )  # fmt: skip

    torch.use_deterministic_algorithms(False)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        both()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = both()
    with torch.no_grad():
        x.copy_(torch.randn(256, 128, generator=g))
        packed.scaled_b.mul_(2)
    graph.replay()
    torch.cuda.synchronize()
    assert all(torch.equal(p, q) for p, q in zip(captured, both(), strict=True))


@pytest.mark.parametrize("op", [lora_qkv, lora_gate_up])
def test_under_autocast_it_runs_as_the_linear_of_torch(op):
    """fp32 tensors take the kernels of 16 bits, and their gradients come back in fp32."""
    g = fresh_seed()
    group = on_gpu(make_group(g, 129, 128, (192, 192), (16, 16)), torch.float32)
    dys = [torch.randn(129, 192, generator=g).to("cuda", torch.bfloat16) for _ in range(2)]
    dys = dys[: 1 if op is lora_gate_up else 2]

    def cast(op):
        def call(*args):
            with torch.autocast("cuda", torch.bfloat16):
                return op(*args)

        return run(call, group, dys)

    ours, plain = cast(op), cast(getattr(reference, op.__name__))
    assert [t.dtype for t in ours] == [t.dtype for t in plain]
    right = truth(op.__name__, group, dys)
    assert_rule(ours, plain, right, names(group, len(dys)), torch.bfloat16)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
@pytest.mark.parametrize("op", [lora_qkv, lora_gate_up])
def test_on_a_device_that_is_not_the_current_one(op):
    g = fresh_seed()
    first = on_gpu(make_group(g, 129, 128, (192, 192), (16, 16)), torch.bfloat16)
    dys = [torch.randn(129, 192, generator=g).to("cuda", torch.bfloat16) for _ in range(2)]
    dys = dys[: 1 if op is lora_gate_up else 2]
    right = run(op, first, dys)
    ours = run(op, first.to(device="cuda:1"), [dy.to("cuda:1") for dy in dys])
    assert torch.cuda.current_device() == 0
    assert all(rel(a.cpu(), b.cpu()) < 1e-2 for a, b in zip(ours, right, strict=True))


def test_ten_steps_of_training_follow_the_plain_path():
    """fp32, so that the two paths differ by rounding only; SGD shows a wrong factor."""
    g = fresh_seed()
    x, target = (torch.randn(129, 64, generator=g).cuda() for _ in range(2))
    mlp = make_group(g, 129, 64, (96, 96), (8, 8), bias=False)
    down = make_group(g, 129, 96, (64,), (8,), bias=False)

    def train(way):
        groups = [on_gpu(group, torch.float32) for group in (mlp, down)]
        optimizer = torch.optim.SGD([p for m in groups for p in m.trained[1:]], lr=0.1)
        losses = []
        for _ in range(10):
            h = lora_gate_up(x, *groups[0].args[1:], way=way)
            loss = (lora_linear(h, *groups[1].single[1:], way=way) - target).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        return losses

    ours, right = train("triton"), train("plain")
    assert right[-1] < 0.95 * right[0]
    assert max(abs(a - b) for a, b in zip(ours, right, strict=True)) < 1e-4
