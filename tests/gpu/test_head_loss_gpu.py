"""The head loss on a GPU: the rule is an error of at most twice that of plain PyTorch."""

import pytest
import torch
from head_checks import fresh_seed, problem, rel

from liftcore.kernels.head_loss import linear_cross_entropy

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")

WAYS = ("triton", "cublas")
BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32
SHAPES = [
    (1, 48, 97),
    (7, 257, 4099),
    (129, 80, 1000),
    (300, 576, 49152),
    (1500, 512, 50257),
    (2048, 4096, 128256),
]


@pytest.fixture(autouse=True)
def poisoned():
    """Memory that an op allocates and does not write holds NaN; products in full precision."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    yield
    torch.backends.cuda.matmul.allow_tf32 = before
    torch.use_deterministic_algorithms(False)


def check(p, **kwargs):
    """Loss and gradients of p against fp32 truth, with plain PyTorch of p's dtype as the bound."""
    loss, dhidden, dweight = p.run(**kwargs)
    kwargs = {k: v for k, v in kwargs.items() if k not in ("way", "row_index", "train_head")}
    right = p.truth(dtype=FP32, **kwargs)
    rival = p.truth(dtype=p.hidden.dtype, **kwargs)
    assert rel(loss, right[0]) <= 2 * rel(rival[0], right[0]) + 1e-5
    assert rel(dhidden, right[1]) <= 2 * rel(rival[1], right[1]) + 1e-5
    if dweight is not None:
        assert rel(dweight, right[2]) <= 2 * rel(rival[2], right[2]) + 1e-5


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [BF16, FP16, FP32])
def test_values_and_gradients(shape, dtype, way):
    g = fresh_seed()
    p = problem(*shape, g, device="cuda", dtype=dtype)
    check(p, up=torch.rand(shape[0], generator=g).cuda() + 0.5, reduction="none", way=way)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("options", [{"softcap": 5.0}, {"logit_scale": 0.25}])
@pytest.mark.parametrize("masked", [0.0, 0.625])
def test_options(way, options, masked):
    p = problem(700, 576, 49152, fresh_seed(), masked=masked, device="cuda", dtype=BF16, **options)
    check(p, way=way)


@pytest.mark.parametrize("way", WAYS)
def test_row_index(way):
    p = problem(700, 576, 49152, fresh_seed(), device="cuda", dtype=BF16)
    p.hidden.nan_to_num_(0.0)
    check(p, way=way, row_index=p.row_index(640))


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_trainable_head(reduction):
    p = problem(700, 576, 4099, fresh_seed(), device="cuda", dtype=BF16)
    p.hidden.nan_to_num_(0.0)
    check(p, train_head=True, reduction=reduction)


@pytest.mark.parametrize("way", WAYS)
def test_confident_tokens_keep_a_gradient(way):
    """The margin is exact in bf16 products, so only the softmax could lose the gradient."""
    hidden = torch.zeros(64, 64, device="cuda", dtype=BF16)
    hidden[:, 0] = 32.0
    weight = torch.zeros(97, 64, device="cuda", dtype=BF16)
    weight[5, 0], weight[6, 0] = 1.0, 0.625
    weight[:, 1:] = torch.randn(97, 63, device="cuda") * 0.1
    labels = torch.full((64,), 5, device="cuda")
    h = hidden.clone().requires_grad_()
    linear_cross_entropy(h, weight, labels, reduction="sum", way=way).backward()
    h64 = hidden.double().requires_grad_()
    z = h64 @ weight.double().T
    others = (z - z[:, 5:6])[:, torch.arange(97, device="cuda") != 5]
    others.exp().sum(-1).log1p().sum().backward()
    assert rel(h.grad, h64.grad) < 1e-2


@pytest.mark.parametrize("way", WAYS)
def test_same_bits_every_time(way):
    p = problem(3000, 1024, 32000, fresh_seed(), device="cuda", dtype=BF16)
    first, second = p.run(way=way), p.run(way=way)
    assert all(torch.equal(a, b) for a, b in zip(first[:2], second[:2], strict=True))


@pytest.mark.parametrize("with_rows", [False, True])
def test_captured_in_a_graph_with_new_rows_each_replay(with_rows):
    """The host never learns the number of rows: one graph serves every mask."""
    g = fresh_seed()
    problems = [
        problem(600, 576, 49152, g, masked=m, device="cuda", dtype=BF16) for m in (0.2, 0.7)
    ]
    for p in problems:
        p.hidden.nan_to_num_(0.0)
    h = problems[0].hidden.clone().requires_grad_()
    weight = problems[0].weight
    labels, tw = problems[0].labels.clone(), problems[0].token_weights.clone()
    rows = problems[0].row_index(600) if with_rows else None

    def step():
        loss = linear_cross_entropy(h, weight, labels, token_weights=tw, row_index=rows)
        return loss, *torch.autograd.grad(loss, h)

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        loss, dhidden = step()
    for p in reversed(problems):
        with torch.no_grad():
            h.copy_(p.hidden)
            labels.copy_(p.labels)
            tw.copy_(p.token_weights)
            if with_rows:
                rows.copy_(p.row_index(600))
        graph.replay()
        p.weight = weight
        right, right_hidden, _ = p.truth(dtype=FP32)
        assert rel(loss, right) < 1e-2 and rel(dhidden, right_hidden) < 2e-2


@pytest.mark.parametrize("with_rows", [False, True])
def test_the_host_never_waits(with_rows):
    p = problem(600, 576, 49152, fresh_seed(), device="cuda", dtype=BF16)
    p.hidden.nan_to_num_(0.0)
    rows = p.row_index(600) if with_rows else None
    p.run(row_index=rows)
    torch.cuda.set_sync_debug_mode("error")
    try:
        p.run(row_index=rows)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("way", WAYS)
def test_memory_of_one_chunk(way):
    t, k, v = 8192, 4096, 128256
    hidden = torch.randn(t, k, device="cuda", dtype=BF16).requires_grad_()
    weight = torch.randn(v, k, device="cuda", dtype=BF16)
    labels = torch.randint(0, v, (t,), device="cuda")
    linear_cross_entropy(hidden[:256], weight, labels[:256], way=way).backward()
    hidden.grad = None
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    linear_cross_entropy(hidden, weight, labels, way=way)
    extra = torch.cuda.max_memory_allocated() - before - hidden.numel() * 2  # less dhidden
    assert extra <= 257 * 2**20
