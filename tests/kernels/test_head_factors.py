"""Row factors of the head loss in fp16 and fp32 on the plain path, and values that it refuses."""

import pytest
import torch
from errors_and_seeds import fresh_seed, rel
from head_checks import problem
from head_factors import (
    SCALER,
    check_large_weights,
    check_nothing_scored,
    check_scaled,
)

from liftcore.kernels.head_loss import linear_cross_entropy

DTYPES = [torch.float16, torch.float32]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("train_head", [False, True])
@pytest.mark.parametrize("up", [1.0, SCALER])
def test_nothing_scored(dtype, train_head, up):
    check_nothing_scored(fresh_seed(), dtype, train_head, up)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_a_scaler_multiplies_the_gradients(dtype, reduction):
    check_scaled(fresh_seed(), dtype, reduction)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("train_head", [False, True])
def test_large_and_small_token_weights(dtype, train_head):
    check_large_weights(fresh_seed(), dtype, train_head)


def test_labels_and_weights_that_mean_nothing_are_refused():
    """On a CPU, where a look at the values costs nothing."""
    p = problem(5, 16, 37, fresh_seed(), masked=0.0)
    for label in (37, -1, -7, 2**40):
        labels = p.labels.clone()
        labels[2] = label
        with pytest.raises(ValueError, match="vocabulary"):
            linear_cross_entropy(p.hidden, p.weight, labels)
        zero = torch.ones(5)
        zero[2] = 0  # not scored: it may hold anything
        linear_cross_entropy(p.hidden, p.weight, labels, token_weights=zero)
    nan = torch.ones(5)
    nan[1] = torch.nan
    with pytest.raises(ValueError, match="NaN"):
        linear_cross_entropy(p.hidden, p.weight, p.labels, token_weights=nan)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_negative_weights_are_weights(reduction):
    g = fresh_seed()
    p = problem(20, 16, 37, g)
    p.token_weights = p.token_weights * torch.where(torch.arange(20) % 3 == 0, -0.1, 1.0)
    results = p.run(train_head=True, reduction=reduction)
    for ours, right in zip(results, p.truth(reduction=reduction), strict=True):
        assert rel(ours, right) < 1e-5
