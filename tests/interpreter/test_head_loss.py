"""The Triton kernels of the head loss against fp64 truth, in fp32 on the CPU."""

from contextlib import contextmanager

import pytest
import torch
from errors_and_seeds import fresh_seed, rel
from head_checks import (
    Problem,
    check_token_weights_gradient,
    problem,
)
from torch.utils.checkpoint import checkpoint

from liftcore.kernels import head_loss, head_loss_cublas, head_loss_dhidden, head_loss_logits, tiles
from liftcore.kernels.head_loss import linear_cross_entropy
from liftcore.kernels.tiling import launch

WAYS = ("triton", "cublas")
# Every T, K, V of interest once, each beside the other sizes that strain it most.
SHAPES = [(1, 48, 97), (7, 257, 300), (64, 80, 643), (129, 48, 97), (129, 80, 300)]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("options", [{}, {"softcap": 3.0, "logit_scale": 0.7}])
def test_values_and_gradients(shape, way, options, monkeypatch):
    # Several blocks of 643 columns, which are quicker than several of 4,096.
    monkeypatch.setattr(head_loss_logits, "FINISH_BLOCK", 256)
    g = fresh_seed()
    p = problem(*shape, g, **options)
    up = torch.randn(shape[0], generator=g)
    loss, dhidden, dweight = p.run(up, reduction="none", way=way)
    right, right_hidden, _ = p.truth(up, reduction="none")
    assert rel(loss, right) < 1e-5
    assert rel(dhidden, right_hidden) < 1e-5
    assert dhidden[~p.scored].abs().sum() == 0 and dweight is None


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("weighted", [False, True])
def test_reductions(way, reduction, weighted):
    g = fresh_seed()
    p = problem(20, 48, 97, g, weighted=weighted)
    up = torch.randn((), generator=g)
    loss, dhidden, _ = p.run(up, reduction=reduction, way=way)
    right, right_hidden, _ = p.truth(up, reduction=reduction)
    assert rel(loss, right) < 1e-5 and rel(dhidden, right_hidden) < 1e-5


@pytest.mark.parametrize("with_rows", [False, True])
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_trainable_head(reduction, with_rows, monkeypatch):
    g = fresh_seed()
    monkeypatch.setattr(head_loss_cublas, "DWEIGHT_BYTES", 4 * 48 * 40)  # slices of V
    p = problem(21, 48, 97, g, softcap=4.0)
    up = torch.randn((21,) if reduction == "none" else (), generator=g)
    rows = p.row_index(21) if with_rows else None
    results = p.run(up, train_head=True, reduction=reduction, row_index=rows)
    for ours, right in zip(results, p.truth(up, reduction=reduction), strict=True):
        assert rel(ours, right) < 1e-5


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("dtype, fill", [(torch.int32, -1), (torch.int64, None), (torch.int64, -1)])
@pytest.mark.parametrize("train_head", [False, True])
def test_row_index_of_a_fixed_length(way, dtype, fill, train_head):
    """−1 is no row, the last one least of all; a row of weight 0 is computed and dropped."""
    p = problem(70, 48, 97, fresh_seed(), masked=0.0 if fill else 0.4)
    rows = p.row_index(75 if fill else 70, dtype, fill)
    results = p.run(reduction="none", row_index=rows, way=way, train_head=train_head)
    for ours, right in zip(results, p.truth(reduction="none"), strict=True):
        assert ours is None or rel(ours, right) < 1e-5


@pytest.mark.parametrize("train_head", [False, True])
def test_only_the_rows_of_the_index_are_computed(train_head, monkeypatch):
    computed = []

    def spy(hidden, weight, labels, w, rows, *rest):
        computed.append(rows)
        return one_chunk(hidden, weight, labels, w, rows, *rest)

    one_chunk = head_loss_cublas._one_chunk
    monkeypatch.setattr(head_loss_cublas, "_one_chunk", spy)
    p = problem(70, 48, 97, fresh_seed())
    rows = p.row_index(int(p.scored.sum()) + 2)
    p.run(row_index=rows, train_head=train_head)
    assert len(computed) == 1 + train_head  # the forward, and the backward of a trainable head
    assert all(torch.equal(listed, rows) for listed in computed)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("with_up", [False, True])
def test_gradient_of_the_token_weights(way, with_up):
    g = fresh_seed()
    p = problem(20, 48, 97, g)
    up = torch.randn(20, generator=g) if with_up else None
    check_token_weights_gradient(p, up, way=way)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("train_head", [False, True])
def test_autocast_changes_nothing(way, dtype, train_head):
    p = problem(20, 48, 97, fresh_seed())
    right = p.run(train_head=train_head, way=way)
    with torch.autocast("cpu", dtype=dtype):
        ours = p.run(train_head=train_head, way=way)
    assert all(torch.equal(a, b) for a, b in zip(ours, right, strict=True) if a is not None)


def test_the_registered_ops_keep_their_promises():
    p = problem(9, 48, 97, fresh_seed())
    p.hidden.nan_to_num_(0.0)
    w, rows = p.scored.float(), p.row_index(10, fill=-1)
    turned = p.weight.T.contiguous().T
    cases = [
        (p.weight, None, True, False, "triton"),
        (turned, None, False, False, "triton"),
        (p.weight, rows, True, False, "cublas"),
        (turned, rows, True, True, "cublas"),
    ]
    for weight, index, *rest in cases:
        args = (p.hidden, weight, p.labels, w, index, None, 1.0, *rest)
        torch.library.opcheck(torch.ops.liftcore.head_loss.default, args)
    torch.library.opcheck(torch.ops.liftcore.head_loss_scale.default, (p.hidden, torch.ones(9)))


@pytest.mark.parametrize("way", WAYS)
def test_many_chunks(way, monkeypatch):
    monkeypatch.setattr(head_loss_logits, "CHUNK_BYTES", 1)
    monkeypatch.setattr(head_loss_cublas, "CHUNK_BYTES", 1)
    p = problem(200, 48, 97, fresh_seed())
    loss, dhidden, _ = p.run(way=way)
    right, right_hidden, _ = p.truth()
    assert rel(loss, right) < 1e-5 and rel(dhidden, right_hidden) < 1e-5


@pytest.mark.parametrize("way", WAYS)
def test_nothing_scored(way):
    p = problem(5, 48, 97, fresh_seed(), masked=0.0)
    p.labels.fill_(-100)
    p.hidden.zero_()
    loss, dhidden, _ = p.run(way=way)
    assert loss == 0 and dhidden.abs().max() == 0
    empty = Problem(p.hidden[:0], p.weight, p.labels[:0], None, {})
    for rows in (None, torch.empty(0, dtype=torch.int64), torch.full((3,), -1)):
        assert empty.run(way=way, row_index=rows)[0] == 0
        assert p.run(way=way, row_index=rows)[0] == 0


@pytest.mark.parametrize("way", WAYS)
def test_every_launch_is_on_the_device_of_its_tensors(way, monkeypatch):
    entered, launched = [], []

    @contextmanager
    def on_device(x):
        entered.append(x.device)
        yield
        entered.pop()

    def spy(*args, **options):
        launched.append(list(entered))
        return launch(*args, **options)

    monkeypatch.setattr(head_loss, "on_device", on_device)
    for module in (head_loss_logits, head_loss_dhidden, head_loss_cublas):
        monkeypatch.setattr(module, "launch", spy)
    problem(6, 48, 97, fresh_seed()).run(way=way)
    assert launched and all(devices == [torch.device("cpu")] for devices in launched)


def test_no_program_runs_for_rows_that_are_not_scored():
    """Behind the count the kernels touch nothing: the poison of fresh memory stays."""
    p = problem(6, 48, 97, fresh_seed(), masked=0.0)
    w = torch.zeros(6)
    index, count = head_loss_logits.find_rows(w, None)
    e, stats = torch.empty(64, 97), torch.empty(2, 64, 1)
    tile = tiles.HEAD_INTERPRETER_TILE
    flags = {"CAP": False, "KEEP": True}
    head_loss_logits.logits(
        p.hidden, p.weight, p.labels, index, count, e, stats, 0, (1.0, 1.0), flags, tile
    )
    part, dhidden = torch.empty(512, 48), torch.empty(6, 48)
    head_loss_dhidden.product(e, p.weight, part, dhidden, index, count, 0, 6, tile)
    for untouched in (e, stats, part, dhidden):
        assert untouched.isnan().all()


def test_rows_are_found_in_order():
    g = fresh_seed()
    w = (torch.rand(2500, generator=g) < 0.3).float()
    index, count = head_loss_logits.find_rows(w, None)
    rows = w.nonzero().squeeze(-1)
    assert count == len(rows) and torch.equal(index[:count].long(), rows)
    assert (index[count:] == 0).all()
    listed = torch.randperm(2500, generator=g)
    index, count = head_loss_logits.find_rows(w, listed)
    assert torch.equal(index[:count].long(), listed[w[listed] != 0])
    w = torch.ones(2501)[1:]  # something lies before it
    index, count = head_loss_logits.find_rows(w, torch.tensor([4, -1, 0, -1]))
    assert count == 2 and index.tolist() == [4, 0, 0, 0]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("gap", [12.0, 30.0, 60.0])
def test_confident_tokens_keep_loss_and_gradient(way, gap):
    """softmax − 1 far below the precision of fp32 is not rounded to 0."""
    g = fresh_seed()
    k, v = 48, 97
    hidden = torch.zeros(5, k)
    hidden[:, 0] = gap
    hidden[:, 1:] = 0.1 * torch.randn(5, k - 1, generator=g)
    weight = torch.randn(v, k, generator=g) * 0.1
    weight[:, 0] = 0
    weight[3, 0] = 1.0
    p = Problem(hidden, weight, torch.full((5,), 3), None, {})
    loss, dhidden, _ = p.run(reduction="none", way=way)
    # The formula with the target left out of the sum: logsumexp − z loses it even in fp64.
    h64 = hidden.double().requires_grad_()
    z = h64 @ weight.double().T
    others = (z - z[:, 3:4])[:, torch.arange(v) != 3]
    right = others.exp().sum(-1).log1p()
    right.sum().backward()
    assert right.max() < 1e-2
    assert rel(loss, right) < 1e-4 and rel(dhidden, h64.grad) < 1e-4


@pytest.mark.parametrize("way", WAYS)
def test_surprising_tokens_do_not_overflow(way):
    p = problem(9, 48, 1000, fresh_seed(), masked=0.0, weighted=False)
    p.weight.mul_(60)
    loss, dhidden, _ = p.run(reduction="none", way=way)
    right, right_hidden, _ = p.truth(reduction="none")
    assert right.max() > 150
    assert rel(loss, right) < 1e-5 and rel(dhidden, right_hidden) < 1e-4


@pytest.mark.parametrize("way", WAYS)
def test_a_saturated_cap_has_the_right_slope(way):
    p = problem(9, 48, 97, fresh_seed(), softcap=1.0)
    p.weight.mul_(4)
    for ours, right in zip(p.run(way=way)[:2], p.truth()[:2], strict=True):
        assert rel(ours, right) < 1e-5


def test_bf16_gradient_written_over_fp32_logits():
    p = problem(33, 64, 5001, fresh_seed(), dtype=torch.bfloat16)
    loss, dhidden, _ = p.run(way="cublas")
    right, right_hidden, _ = p.truth()
    _, plain, _ = p.truth(dtype=torch.bfloat16)
    assert rel(loss, right) < 1e-3
    assert rel(dhidden, right_hidden) < 2 * rel(plain, right_hidden) + 1e-3


@pytest.mark.parametrize("way", WAYS)
def test_a_label_outside_of_the_vocabulary_is_seen(way):
    p = problem(4, 48, 97, fresh_seed(), masked=0.0)
    p.labels[2] = 97
    loss, _, _ = p.run(reduction="none", way=way)
    assert loss[2].isnan() and loss[[0, 1, 3]].isfinite().all()


@pytest.mark.parametrize("way", WAYS)
def test_backward_twice_and_no_second_derivative(way):
    p = problem(9, 48, 97, fresh_seed(), masked=0.0)
    h = p.hidden.clone().requires_grad_()
    loss = linear_cross_entropy(h, p.weight, p.labels, way=way)
    (first,) = torch.autograd.grad(loss, h, retain_graph=True)
    factor = torch.ones((), requires_grad=True)
    (second,) = torch.autograd.grad(loss * factor, h, create_graph=True)
    assert torch.equal(first, second)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        second.sum().backward()


def test_checkpoint_and_evaluation():
    p = problem(9, 48, 97, fresh_seed(), masked=0.0)
    h = p.hidden.clone().requires_grad_()

    def loss(x):
        return linear_cross_entropy(x, p.weight, p.labels, token_weights=p.token_weights)

    saved = checkpoint(loss, h, use_reentrant=False)
    saved.backward()
    right, right_hidden, _ = p.truth()
    assert rel(saved, right) < 1e-5 and rel(h.grad, right_hidden) < 1e-5
    with torch.no_grad():
        assert rel(loss(h), right) < 1e-5


@pytest.mark.parametrize("train_head", [False, True])
def test_compiled_in_one_graph(train_head):
    p = problem(9, 48, 97, fresh_seed(), softcap=5.0)
    p.hidden.nan_to_num_(0.0)
    compiled = torch.compile(linear_cross_entropy, fullgraph=True, backend="aot_eager")
    h = p.hidden.clone().requires_grad_()
    w = p.weight.clone().requires_grad_(train_head)
    loss = compiled(h, w, p.labels, token_weights=p.token_weights, **p.options)
    loss.backward()
    for ours, right in zip((loss, h.grad, w.grad), p.truth(), strict=True):
        assert ours is None or rel(ours, right) < 1e-5
    assert (w.grad is not None) == train_head


def test_strided_inputs():
    p = problem(12, 48, 97, fresh_seed())
    right = p.truth()
    p.hidden = torch.stack([p.hidden, p.hidden * torch.nan], 1).view(12, 96)[:, :48]
    p.weight = p.weight.T.contiguous().T
    for way in WAYS:
        for ours, wanted in zip(p.run(way=way)[:2], right[:2], strict=True):
            assert rel(ours, wanted) < 1e-5
