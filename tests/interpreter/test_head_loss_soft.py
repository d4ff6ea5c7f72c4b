"""The Triton kernel of the soft head loss against fp64 truth, in fp32 on the CPU."""

import pytest
import torch
from errors_and_seeds import fresh_seed, rel
from head_checks import problem, soft_problem

from liftcore.kernels import head_loss_cublas
from liftcore.kernels.head_loss import linear_soft_cross_entropy


@pytest.mark.parametrize("shape", [(1, 48, 97, 1), (7, 257, 5001, 20), (20, 80, 97, 3)])
@pytest.mark.parametrize("options", [{}, {"softcap": 3.0, "logit_scale": 0.7}])
@pytest.mark.parametrize("train_head", [False, True])
def test_values_and_gradients(shape, options, train_head, monkeypatch):
    g = fresh_seed()
    monkeypatch.setattr(head_loss_cublas, "CHUNK_BYTES", 1)
    p = soft_problem(*shape, g, **options)
    up = torch.randn(shape[0], generator=g)
    loss, dhidden, dweight = p.run(up, train_head=train_head, reduction="none")
    right, right_hidden, right_weight = p.truth(up, reduction="none")
    assert rel(loss, right) < 1e-5 and rel(dhidden, right_hidden) < 1e-5
    assert dhidden[~p.scored].abs().sum() == 0
    assert dweight is None if not train_head else rel(dweight, right_weight) < 1e-5


@pytest.mark.parametrize("dtype, fill", [(torch.int32, -1), (torch.int64, None)])
def test_row_index_of_a_fixed_length(dtype, fill):
    p = soft_problem(12, 48, 97, 4, fresh_seed())
    rows = p.row_index(15, dtype, fill)
    for ours, right in zip(
        p.run(reduction="none", row_index=rows, train_head=True),
        p.truth(reduction="none"),
        strict=True,
    ):
        assert rel(ours, right) < 1e-5


@pytest.mark.parametrize("options", [{}, {"softcap": 3.0}])
def test_one_sure_target_is_the_hard_loss(options):
    p = problem(8, 48, 97, fresh_seed(), **options)
    h = p.hidden.clone().requires_grad_()
    ids = p.labels.clamp_min(-1)[:, None]
    probs = torch.ones(ids.shape)
    loss = linear_soft_cross_entropy(
        h, p.weight, ids, probs, token_weights=p.token_weights, **p.options
    )
    loss.backward()
    hard, dhidden, _ = p.run(way="cublas")
    assert rel(loss, hard) < 1e-6 and rel(h.grad, dhidden) < 1e-6


@pytest.mark.parametrize("gap", [12.0, 60.0])
def test_a_row_that_fits_its_targets_keeps_its_small_gradient(gap):
    hidden = torch.zeros(5, 48)
    hidden[:, 0] = gap
    hidden[:, 1:] = 0.1 * torch.randn(5, 47, generator=fresh_seed())
    weight = torch.randn(97, 48) * 0.1
    weight[:, 0] = 0
    weight[3, 0] = 1.0
    ids, probs = torch.tensor([[7, 3]]).expand(5, 2), torch.tensor([[0.0, 1.0]]).expand(5, 2)
    h = hidden.clone().requires_grad_()
    linear_soft_cross_entropy(h, weight, ids, probs, reduction="sum").backward()
    h64 = hidden.double().requires_grad_()
    z = h64 @ weight.double().T
    (z - z[:, 3:4])[:, torch.arange(97) != 3].exp().sum(-1).log1p().sum().backward()
    assert rel(h.grad, h64.grad) < 1e-4


def test_bf16_gradient_written_over_fp32_logits():
    p = soft_problem(9, 64, 5001, 20, fresh_seed(), dtype=torch.bfloat16)
    loss, dhidden, _ = p.run()
    right, right_hidden, _ = p.truth()
    _, plain, _ = p.truth(dtype=torch.bfloat16)
    assert rel(loss, right) < 1e-3
    assert rel(dhidden, right_hidden) < 2 * rel(plain, right_hidden) + 1e-3


def test_an_id_outside_of_the_vocabulary_is_seen():
    p = soft_problem(4, 48, 97, 3, fresh_seed(), masked=0.0)
    p.ids[2, 2] = 97
    loss, _, _ = p.run(reduction="none")
    assert loss[2].isnan() and loss[[0, 1, 3]].isfinite().all()


def test_nothing_scored():
    p = soft_problem(5, 48, 97, 3, fresh_seed(), masked=0.0)
    p.ids.fill_(-1)
    p.hidden.zero_()
    for rows in (None, torch.empty(0, dtype=torch.int64), torch.full((3,), -1)):
        loss, dhidden, _ = p.run(row_index=rows)
        assert loss == 0 and dhidden.abs().max() == 0
