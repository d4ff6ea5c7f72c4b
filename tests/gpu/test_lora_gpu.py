"""The fused LoRA ops on a GPU in bf16, fp16 and fp32.

The rule: ‖ours − truth‖ ≤ 2 ‖plain − truth‖ + tiny, plain being PyTorch in the same dtype and
truth fp64 from the same rounded inputs.
"""

import pytest
import torch
from lora_checks import fresh_seed, make_group, names, rel, run, truth

from liftcore.kernels import reference
from liftcore.kernels.lora import lora_linear, path
from liftcore.kernels.lora_concat import pack
from liftcore.kernels.lora_group import lora_gate_up, lora_qkv

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
    assert path(torch.ones(2, 3, device="cuda").bfloat16()) == "triton"


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
        lambda: lora_linear(x, packed.weight, a, b, scaling, bias, packed=packed),
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


def test_rows_beyond_two_to_the_31_elements():
    """T · N over 2³¹: the last rows of y must be their own."""
    t, k, n, r = 2**17, 64, 2**14 + 128, 16
    if torch.cuda.mem_get_info()[0] < 12 * 2**30:
        pytest.skip("needs 12 GiB of free GPU memory")
    torch.use_deterministic_algorithms(False)
    group = on_gpu(make_group(fresh_seed(), 1, k, (n,), (r,)), torch.bfloat16)
    x = torch.randn(t, k, device="cuda", dtype=torch.bfloat16)
    with torch.no_grad():
        _, w, a, b, scaling, bias = group.single
        y = lora_linear(x, w, a, b, scaling, bias)
        last = lora_linear(x[-64:], w, a, b, scaling, bias)
    assert rel(y[-64:], last) < 1e-2
