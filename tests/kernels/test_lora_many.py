"""The LoRA linears of many adapters on a CPU against fp64 truth."""

import pytest
import torch
from errors_and_seeds import fresh_seed, rel
from many_checks import MANY, Many, check_gate_up, check_group

from liftcore.kernels import lora_many_plain
from liftcore.kernels.lora import lora_gate_up, lora_linear
from liftcore.kernels.lora_many import lora_gate_up_many, lora_linear_many, lora_qkv_many


@pytest.mark.parametrize("case", MANY, ids=str)
def test_against_truth(case):
    many = Many(fresh_seed(), *case)
    check_group(many)
    if len(many.weights) == 2:
        for activation in ("silu", "gelu_tanh"):
            check_gate_up(many, activation)


def test_one_adapter_with_all_rows_is_lora_linear():
    many = Many(fresh_seed(), (4,), 9, 40, (24, 24), (8, 8)).leaves()
    one = [(a[0], b[0]) for a, b in zip(many.lora_a, many.lora_b, strict=True)]
    x, w, (a, b) = many.x, many.weights, one[0]
    own, bias = many.owners, many.biases[0]
    ours = lora_linear_many(x, w[0], many.lora_a[0], many.lora_b[0], own, 0.5, bias)
    assert rel(ours, lora_linear(x, w[0], a, b, 0.5, bias)) < 1e-6
    rest = many.scalings, many.biases
    ours = lora_gate_up_many(x, w, many.lora_a, many.lora_b, own, *rest)
    right = lora_gate_up(x, w, [a for a, _ in one], [b for _, b in one], *rest)
    assert rel(ours, right) < 1e-6


def test_rows_of_a_batch_and_bf16():
    """x [B, S, K]: a tile is a row of the batch. In bf16 the error is that of its roundings."""
    many = Many(fresh_seed(), (1, 0, 2), 7, 40, (24, 16), (8, 8))
    right = [y.detach() for y in lora_qkv_many(*many.leaves(torch.float64).args)]
    x, *rest = many.leaves(torch.bfloat16).args
    ys = lora_qkv_many(x.view(3, 7, 40), *rest)
    for y, truth in zip(ys, right, strict=True):
        assert y.shape == (3, 7, truth.shape[1]) and y.dtype == torch.bfloat16
        assert rel(y.flatten(0, 1), truth) < 2e-2


def test_what_is_frozen_gets_no_gradient_and_costs_none():
    many = Many(fresh_seed(), (2, 1), 5, 24, (16, 8), (4, 4)).leaves()
    for a in many.lora_a:
        a.requires_grad_(False)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        ys = lora_qkv_many(*many.args)
    assert not any(t is many.x for t in kept)  # dA alone would read it
    torch.autograd.backward(list(ys), many.dys)
    assert all(a.grad is None for a in many.lora_a) and all(b.grad.any() for b in many.lora_b)


def test_the_group_of_a_flat_buffer_is_read_where_it_lies():
    many = Many(fresh_seed(), (1, 1, 1), 2, 24, (16, 8), (4, 6))
    stacked = lora_many_plain.stack(many.lora_a)
    assert stacked.data_ptr() == many.lora_a[0].data_ptr()
    assert torch.equal(stacked, torch.cat(many.lora_a, dim=1))
    apart = [many.lora_a[0], many.lora_a[1].clone()]
    assert torch.equal(lora_many_plain.stack(apart), torch.cat(apart, dim=1))


@pytest.mark.parametrize(
    "owners, word",
    [
        (torch.tensor([1, 0], dtype=torch.int32), "rise"),
        (torch.tensor([0, 2], dtype=torch.int32), "rise"),
        (torch.tensor([0, 1]), "int32"),
        (torch.zeros(3, dtype=torch.int32), "tiles"),
        (torch.zeros(0, dtype=torch.int32), "tiles"),
    ],
)
def test_owners_that_do_not_fit_are_refused(owners, word):
    many = Many(fresh_seed(), (1, 1), 2, 8, (8,), (2,))
    with pytest.raises(ValueError, match=word):
        x, w, a, b = many.x, many.weights[0], many.lora_a[0], many.lora_b[0]
        lora_linear_many(x, w, a, b, owners, 1.0)


def test_shapes_that_do_not_fit_are_refused():
    many = Many(fresh_seed(), (1, 1), 2, 8, (8,), (2,))
    x, w, a, b = many.x, many.weights[0], many.lora_a[0], many.lora_b[0]
    with pytest.raises(ValueError, match=r"\[E, R, K\]"):
        lora_linear_many(x, w, a, b[:1], many.owners, 1.0)
    with pytest.raises(ValueError, match="dtypes"):
        lora_linear_many(x, w.double(), a, b, many.owners, 1.0)
    with pytest.raises(ValueError, match="one shape"):
        lora_gate_up_many(x, [w], [a], [b], many.owners, [1.0])
