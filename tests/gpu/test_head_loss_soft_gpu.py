"""The soft head loss on a GPU: the rule is an error of at most twice that of plain PyTorch.

This has not run on a GPU yet.
"""

import pytest
import torch
from errors_and_seeds import fresh_seed, rel
from head_checks import check_token_weights_gradient, problem, soft_problem

from liftcore.kernels.head_loss import linear_soft_cross_entropy

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")

BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32
SHAPES = [(1, 48, 97, 1), (7, 257, 4099, 20), (300, 576, 49152, 20), (1024, 4096, 128256, 32)]


@pytest.fixture(autouse=True)
def full_precision():
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    yield
    torch.backends.cuda.matmul.allow_tf32 = before


def check(p, **kwargs):
    """Loss and gradients of p against fp32 truth, with plain PyTorch of p's dtype as the bound."""
    results = p.run(**kwargs)
    kwargs = {k: v for k, v in kwargs.items() if k not in ("row_index", "train_head")}
    right = p.truth(dtype=FP32, **kwargs)
    rival = p.truth(dtype=p.hidden.dtype, **kwargs)
    for ours, wanted, plain in zip(results, right, rival, strict=True):
        assert ours is None or rel(ours, wanted) <= 2 * rel(plain, wanted) + 1e-5


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [BF16, FP16, FP32])
def test_values_and_gradients(shape, dtype):
    g = fresh_seed()
    p = soft_problem(*shape, g, device="cuda", dtype=dtype)
    check(p, up=torch.rand(shape[0], generator=g).cuda() + 0.5, reduction="none")


@pytest.mark.parametrize("options", [{"softcap": 5.0}, {"logit_scale": 0.25}])
@pytest.mark.parametrize("train_head", [False, True])
def test_options(options, train_head):
    g = fresh_seed()
    p = soft_problem(300, 576, 4099, 20, g, device="cuda", dtype=BF16, **options)
    check(p, train_head=train_head)


@pytest.mark.parametrize("fill", [None, -1])
def test_row_index(fill):
    p = soft_problem(700, 576, 4099, 20, fresh_seed(), device="cuda", dtype=BF16)
    check(p, row_index=p.row_index(768, fill=fill))


def test_gradient_of_the_token_weights():
    p = soft_problem(70, 48, 97, 5, fresh_seed(), device="cuda")
    check_token_weights_gradient(p, None)


def test_one_sure_target_is_the_hard_loss():
    p = problem(300, 576, 49152, fresh_seed(), device="cuda", dtype=BF16)
    h = p.hidden.clone().requires_grad_()
    ids = p.labels.clamp_min(-1)[:, None]
    probs = torch.ones(ids.shape, device="cuda")
    loss = linear_soft_cross_entropy(h, p.weight, ids, probs, token_weights=p.token_weights)
    loss.backward()
    hard, dhidden, _ = p.run(way="cublas")
    assert rel(loss, hard) < 1e-5 and rel(h.grad, dhidden) < 1e-3


def test_same_bits_every_time():
    p = soft_problem(1000, 576, 49152, 20, fresh_seed(), device="cuda", dtype=BF16)
    rows = p.row_index(1000, fill=-1)
    first, second = p.run(row_index=rows), p.run(row_index=rows)
    assert all(torch.equal(a, b) for a, b in zip(first[:2], second[:2], strict=True))


def test_the_host_never_waits():
    p = soft_problem(600, 576, 49152, 20, fresh_seed(), device="cuda", dtype=BF16)
    p.hidden.nan_to_num_(0.0)
    rows = p.row_index(600)
    p.run(row_index=rows)
    torch.cuda.set_sync_debug_mode("error")
    try:
        p.run(row_index=rows)
    finally:
        torch.cuda.set_sync_debug_mode("default")
