"""The head loss with soft targets on the plain path, against the formula and the hard loss."""

import pytest
import torch
from errors_and_seeds import fresh_seed, rel
from head_checks import check_token_weights_gradient, problem, soft_problem

from liftcore.kernels import head_loss_plain, reference
from liftcore.kernels.head_loss import linear_cross_entropy, linear_soft_cross_entropy


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("options", [{}, {"softcap": 3.0, "logit_scale": 0.7}])
@pytest.mark.parametrize("train_head", [False, True])
@pytest.mark.parametrize("targets", [1, 2, 20])
def test_values_and_gradients(reduction, options, train_head, targets, monkeypatch):
    g = fresh_seed()
    monkeypatch.setattr(head_loss_plain, "CHUNK_BYTES", 4 * 97 * 19)  # 19 rows, a tile and 3
    p = soft_problem(40, 24, 97, targets, g, **options)
    up = torch.randn((40,) if reduction == "none" else (), generator=g)
    loss, dhidden, dweight = p.run(up, train_head=train_head, reduction=reduction)
    right, right_hidden, right_weight = p.truth(up, reduction=reduction)
    assert rel(loss, right) < 1e-5 and rel(dhidden, right_hidden) < 1e-5
    assert dhidden[~p.scored].abs().sum() == 0
    assert dweight is None if not train_head else rel(dweight, right_weight) < 1e-5


def test_the_formula_itself():
    """The reference against log_softmax and a dense distribution."""
    p = soft_problem(30, 24, 97, 7, fresh_seed(), masked=0.0, weighted=False)
    used = p.ids >= 0
    dense = torch.zeros(30, 97, dtype=torch.float64)
    for t, j in used.nonzero().tolist():
        dense[t, p.ids[t, j]] += p.probs[t, j].double()
    z = p.hidden.double() @ p.weight.double().T
    right = -(dense * z.log_softmax(-1)).sum(-1)
    ours = reference.linear_soft_cross_entropy(
        p.hidden.double(), p.weight.double(), p.ids, p.probs, reduction="none"
    )
    assert rel(ours, right) < 1e-6


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("options", [{}, {"softcap": 3.0, "logit_scale": 0.7}])
@pytest.mark.parametrize("places", [1, 3])
def test_one_sure_target_is_the_hard_loss_bit_for_bit(dtype, options, places):
    p = problem(40, 24, 97, fresh_seed(), dtype=dtype, **options)
    ids = p.labels.clamp_min(-1)[:, None].expand(-1, places)  # one id, its probability in parts
    probs = torch.full(ids.shape, 1.0)
    if places > 1:
        probs = torch.tensor([0.25, 0.5, 0.25]).expand(40, -1)
    h = p.hidden.clone().requires_grad_()
    loss = linear_soft_cross_entropy(
        h, p.weight, ids, probs, token_weights=p.token_weights, **p.options
    )
    loss.backward()
    hard, dhidden, _ = p.run()
    assert torch.equal(loss, hard) and torch.equal(h.grad, dhidden)


@pytest.mark.parametrize("options", [{}, {"softcap": 5.0}])
def test_bf16_is_within_twice_the_error_of_plain_bf16(options):
    p = soft_problem(64, 64, 1000, 20, fresh_seed(), dtype=torch.bfloat16, **options)
    for ours, rival, right in zip(
        p.run(reduction="none")[:2],
        p.truth(dtype=torch.bfloat16, reduction="none"),
        p.truth(dtype=torch.float32, reduction="none"),
        strict=False,
    ):
        assert rel(ours, right) <= 2 * rel(rival, right) + 1e-5


@pytest.mark.parametrize("gap", [12.0, 30.0, 60.0])
def test_a_row_that_fits_its_targets_keeps_its_small_gradient(gap):
    """One target of p = 1 that the model is almost sure of: softmax − 1 is far below fp32."""
    g = fresh_seed()
    hidden = torch.zeros(5, 48)
    hidden[:, 0] = gap
    hidden[:, 1:] = 0.1 * torch.randn(5, 47, generator=g)
    weight = torch.randn(97, 48, generator=g) * 0.1
    weight[:, 0] = 0
    weight[3, 0] = 1.0
    ids, probs = torch.tensor([[7, 3]]).expand(5, 2), torch.tensor([[0.0, 1.0]]).expand(5, 2)
    h = hidden.clone().requires_grad_()
    loss = linear_soft_cross_entropy(h, weight, ids, probs, reduction="sum")
    loss.backward()
    h64 = hidden.double().requires_grad_()
    z = h64 @ weight.double().T
    right = (z - z[:, 3:4])[:, torch.arange(97) != 3].exp().sum(-1).log1p().sum()
    right.backward()
    assert rel(loss, right) < 1e-4 and rel(h.grad, h64.grad) < 1e-4


def test_at_the_teachers_own_distribution_the_gradient_vanishes():
    g = fresh_seed()
    hidden, weight = torch.randn(6, 24, generator=g), torch.randn(50, 24, generator=g)
    probs, ids = (hidden @ weight.T).softmax(-1).topk(50)
    h = hidden.requires_grad_()
    loss = linear_soft_cross_entropy(h, weight, ids, probs, reduction="sum")
    loss.backward()
    assert rel(loss, -(probs * probs.log()).sum()) < 1e-5  # the entropy
    assert h.grad.abs().max() < 1e-5


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
@pytest.mark.parametrize("fill", [None, -1])
def test_row_index_of_a_fixed_length(dtype, fill):
    p = soft_problem(40, 24, 97, 5, fresh_seed())
    p.ids, p.probs = p.ids.int(), p.probs.half()
    rows = p.row_index(45, dtype, fill)
    results = p.run(reduction="none", row_index=rows, train_head=True)
    for ours, right in zip(results, p.truth(reduction="none"), strict=True):
        assert rel(ours, right) < 1e-5


@pytest.mark.parametrize("with_up", [False, True])
def test_gradient_of_the_token_weights(with_up):
    g = fresh_seed()
    p = soft_problem(40, 24, 97, 5, g)
    check_token_weights_gradient(p, torch.randn(40, generator=g) if with_up else None)


def test_nothing_to_learn_gives_zero_and_no_nan():
    h = torch.randn(4, 8, requires_grad=True)
    ids = torch.tensor([[-1, -1], [3, 4], [-1, 2], [1, 1]])
    probs = torch.tensor([[0.5, 0.5], [0.0, 0.0], [0.5, 0.0], [0.0, 0.0]])
    loss = linear_soft_cross_entropy(h, torch.randn(11, 8), ids, probs)
    loss.backward()
    assert loss == 0 and h.grad.abs().max() == 0


def test_the_registered_op_keeps_its_promises():
    p = soft_problem(9, 48, 97, 4, fresh_seed())
    from liftcore.kernels.head_loss import merged

    ids, probs = merged(p.ids, p.probs)
    for wants in ((True, False), (True, True), (False, False)):
        args = (p.hidden, p.weight, ids, p.scored.float(), None, None, 1.0, *wants, "cublas", probs)
        torch.library.opcheck(torch.ops.liftcore.head_loss.default, args)


def test_compiled_in_one_graph():
    p = soft_problem(9, 48, 97, 4, fresh_seed())
    compiled = torch.compile(linear_soft_cross_entropy, fullgraph=True, backend="aot_eager")
    h = p.hidden.clone().requires_grad_()
    loss = compiled(h, p.weight, p.ids, p.probs, token_weights=p.token_weights)
    loss.backward()
    right, right_hidden, _ = p.truth()
    assert rel(loss, right) < 1e-5 and rel(h.grad, right_hidden) < 1e-5


@pytest.mark.parametrize(
    "bad",
    [
        {"target_ids": torch.zeros(9).long()},
        {"target_ids": torch.zeros(9, 3).long()},
        {"target_ids": torch.zeros(9, 2)},
        {"target_probs": torch.zeros(9, 2).long()},
        {"target_ids": torch.zeros(9, 0).long(), "target_probs": torch.zeros(9, 0)},
        {"hidden": torch.ones(8, 4)},
        {"token_weights": torch.ones(8)},
        {"row_index": torch.zeros(3)},
        {"reduction": "avg"},
    ],
)
def test_arguments_that_do_not_fit_are_refused(bad):
    good = {
        "hidden": torch.ones(9, 4),
        "weight": torch.ones(5, 4),
        "target_ids": torch.zeros(9, 2).long(),
        "target_probs": torch.ones(9, 2),
    }
    linear_soft_cross_entropy(**good)
    with pytest.raises(ValueError, match="linear_soft_cross_entropy"):
        linear_soft_cross_entropy(**{**good, **bad})


def test_an_id_outside_of_the_vocabulary_is_an_error():
    with pytest.raises(ValueError, match="vocabulary"):
        linear_soft_cross_entropy(
            torch.ones(1, 4), torch.ones(5, 4), torch.tensor([[5]]), torch.ones(1, 1)
        )


def test_the_hard_loss_takes_no_soft_path(monkeypatch):
    def never(*args):
        raise AssertionError

    monkeypatch.setattr(head_loss_plain, "_soft_nll_and_dz", never)
    linear_cross_entropy(torch.ones(3, 4), torch.ones(5, 4), torch.zeros(3).long())
