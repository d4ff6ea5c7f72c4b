"""The head loss on a GPU: the rule is an error of at most twice that of plain PyTorch."""

import pytest
import torch
from errors_and_seeds import fresh_seed, rel
from head_checks import (
    Problem,
    check_token_weights_gradient,
    problem,
)
from torch.utils.checkpoint import checkpoint

from liftcore.kernels import reference
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
@pytest.mark.parametrize("fill", [None, -1])
@pytest.mark.parametrize("train_head", [False, True])
def test_row_index(way, fill, train_head):
    masked = 0.0 if fill else 0.4
    p = problem(700, 576, 4099, fresh_seed(), masked=masked, device="cuda", dtype=BF16)
    check(p, way=way, train_head=train_head, row_index=p.row_index(768, fill=fill))


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_trainable_head(reduction):
    p = problem(700, 576, 4099, fresh_seed(), device="cuda", dtype=BF16)
    check(p, train_head=True, reduction=reduction)


@pytest.mark.parametrize("way", WAYS)
def test_gradient_of_the_token_weights(way):
    p = problem(70, 48, 97, fresh_seed(), device="cuda")
    check_token_weights_gradient(p, None, way=way)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("dtype", [BF16, FP16])
@pytest.mark.parametrize("train_head", [False, True])
def test_autocast_changes_nothing(way, dtype, train_head):
    p = problem(70, 48, 1000, fresh_seed(), device="cuda")
    rows = p.row_index(70)
    right = p.run(way=way, row_index=rows, train_head=train_head)
    with torch.autocast("cuda", dtype=dtype):
        ours = p.run(way=way, row_index=rows, train_head=train_head)
    assert all(torch.equal(a, b) for a, b in zip(ours, right, strict=True) if a is not None)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("train_head", [False, True])
def test_nothing_scored(way, train_head):
    p = problem(70, 48, 1000, fresh_seed(), masked=0.0, weighted=False, device="cuda", dtype=BF16)
    p.labels.fill_(-100)
    empty = Problem(p.hidden[:0], p.weight, p.labels[:0], None, {})
    nowhere = torch.full((3,), -1, device="cuda")
    for some in (p, empty):
        for rows in (None, nowhere[:0], nowhere):
            loss, *gradients = some.run(way=way, row_index=rows, train_head=train_head)
            assert loss == 0 and not any(g.any() for g in gradients if g is not None)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("train_head", [False, True])
def test_strided_inputs(way, train_head):
    p = problem(70, 48, 1000, fresh_seed(), device="cuda")
    right = p.truth()
    h = torch.stack([p.hidden, p.hidden * torch.nan], 1).view(70, 96)[:, :48].requires_grad_()
    w = p.weight.T.contiguous().T.requires_grad_(train_head)
    labels = torch.stack([p.labels, p.labels], 1)[:, 0]
    loss = linear_cross_entropy(h, w, labels, token_weights=p.token_weights, way=way)
    loss.backward()
    for ours, wanted in zip((loss, h.grad, w.grad), right, strict=True):
        assert ours is None or rel(ours, wanted) < 1e-5


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("train_head", [False, True])
def test_compiled_in_one_graph(way, train_head):
    p = problem(70, 48, 1000, fresh_seed(), device="cuda")
    torch._dynamo.reset()
    compiled = torch.compile(linear_cross_entropy, fullgraph=True)
    h = p.hidden.clone().requires_grad_()
    w = p.weight.clone().requires_grad_(train_head)
    loss = compiled(h, w, p.labels, token_weights=p.token_weights, way=way)
    loss.backward()
    for ours, right in zip((loss, h.grad, w.grad), p.truth(), strict=True):
        assert ours is None or rel(ours, right) < 1e-5


@pytest.mark.parametrize("way", WAYS)
def test_checkpoint(way):
    p = problem(70, 48, 1000, fresh_seed(), device="cuda")
    h = p.hidden.clone().requires_grad_()

    def loss(x):
        return linear_cross_entropy(x, p.weight, p.labels, token_weights=p.token_weights, way=way)

    saved = checkpoint(loss, h, use_reentrant=False)
    saved.backward()
    right, right_hidden, _ = p.truth()
    assert rel(saved, right) < 1e-5 and rel(h.grad, right_hidden) < 1e-5


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("train_head", [False, True])
def test_ten_steps_follow_the_plain_formula(way, train_head):
    g = fresh_seed()
    p = problem(64, 48, 97, g, masked=0.3, device="cuda")
    start = torch.where(p.scored[:, None], p.hidden, 0.0)

    def losses(op, **kwargs):
        h, w = start.clone().requires_grad_(), p.weight.clone().requires_grad_(train_head)
        optimizer = torch.optim.SGD([h, w] if train_head else [h], lr=5.0)
        history = []
        for _ in range(10):
            loss = op(h, w, p.labels, token_weights=p.token_weights, **kwargs)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            history.append(loss.detach())
        return torch.stack(history)

    ours = losses(linear_cross_entropy, way=way)
    assert rel(ours, losses(reference.linear_cross_entropy)) < 1e-4
    assert ours[-1] < 0.9 * ours[0]


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("train_head", [False, True])
def test_on_a_device_that_is_not_the_current_one(way, train_head):
    g = fresh_seed()
    with torch.cuda.device(0):
        p = problem(70, 48, 1000, g, device="cuda:1")
        for ours, right in zip(p.run(way=way, train_head=train_head), p.truth(), strict=True):
            assert ours is None or (ours.device.index == 1 and rel(ours, right) < 1e-5)


@pytest.mark.parametrize("way", WAYS)
def test_rows_beyond_two_to_the_31_elements(way):
    """T · K over 2³¹: the last rows get their own gradient."""
    t, k, last = 2**19 + 64, 4104, 64
    if torch.cuda.mem_get_info()[0] < 20 * 2**30:
        pytest.skip("needs 20 GiB of free GPU memory")
    torch.use_deterministic_algorithms(False)
    p = problem(last, k, 97, fresh_seed(), masked=0.0, device="cuda", dtype=BF16)
    right, right_hidden, _ = p.run(way=way)
    hidden = torch.zeros(t, k, device="cuda", dtype=BF16)
    hidden[-last:] = p.hidden
    labels = torch.full((t,), -100, device="cuda")
    labels[-last:] = p.labels
    weights = torch.ones(t, device="cuda")
    weights[-last:] = p.token_weights
    hidden.requires_grad_()
    rows = torch.arange(t - last, t, device="cuda")
    loss = linear_cross_entropy(
        hidden, p.weight, labels, token_weights=weights, row_index=rows, way=way
    )
    loss.backward()
    assert rel(loss, right) < 1e-3 and rel(hidden.grad[-last:], right_hidden) < 1e-2
    assert not hidden.grad[:-last].any()


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
@pytest.mark.parametrize("fill", [None, -1])
def test_same_bits_every_time(way, fill):
    """Without PyTorch's deterministic mode, and with many rows of padding."""
    torch.use_deterministic_algorithms(False)
    p = problem(3000, 1024, 32000, fresh_seed(), device="cuda", dtype=BF16)
    p.hidden.nan_to_num_(0.0)
    for rows in (None, p.row_index(3000, fill=fill)):
        first, second = p.run(way=way, row_index=rows), p.run(way=way, row_index=rows)
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
