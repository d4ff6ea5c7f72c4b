"""A's beginning made for a document: what sets its inputs apart from those of other text.

For each group of linear layers that share an input x of width K,

    C_doc = mean x xᵀ over the document's tokens        C_own over the base model's own words
    C_doc v = λ (C_own + damping · mean(diag C_own) · I) v

and A's rows are the v of the R largest λ, each scaled to the same variance on the document, all
together to the Frobenius norm that a random A has. B begins at 0 and so does the adapter's part.
With A frozen only what lies in these directions can change: the update B A x is large on the
document and small on what the model says by itself.

Sources, and what differs. LoRA-FA (arXiv 2308.03303) freezes a random A; this one is chosen.
CorDA (arXiv 2406.05223) orients an adapter by the second moment of one task's inputs and takes
components out of the weights; here two moments are set against each other, and the weights stay.
AlphaEdit (arXiv 2410.02355) projects an edit onto the null space of kept knowledge; here no
direction is excluded, each is weighed by how much the document needs it.

Forms. Up to K = WIDEST of inputs.py the problem is whitened by a Cholesky factor of C_own; beyond
that a product with the inverse goes by Woodbury's identity, [ROWS, ROWS], and nothing of size K² is
ever formed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from liftcore.layers import inputs as layer_inputs
from liftcore.layers.inputs import Inputs, input_groups, inputs
from liftcore.layers.lora import Adapter

# Of the randomised range finder: columns more than wanted, and products with the matrix.
MORE, PRODUCTS = 16, 2
# Directions with less of the largest λ than this are rounding.
SMALLEST = 1e-6


@dataclass
class Against:
    """M = C_own + δ I of one group, by the form that its width asks for.

    delta    δ
    factor   fp32 [K, K] lower, M = L Lᵀ; its entries are those of fp16, so that a copy kept in
             fp16 gives the same. An error e of L is one of e² in the directions that count
    rows     fp32 [m, K] of the own words, for wide layers
    """

    delta: float
    factor: Tensor | None = None
    rows: Tensor | None = None


def against(own: Inputs, damping: float, device: torch.device | str = "cpu") -> Against:
    """M of the inputs over the base model's own words; δ is damping times the mean diagonal. I
    where nothing is known: no own words, or a layer that plain text never calls."""
    if not own.total:
        if own.width > layer_inputs.WIDEST:
            return Against(1.0, rows=torch.zeros(1, own.width, device=device))
        return Against(1.0, factor=torch.eye(own.width, device=device))
    delta = damping * own.scale()
    if not delta > 0:
        delta = 1.0
    if own.width > layer_inputs.WIDEST:
        return Against(delta, rows=own.rows)
    moment = own.mean()
    moment.diagonal().add_(delta)
    factor = torch.linalg.cholesky(moment)
    largest = factor.abs().max()
    return Against(delta, factor=(factor / largest).half().float() * largest)


def own_words(
    adapter: Adapter, rows: Sequence[np.ndarray], damping: float = 0.001
) -> dict[str, Against]:
    """M of each group, by its first layer's path, over rows of token ids int [n].

    A chat template's beginning counts in every row: all that the model says in its form stands
    behind these tokens. Counted once, they are kept less, and much more is forgotten.
    """
    gathered, device = inputs(adapter, rows), adapter.values.device
    return {path: against(gathered.pop(path), damping, device) for path in list(gathered)}


def begin(
    adapter: Adapter,
    document: Sequence[np.ndarray],
    own: dict[str, Against],
    *,
    skip: int = 0,
) -> None:
    """Sets the adapter's A for a document. The base model runs once over the document's rows.

    document   rows of token ids int [n], without questions: a chat template in them would be
               among what is trained
    own        what own_words() gave for this model
    skip       tokens at the beginning of each of the document's rows that are no part of it

    A document of fewer tokens than the rank, or an input narrower than it, has fewer directions:
    the other rows of A are 0. They add nothing, and B's columns for them stay 0.
    """
    seen = inputs(adapter, document, skip=skip)
    for paths in input_groups(adapter):
        if not seen[paths[0]].total:
            continue  # never called on plain text
        rows = scaled(leading(seen.pop(paths[0]), own[paths[0]], adapter.rank))
        with torch.no_grad():
            for path in paths:
                lora_a = adapter.layers[path].lora_a
                lora_a.zero_()
                lora_a[: len(rows)] = rows.to(lora_a)


def leading(document: Inputs, own: Against, rank: int) -> Tensor:
    """The leading eigenvectors v of C_doc v = λ M v as rows [r, K], r at most `rank`, each with
    vᵀ C_doc v = 1."""
    if own.factor is not None:
        return _whitened(document, own.factor, rank)
    assert own.rows is not None
    return _sampled(document.rows, own.rows, own.delta, rank)


def _whitened(document: Inputs, factor: Tensor, rank: int) -> Tensor:
    """With M = L Lᵀ: u of L⁻¹ C_doc L⁻ᵀ u = λ u, and v = L⁻ᵀ u."""

    def back(z: Tensor) -> Tensor:
        return torch.linalg.solve_triangular(factor.T, z, upper=True)

    def product(z: Tensor) -> Tensor:
        return torch.linalg.solve_triangular(factor, document.times(back(z)), upper=False)

    basis = back(_range(product, len(factor), rank, factor))  # [K, columns]
    values, vectors = _largest(basis.T @ document.times(basis), rank)
    return (basis @ vectors).T / values.sqrt()[:, None]


def _sampled(document: Tensor, own: Tensor, delta: float, rank: int) -> Tensor:
    """With M = C_own + δ I and X of the document [n, K]: w of X M⁻¹ Xᵀ w / n = λ w, and
    v = M⁻¹ Xᵀ w. M⁻¹ = (I - Yᵀ (m δ I + Y Yᵀ)⁻¹ Y) / δ with Y [m, K] of the own words (Woodbury);
    in fp64, since the difference cancels where C_own is large."""
    x, y = document.double(), own.double()
    gram = y @ y.T
    gram.diagonal().add_(len(y) * delta)
    factor = torch.linalg.cholesky(gram)
    cross = y @ x.T  # [m, n]
    half = torch.linalg.solve_triangular(factor, cross, upper=False)
    inner = (x @ x.T - half.T @ half) / (delta * len(x))
    basis = _range(lambda z: inner @ z, len(x), rank, inner)
    values, vectors = _largest(basis.T @ inner @ basis, rank)
    vectors = basis @ vectors
    solved = torch.cholesky_solve(cross @ vectors, factor)
    rows = (x.T @ vectors - y.T @ solved).T / delta
    # vᵀ C_doc v = λ² n for these v.
    return (rows / (values * math.sqrt(len(x)))[:, None]).float()


def _range(product: Callable[[Tensor], Tensor], size: int, rank: int, like: Tensor) -> Tensor:
    """Orthonormal columns [size, r + MORE] whose span nearly holds the `rank` leading eigenvectors
    of a positive matrix that is known by its products; all columns where that costs no more.

    A randomised range finder ("Finding structure with randomness", arXiv 0909.4061, algorithm
    4.4)."""
    columns = rank + MORE
    if 2 * columns >= size:
        return torch.eye(size, dtype=like.dtype, device=like.device)
    generator = torch.Generator().manual_seed(0)
    basis = torch.randn(size, columns, generator=generator, dtype=torch.float32).to(like)
    for _ in range(PRODUCTS):
        basis = torch.linalg.qr(product(basis))[0]
    return basis


def _largest(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """(λ [r], vectors [size, r]) of the largest eigenvalues of a positive matrix, in falling order:
    at most `rank` of them, and those that are more than rounding."""
    values, vectors = torch.linalg.eigh((matrix + matrix.T) / 2)
    values, vectors = values.flip(0)[:rank], vectors.flip(1)[:, :rank]
    count = int((values > SMALLEST * values[0]).sum())
    return values[:count], vectors[:, :count]


def scaled(rows: Tensor) -> Tensor:
    """Rows [r, K] times one number, so that their Frobenius norm is that of r rows drawn uniformly
    from ±1/sqrt(K)."""
    return rows * (math.sqrt(len(rows) / 3) / rows.norm())
