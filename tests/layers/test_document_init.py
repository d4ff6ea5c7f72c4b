"""A's beginning made for a document, against plain fp64."""

import math

import numpy as np
import pytest
import torch
from tiny import tiny_model

from liftcore.layers import inputs as layer_inputs
from liftcore.layers.document_init import against, begin, leading, own_words
from liftcore.layers.inputs import Inputs, input_groups, inputs
from liftcore.layers.lora import Adapter
from liftcore.model import body

DAMPING = 1e-3


def moment(rows):
    return rows.double().T @ rows.double() / len(rows)


def truth(c_doc, c_own, damping, rank):
    """Rows of the `rank` largest eigenvectors of C_doc v = λ (C_own + δ I) v; in fp64."""
    c_doc, c_own = c_doc.double(), c_own.double()
    m = c_own + damping * c_own.diagonal().mean() * torch.eye(len(c_own), dtype=torch.float64)
    values, vectors = torch.linalg.eigh(m)
    root = vectors @ torch.diag(values**-0.5) @ vectors.T
    return (root @ torch.linalg.eigh(root @ c_doc @ root)[1].flip(1)[:, :rank]).T


def captured(rows, c_doc, c_own, damping):
    """Σ λ within the span of the rows, as a share of the most that so many rows can have."""
    c_doc, c_own, rows = c_doc.double(), c_own.double(), rows.double()
    c_own = c_own + damping * c_own.diagonal().mean() * torch.eye(len(c_own))
    factor = torch.linalg.cholesky(c_own)
    half = torch.linalg.solve_triangular(factor, c_doc, upper=False)
    white = torch.linalg.solve_triangular(factor, half.T, upper=False)
    span = torch.linalg.qr(factor.T @ rows.T)[0]
    best = torch.linalg.eigvalsh(white).flip(0)[: len(rows)].sum()
    return float((span.T @ white @ span).trace() / best)


def given(rows, expected=None):
    seen = Inputs(rows.shape[1], expected or len(rows))
    for part in rows.split(100):
        seen.add(part)
    return seen


def spread(rng, rows, width, directions):
    """Rows with a falling spectrum of their own, so that eigenvectors are well apart."""
    scales = 1.7 ** -torch.arange(directions)
    basis = torch.linalg.qr(torch.tensor(rng.normal(size=(width, directions))))[0]
    x = torch.tensor(rng.normal(size=(rows, directions))) * scales @ basis.T
    return (x + 1e-3 * torch.tensor(rng.normal(size=(rows, width)))).float()


def same_rows(ours, right):
    """Each row of ours is one of right's, but for its size and sign."""
    cosines = torch.nn.functional.cosine_similarity(ours.double(), right, dim=1).abs()
    assert (cosines > 0.999).all(), cosines


@pytest.mark.parametrize(("tokens", "width"), [(60, 96), (700, 96)])
def test_the_leading_directions_are_those_of_fp64(rng, tokens, width):
    # Fewer tokens than width: rows are kept, a moment otherwise.
    document, own = spread(rng, tokens, width, 12), spread(rng, 900, width, 90)
    # Both are largest in one direction, which is no use then.
    both = torch.linalg.eigh(moment(own))[1][:, -1].float()
    document += 3 * torch.tensor(rng.normal(size=(tokens, 1))).float() * both
    seen = given(document)
    assert (seen.moment is None) == (tokens < width)
    rows = leading(seen, against(given(own), DAMPING), 6)
    same_rows(rows, truth(moment(document), moment(own), DAMPING, 6))
    variance = (document @ rows.T).square().mean(0)
    torch.testing.assert_close(variance, torch.ones(6), rtol=1e-2, atol=0)
    assert torch.nn.functional.cosine_similarity(rows[0], both, dim=0).abs() < 0.5


def test_woodbury_is_the_form_in_full(rng, monkeypatch):
    document, own = spread(rng, 80, 96, 12), spread(rng, 120, 96, 90)
    right = leading(given(document), against(given(own), DAMPING), 6)
    monkeypatch.setattr(layer_inputs, "WIDEST", 95)
    wide = against(given(own), DAMPING)
    assert wide.factor is None and wide.rows is not None
    rows = leading(given(document), wide, 6)
    same_rows(rows, right.double())
    variance = (document @ rows.T).square().mean(0)
    torch.testing.assert_close(variance, torch.ones(6), rtol=1e-2, atol=0)


def test_wide_layers_keep_an_even_sample(monkeypatch):
    monkeypatch.setattr(layer_inputs, "WIDEST", 1)
    monkeypatch.setattr(layer_inputs, "ROWS", 50)
    seen = given(torch.arange(320.0)[:, None].expand(320, 2))
    assert seen.rows[:, 0].tolist() == [float(n) for n in range(0, 320, 7)]


def a_model():
    return tiny_model(num_hidden_layers=4, initializer_range=0.2)


def rows_of(rng, count, size):
    return [rng.integers(3, 200, size + i % 3) for i in range(count)]


def test_the_inputs_are_those_of_the_model_alone(rng):
    """Padding, skipped tokens and an installed adapter leave no trace."""
    model = a_model()
    adapter = Adapter(model, 4, 8, numbers=[1, 2])
    other = Adapter(model, 4, 8)
    torch.nn.init.normal_(other.values)
    other.install()
    rows = rows_of(rng, 5, 8)
    seen = inputs(adapter, rows, skip=2)
    assert len(seen) == 8  # q/k/v, o, gate/up and down of two layers
    path = "model.layers.2.mlp.down_proj"
    right = []
    other.remove()
    hook = model.get_submodule(path).register_forward_pre_hook(
        lambda module, args: right.append(args[0][0, 2:])
    )
    for row in rows:
        body(model)(torch.tensor(row)[None])
    hook.remove()
    right = torch.cat(right)
    assert seen[path].total == len(right)
    torch.testing.assert_close(seen[path].mean(), right.T @ right / len(right))


def test_the_forward_ends_behind_the_last_layer(rng):
    model = a_model()
    adapter, ran = Adapter(model, 4, 8, numbers=[1, 2]), []
    model.model.layers[3].register_forward_pre_hook(lambda *_: ran.append(1))
    inputs(adapter, rows_of(rng, 2, 8))
    assert not ran


def test_a_beginning_that_all_share_counts_in_every_row(rng):
    model = a_model()
    adapter = Adapter(model, 4, 8, numbers=[1])
    head = rng.integers(3, 200, 6)
    tails = [np.array([3 + i, *row]) for i, row in enumerate(rows_of(rng, 4, 5))]
    rows = [np.concatenate([head, tail]) for tail in tails]
    ours, right = own_words(adapter, rows), inputs(adapter, rows)
    for path, seen in right.items():
        moment = ours[path].factor @ ours[path].factor.T
        moment.diagonal().sub_(ours[path].delta)
        right_moment = seen.mean()
        # The factor is rounded to fp16, against its largest entry.
        bound = 2e-3 * float(right_moment.abs().max())
        torch.testing.assert_close(moment, right_moment, rtol=0, atol=bound)


@pytest.mark.parametrize("train_a", [True, False])
def test_an_adapter_begins_with_the_directions_and_changes_nothing(rng, train_a):
    model = a_model()
    adapter = Adapter(model, 8, 16, numbers=[2, 3], train_a=train_a)
    document, own = rows_of(rng, 4, 30), rows_of(rng, 12, 30)
    ids = torch.tensor(document[0])[None]
    before = model(ids).logits
    begin(adapter, document, own_words(adapter, own, DAMPING))
    adapter.install()
    torch.testing.assert_close(model(ids).logits, before)
    for paths in input_groups(adapter):
        layers = [adapter.layers[path] for path in paths]
        assert all(torch.equal(layer.lora_a, layers[0].lora_a) for layer in layers)
        norm = float(layers[0].lora_a.detach().norm())
        assert norm == pytest.approx(math.sqrt(8 / 3), rel=1e-4)
        c = [inputs(adapter, rows)[paths[0]].mean() for rows in (document, own)]
        # Eigenvalues may lie too close to tell one row from the next.
        assert captured(layers[0].lora_a.detach(), *c, DAMPING) > 0.97
        assert captured(torch.tensor(rng.normal(size=(8, len(c[0])))), *c, DAMPING) < 0.9


def test_a_rank_above_the_documents_directions_leaves_rows_of_0(rng):
    model = a_model()
    adapter = Adapter(model, 20, 40, numbers=[3])
    begin(adapter, [rng.integers(3, 200, 7)], own_words(adapter, rows_of(rng, 12, 30)))
    for layer in adapter.layers.values():
        alive = layer.lora_a.detach().norm(dim=1) > 0
        assert alive.sum() == 7 and alive[:7].all() and layer.lora_a.isfinite().all()
        assert float(layer.lora_a.detach().norm()) == pytest.approx(math.sqrt(7 / 3), rel=1e-4)


def test_a_large_problem_is_solved_by_the_range_finder(rng, monkeypatch):
    document, own = spread(rng, 500, 200, 20), spread(rng, 900, 200, 150)
    monkeypatch.setattr(torch.linalg, "eigh", _small_only(torch.linalg.eigh, 100))
    rows = leading(given(document), against(given(own), DAMPING), 8)
    monkeypatch.undo()
    same_rows(rows, truth(moment(document), moment(own), DAMPING, 8))


def _small_only(eigh, size):
    def limited(matrix):
        assert len(matrix) < size
        return eigh(matrix)

    return limited
