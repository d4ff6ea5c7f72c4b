"""The ops against fp64 truth: values and every gradient, on odd shapes."""

import pytest
import torch
from errors_and_seeds import fresh_seed, rel

from liftcore.kernels import reference
from liftcore.kernels.head_loss import linear_cross_entropy
from liftcore.kernels.lora import lora_linear


@pytest.mark.parametrize("shape", [(1, 48, 80, 1), (7, 257, 48, 8), (2, 5, 80, 257, 16)])
@pytest.mark.parametrize("with_bias", [False, True])
def test_lora_linear(shape, with_bias):
    g = fresh_seed()
    *lead, k, n, r = shape
    x = torch.randn(*lead, k, generator=g, requires_grad=True)
    w = torch.randn(n, k, generator=g, requires_grad=True)
    a = torch.randn(r, k, generator=g, requires_grad=True)
    b = torch.randn(n, r, generator=g, requires_grad=True)
    bias = torch.randn(n, generator=g) if with_bias else None
    dy = torch.randn(*lead, n, generator=g)
    y = lora_linear(x, w, a, b, 0.7, bias)
    y.backward(dy)
    truth = [t.detach().double().requires_grad_() for t in (x, w, a, b)]
    yt = reference.lora_linear(*truth, 0.7, None if bias is None else bias.double())
    yt.backward(dy.double())
    assert rel(y, yt) < 1e-5
    assert w.grad is None
    for ours, right in zip((x, a, b), (truth[0], truth[2], truth[3]), strict=True):
        assert rel(ours.grad, right.grad) < 1e-5


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("extra", [{}, {"softcap": 3.0}, {"logit_scale": 0.25}])
def test_linear_cross_entropy(reduction, weighted, extra):
    g = fresh_seed()
    t, k, v = 37, 48, 97
    hidden = torch.randn(t, k, generator=g, requires_grad=True)
    weight = torch.randn(v, k, generator=g)
    labels = torch.randint(0, v, (t,), generator=g)
    labels[::3] = -100
    tw = torch.rand(t, generator=g) if weighted else None
    if weighted:
        tw[1::4] = 0
    loss = linear_cross_entropy(
        hidden, weight, labels, token_weights=tw, reduction=reduction, **extra
    )
    up = torch.randn(loss.shape, generator=g)
    loss.backward(up)
    h64 = hidden.detach().double().requires_grad_()
    truth = reference.linear_cross_entropy(
        h64,
        weight.double(),
        labels,
        token_weights=None if tw is None else tw.double(),
        reduction=reduction,
        **extra,
    )
    truth.backward(up.double())
    assert rel(loss.detach(), truth.detach()) < 1e-5
    assert rel(hidden.grad, h64.grad) < 1e-5
    assert hidden.grad[::3].abs().max() == 0


def test_no_scored_row_gives_zero_and_no_nan():
    hidden = torch.randn(4, 8, requires_grad=True)
    loss = linear_cross_entropy(hidden, torch.randn(11, 8), torch.full((4,), -100))
    loss.backward()
    assert loss.item() == 0 and hidden.grad.abs().max() == 0


def test_confident_tokens_keep_a_gradient():
    """softmax − 1 must not round to 0 for a token that is almost certain."""
    # Products that bf16 holds exactly, so that only the softmax itself can lose the gradient.
    hidden = torch.tensor([[32.0, 0.0]], dtype=torch.bfloat16, requires_grad=True)
    weight = torch.tensor([[1.0, 0.0], [0.625, 1.0], [0.0, -1.0]], dtype=torch.bfloat16)
    linear_cross_entropy(hidden, weight, torch.tensor([0])).backward()
    h64 = hidden.detach().double().requires_grad_()
    reference.linear_cross_entropy(h64, weight.double(), torch.tensor([0])).backward()
    assert rel(hidden.grad, h64.grad) < 1e-2


@pytest.mark.parametrize(
    "bad",
    [
        lambda: lora_linear(
            torch.ones(2, 4), torch.ones(3, 5), torch.ones(1, 4), torch.ones(3, 1), 1
        ),
        lambda: lora_linear(
            torch.ones(2, 4), torch.ones(3, 4).half(), torch.ones(1, 4), torch.ones(3, 1), 1
        ),
        lambda: linear_cross_entropy(torch.ones(2, 4), torch.ones(3, 5), torch.zeros(2).long()),
        lambda: linear_cross_entropy(
            torch.ones(2, 4), torch.ones(3, 4), torch.zeros(2).long(), reduction="avg"
        ),
    ],
)
def test_shapes_that_do_not_fit_are_refused(bad):
    with pytest.raises(ValueError):
        bad()
