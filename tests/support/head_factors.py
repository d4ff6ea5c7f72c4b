"""Factors of the head loss that a dtype of the model cannot hold, on any path of the op."""

from __future__ import annotations

import torch
from errors_and_seeds import rel
from head_checks import problem

SCALER = 65536.0  # what GradScaler begins with


def check_nothing_scored(g, dtype, train_head, up=1.0, **kwargs):
    """All labels −100: a loss of 0 and gradients of 0, whatever they are multiplied by."""
    p = problem(6, 16, 37, g, masked=0.0, weighted=False, dtype=dtype)
    p.labels.fill_(-100)
    loss, dhidden, dweight = p.run(torch.tensor(up), train_head, reduction="mean", **kwargs)
    assert loss == 0 and dhidden.abs().max() == 0
    assert dweight is None or dweight.abs().max() == 0


def check_scaled(g, dtype, reduction, **kwargs):
    """A scaler's factor gives its multiple of the gradients, rounded once."""
    p = problem(12, 16, 37, g, dtype=dtype)
    up = torch.full((12,) if reduction == "none" else (), SCALER / 64)
    p.weight = p.weight / 16  # so that no gradient itself is too large for fp16
    results = p.run(up, True, reduction=reduction, **kwargs)
    for ours, right in zip(results, p.truth(up, reduction=reduction), strict=True):
        assert rel(ours, right) < (3e-3 if dtype == torch.float16 else 1e-5)
    up = torch.full_like(up, SCALER)
    _, dhidden, _ = p.run(up, reduction=reduction, **kwargs)
    right = p.truth(up, reduction=reduction)[1]
    fits = right.abs() < 6e4 if dtype == torch.float16 else right.isfinite()
    assert dhidden[fits].isfinite().all() and rel(dhidden[fits], right[fits]) < 3e-3


def check_large_weights(g, dtype, train_head, **kwargs):
    """Token weights beyond the largest fp16 number, and beneath its smallest."""
    p = problem(12, 16, 37, g, dtype=dtype)
    for factor in (3e6, 1e-9):
        p.token_weights = p.token_weights * factor
        results = p.run(torch.tensor(1 / factor), train_head, reduction="sum", **kwargs)
        right = p.truth(torch.tensor(1 / factor), reduction="sum")
        for ours, truth in zip(results, right, strict=True):
            if ours is not None:
                assert rel(ours, truth) < (3e-3 if dtype == torch.float16 else 1e-5)
        p.token_weights = p.token_weights / factor
