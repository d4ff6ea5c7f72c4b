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

Forms. A second moment is kept as [K, K] up to K = WIDEST, and the problem is whitened by a
Cholesky factor. Beyond that a sample of at most ROWS rows is kept, and a product with the inverse
goes by Woodbury's identity, [ROWS, ROWS]. So nothing of size K² is ever formed for a wide layer.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from liftcore.layers.depth import decoder_layers
from liftcore.layers.linear import features
from liftcore.layers.lora import Adapter, without_adapter
from liftcore.model import body, evaluating

WIDEST = 2048
ROWS = 2048
# Tokens that one forward reads at once.
PASS = 2048
# Of the randomised range finder: more columns than wanted, and products with the matrix.
MORE, TURNS = 16, 2
# Directions with less of the largest λ than this are rounding.
SMALLEST = 1e-6


@dataclass
class Inputs:
    """The inputs of one group of layers over a text: their second moment, or a sample of them.

    width     K
    expected  tokens of the whole text
    total     tokens that were seen
    moment  fp32 [K, K], the sum of x xᵀ; None where rows are kept
    rows    fp32 [n, K], at most ROWS of all rows, evenly spread
    """

    width: int
    expected: int
    total: int = 0
    moment: Tensor | None = None
    kept: list[Tensor] = field(default_factory=list)

    def add(self, x: Tensor) -> None:
        """Takes more rows [n, K]."""
        if self.width <= WIDEST and self.expected > 2 * self.width:
            x = x.float()
            if self.moment is None:
                self.moment = x.new_zeros(self.width, self.width)
            self.moment.addmm_(x.T, x)
        else:
            apart = max(1, -(-self.expected // ROWS)) if self.width > WIDEST else 1
            self.kept.append(x[-self.total % apart :: apart].float())
        self.total += len(x)

    @property
    def rows(self) -> Tensor:
        return torch.cat(self.kept)

    def mean(self) -> Tensor:
        """The second moment [K, K], for K up to WIDEST."""
        if self.moment is not None:
            return self.moment / self.total
        return self.rows.T @ self.rows / len(self.rows)

    def scale(self) -> float:
        """The mean of the second moment's diagonal."""
        if self.moment is not None:
            return float(self.moment.diagonal().sum()) / self.total / self.width
        return float(self.rows.square().sum()) / len(self.rows) / self.width


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


def against(own: Inputs, damping: float) -> Against:
    """M of the inputs over the base model's own words; δ is damping times the mean diagonal."""
    delta = damping * own.scale()
    if not delta > 0:
        delta = 1.0  # nothing is known of other text
    if own.width > WIDEST:
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
    behind these tokens. Counted once, the loss on unrelated text rose by 0.9 nats in place of
    0.35.
    """
    gathered = inputs(adapter, [(row, 0) for row in rows])
    return {path: against(gathered.pop(path), damping) for path in list(gathered)}


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
    seen = inputs(adapter, [(row, skip) for row in document])
    for paths in input_groups(adapter):
        if not seen[paths[0]].total:
            continue  # never called on plain text
        rows = scaled(leading(seen.pop(paths[0]), own[paths[0]], adapter.rank))
        with torch.no_grad():
            for path in paths:
                lora_a = adapter.layers[path].lora_a
                lora_a.zero_()
                lora_a[: len(rows)] = rows.to(lora_a)


def input_groups(adapter: Adapter) -> list[tuple[str, ...]]:
    """The paths of the adapter's layers, those together that share an input."""
    group_of = {path: group.members for group in adapter.groups for path in group.members}
    return list(dict.fromkeys(group_of.get(path, (path,)) for path in adapter.layers))


@torch.no_grad()
def inputs(adapter: Adapter, rows: Sequence[tuple[np.ndarray, int]]) -> dict[str, Inputs]:
    """The inputs of each group, by its first layer's path, over rows of token ids int [n], each
    with how many tokens at its beginning are left out. The model's own layers run, without an
    adapter."""
    model = adapter.model
    firsts = [paths[0] for paths in input_groups(adapter)]
    total = sum(max(0, len(row) - skip) for row, skip in rows)
    gathered = {p: Inputs(features(adapter.layers[p].base)[0], total) for p in firsts}
    counts: list[Tensor] = [torch.empty(0)]  # of the running pass: which positions do, bool [B · S]

    def take(path: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            x = [*args, *kwargs.values()][0]
            x = x.reshape(-1, x.shape[-1])
            # Some layers see a part of the positions only, and do not say which.
            gathered[path].add(x[counts[0]] if len(x) == len(counts[0]) else x)

        return hook

    with without_adapter(model), evaluating(model), _stopping(model, adapter.numbers):
        hooks = [
            model.get_submodule(path).register_forward_pre_hook(take(path), with_kwargs=True)
            for path in firsts
        ]
        try:
            for part in _passes(rows):
                ids, mask = _padded(part)
                counts[0] = mask.flatten().to(adapter.values.device)
                with suppress(_Reached):
                    body(model)(input_ids=ids.to(adapter.values.device), use_cache=False)
        finally:
            for hook in hooks:
                hook.remove()
    return gathered


class _Reached(Exception):
    """The forward has left the last layer that matters."""


@contextmanager
def _stopping(model: nn.Module, numbers: Sequence[int] | None) -> Generator[None]:
    """Within it a forward ends behind the last of these decoder layers."""

    def stop(*_: object) -> None:
        raise _Reached

    layers = decoder_layers(model)
    if numbers is None or numbers[-1] == len(layers) - 1:
        yield
        return
    hook = layers[numbers[-1]].register_forward_hook(stop)
    try:
        yield
    finally:
        hook.remove()


def _passes(rows: Sequence[tuple[np.ndarray, int]]) -> Generator[list[tuple[np.ndarray, int]]]:
    """The rows, those of like length together, in passes of at most PASS tokens or one row."""
    part: list[tuple[np.ndarray, int]] = []
    for row in sorted(rows, key=lambda each: len(each[0]), reverse=True):
        if part and (len(part) + 1) * len(part[0][0]) > PASS:
            yield part
            part = []
        part.append(row)
    if part:
        yield part


def _padded(rows: list[tuple[np.ndarray, int]]) -> tuple[Tensor, Tensor]:
    """(ids, which count): int64 and bool [B, S]. Padded behind, where nothing before it looks."""
    size = max(len(row) for row, _ in rows)
    ids, mask = np.zeros((len(rows), size), np.int64), np.zeros((len(rows), size), bool)
    for i, (row, skip) in enumerate(rows):
        ids[i, : len(row)], mask[i, skip : len(row)] = row, True
    return torch.from_numpy(ids), torch.from_numpy(mask)


def leading(document: Inputs, own: Against, rank: int) -> Tensor:
    """The leading eigenvectors v of C_doc v = λ M v as rows [r, K], r at most `rank`, each with
    vᵀ C_doc v = 1."""
    if own.factor is not None:
        return _whitened(document, own.factor, rank)
    assert own.rows is not None
    return _sampled(document.rows, own.rows, own.delta, rank)


def _whitened(document: Inputs, factor: Tensor, rank: int) -> Tensor:
    """With M = L Lᵀ: u of L⁻¹ C_doc L⁻ᵀ u = λ u, and v = L⁻ᵀ u."""
    if document.moment is not None:
        half = torch.linalg.solve_triangular(factor, document.mean(), upper=False)
        white = torch.linalg.solve_triangular(factor, half.T, upper=False)
        white = (white + white.T) / 2
        values, vectors = _largest(lambda z: white @ z, white.shape[0], rank, white)
    else:
        y = torch.linalg.solve_triangular(factor, document.rows.T, upper=False)  # [K, n]
        y /= math.sqrt(y.shape[1])
        values, vectors = _largest(lambda z: y @ (y.T @ z), y.shape[0], rank, y)
    values, vectors = _of_size(values, vectors)
    rows = torch.linalg.solve_triangular(factor.T, vectors, upper=True).T
    return rows / values.sqrt()[:, None]


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
    values, vectors = _largest(lambda z: inner @ z, len(x), rank, inner)
    values, vectors = _of_size(values, vectors)
    solved = torch.cholesky_solve(cross @ vectors, factor)
    rows = (x.T @ vectors - y.T @ solved).T / delta
    # vᵀ C_doc v = λ² n for these v.
    return (rows / (values * math.sqrt(len(x)))[:, None]).float()


def _largest(
    product: Callable[[Tensor], Tensor], size: int, rank: int, like: Tensor
) -> tuple[Tensor, Tensor]:
    """(λ [r], vectors [size, r]) of the r = min(rank, size) largest eigenvalues, in falling order,
    of a positive matrix [size, size] that is known by its products.

    A randomised range finder with TURNS power iterations ("Finding structure with randomness",
    arXiv 0909.4061, algorithms 4.4 and 5.3); in full where that costs no less."""
    rank = min(rank, size)
    columns = rank + MORE
    if 2 * columns >= size:
        eye = torch.eye(size, dtype=like.dtype, device=like.device)
        values, vectors = torch.linalg.eigh(product(eye))
        return values.flip(0)[:rank], vectors.flip(1)[:, :rank]
    generator = torch.Generator().manual_seed(0)
    basis = torch.randn(size, columns, generator=generator, dtype=torch.float32).to(like)
    for _ in range(TURNS + 1):
        basis = torch.linalg.qr(product(basis))[0]
    small = basis.T @ product(basis)
    values, vectors = torch.linalg.eigh((small + small.T) / 2)
    return values.flip(0)[:rank], basis @ vectors.flip(1)[:, :rank]


def _of_size(values: Tensor, vectors: Tensor) -> tuple[Tensor, Tensor]:
    """Those whose eigenvalue is more than rounding."""
    count = int((values > SMALLEST * values[0]).sum())
    return values[:count], vectors[:, :count]


def scaled(rows: Tensor) -> Tensor:
    """Rows [r, K] times one number, so that their Frobenius norm is that of r rows drawn uniformly
    from ±1/sqrt(K)."""
    return rows * (math.sqrt(len(rows) / 3) / rows.norm())
