"""The head loss on the plain path: options that the CPU shares with a GPU, and its registration."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from errors_and_seeds import fresh_seed, rel
from head_checks import (
    check_token_weights_gradient,
    problem,
)

from liftcore.kernels.head_loss import linear_cross_entropy


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
@pytest.mark.parametrize("fill", [None, -1])
@pytest.mark.parametrize("masked", [0.4, 0.0])
def test_row_index_of_a_fixed_length(dtype, fill, masked):
    p = problem(40, 24, 97, fresh_seed(), masked=masked)
    rows = p.row_index(40 if fill is None else 50, dtype, -1 if masked == 0 else fill)
    loss, dhidden, dweight = p.run(reduction="none", row_index=rows, train_head=True)
    for ours, right in zip((loss, dhidden, dweight), p.truth(reduction="none"), strict=True):
        assert rel(ours, right) < 1e-5


@pytest.mark.parametrize("with_up", [False, True])
def test_gradient_of_the_token_weights(with_up):
    g = fresh_seed()
    p = problem(40, 24, 97, g)
    check_token_weights_gradient(p, torch.randn(40, generator=g) if with_up else None)


@pytest.mark.parametrize("train_head", [False, True])
def test_autocast_changes_nothing(train_head):
    p = problem(20, 48, 97, fresh_seed())
    right = p.run(train_head=train_head)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ours = p.run(train_head=train_head)
    assert all(torch.equal(a, b) for a, b in zip(ours, right, strict=True) if a is not None)


@pytest.mark.parametrize("options", [{}, {"softcap": 3.0, "logit_scale": 0.5}])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_trainable_head(reduction, options):
    g = fresh_seed()
    p = problem(40, 24, 97, g, **options)
    up = torch.randn((40,) if reduction == "none" else (), generator=g)
    results = p.run(up, train_head=True, reduction=reduction)
    for ours, right in zip(results, p.truth(up, reduction=reduction), strict=True):
        assert rel(ours, right) < 1e-5


@pytest.mark.parametrize("train_head", [False, True])
def test_compiled_in_one_graph(train_head):
    p = problem(9, 48, 97, fresh_seed())
    compiled = torch.compile(linear_cross_entropy, fullgraph=True, backend="aot_eager")
    h = p.hidden.clone().requires_grad_()
    w = p.weight.clone().requires_grad_(train_head)
    loss = compiled(h, w, p.labels, token_weights=p.token_weights)
    loss.backward()
    for ours, right in zip((loss, h.grad, w.grad), p.truth(), strict=True):
        assert ours is None or rel(ours, right) < 1e-5


def test_the_registered_ops_keep_their_promises():
    p = problem(9, 48, 97, fresh_seed())
    w = p.scored.float()
    for wants in ((True, False), (True, True), (False, False)):
        args = (p.hidden, p.weight, p.labels, w, None, None, 1.0, *wants, "triton")
        torch.library.opcheck(torch.ops.liftcore.head_loss.default, args)
    turned = p.weight.T.contiguous().T
    args = (p.hidden, turned, p.labels, w, None, None, 1.0, True, True, "triton")
    torch.library.opcheck(torch.ops.liftcore.head_loss.default, args)
    torch.library.opcheck(torch.ops.liftcore.head_loss_scale.default, (p.weight, torch.ones(97)))


@pytest.mark.parametrize(
    "bad",
    [
        {"token_weights": torch.ones(8)},
        {"row_index": torch.zeros(3)},
        {"way": "magic"},
        {"reduction": "avg"},
    ],
)
def test_options_that_do_not_fit_are_refused(bad):
    with pytest.raises(ValueError):
        linear_cross_entropy(torch.ones(9, 4), torch.ones(5, 4), torch.zeros(9).long(), **bad)
    with pytest.raises(ValueError, match="float64"):
        linear_cross_entropy(torch.ones(9, 4), torch.ones(5, 4).double(), torch.zeros(9).long())


def test_nothing_of_triton_is_imported_on_a_cpu():
    code = """
import sys, torch
from liftcore.kernels.head_loss import linear_cross_entropy
h = torch.randn(3, 4, requires_grad=True)
linear_cross_entropy(h, torch.randn(5, 4), torch.tensor([1, -100, 2])).backward()
LAZY = [f"liftcore.kernels.{m}" for m in ("tiling", "head_loss_logits", "head_loss_cublas")]
loaded = [m for m in sys.modules if m == "triton" or m in LAZY]
assert not loaded, loaded
assert "torch._dynamo" not in sys.modules
"""
    root = str(Path(__file__).resolve().parents[2])
    subprocess.run([sys.executable, "-c", code], check=True, env={"PYTHONPATH": root})
