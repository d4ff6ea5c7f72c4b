"""Row factors of the head loss in the Triton kernels."""

import pytest
import torch
from errors_and_seeds import fresh_seed
from head_factors import (
    SCALER,
    check_large_weights,
    check_nothing_scored,
    check_scaled,
)

WAYS = ("triton", "cublas")
DTYPES = [torch.float16, torch.float32]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("train_head", [False, True])
def test_nothing_scored(way, dtype, train_head):
    check_nothing_scored(fresh_seed(), dtype, train_head, SCALER, way=way)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_scaler_multiplies_the_gradients(way, dtype):
    check_scaled(fresh_seed(), dtype, "sum", way=way)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("train_head", [False, True])
def test_large_and_small_token_weights(way, dtype, train_head):
    check_large_weights(fresh_seed(), dtype, train_head, way=way)
