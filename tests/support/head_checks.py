"""Problems and comparisons that the head-loss tests share, whatever the device and path."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from errors_and_seeds import rel
from torch import Tensor

from liftcore.kernels import reference
from liftcore.kernels.head_loss import linear_cross_entropy, linear_soft_cross_entropy


@dataclass
class Problem:
    """Inputs of the head loss; rows whose label is −100 or whose weight is 0 hold NaN."""

    hidden: Tensor  # [T, K]
    weight: Tensor  # [V, K]
    labels: Tensor  # [T]
    token_weights: Tensor | None  # [T]
    options: dict

    @property
    def scored(self) -> Tensor:
        mask = self.labels != -100
        return mask if self.token_weights is None else mask & (self.token_weights != 0)

    def row_index(self, length: int, dtype=torch.int64, fill: int | None = None) -> Tensor:
        """The scored rows, padded to `length` with `fill` or the first row that is not scored."""
        rows = self.scored.nonzero().squeeze(-1)
        fill = (~self.scored).nonzero()[0] if fill is None else rows.new_tensor([fill])
        return torch.cat([rows, fill.expand(length - len(rows))]).to(dtype)

    def run(self, up: Tensor | None = None, train_head=False, **kwargs):
        """Loss, dhidden and dweight (None for a frozen head) of the op."""
        return self._run(self.ops()[0], self.hidden, self.weight, up, train_head, **kwargs)

    def truth(self, up: Tensor | None = None, dtype=torch.float64, **kwargs):
        """The same of the plain formula, in fp64 or, as the rival to beat, another dtype."""
        hidden = torch.where(self.scored[:, None], self.hidden, 0.0).to(dtype)
        return self._run(self.ops()[1], hidden, self.weight.to(dtype), up, True, **kwargs)

    def ops(self):
        """The op and its plain formula."""
        return linear_cross_entropy, reference.linear_cross_entropy

    def targets(self):
        return (self.labels,)

    def _run(self, op, hidden, weight, up, train_head, **kwargs):
        h = hidden.detach().clone().requires_grad_()
        w = weight.detach().clone().requires_grad_(train_head)
        options = {"token_weights": self.token_weights, **self.options, **kwargs}
        loss = op(h, w, *self.targets(), **options)
        loss.backward(torch.ones_like(loss) if up is None else up.to(loss.dtype))
        return loss.detach(), h.grad, w.grad


@dataclass
class SoftProblem(Problem):
    """Inputs of the soft head loss; a row whose label is −100 has no targets."""

    ids: Tensor  # int [T, k]
    probs: Tensor  # [T, k]

    def ops(self):
        return linear_soft_cross_entropy, reference.linear_soft_cross_entropy

    def targets(self):
        return self.ids, self.probs


def soft_problem(t, k, v, targets, g, **options):
    """A random SoftProblem: ids that stand twice, places left out by −1 or by probability 0."""
    p = problem(t, k, v, g, **options)
    ids = torch.randint(0, v, (t, targets), generator=g)
    ids[:, targets // 2] = ids[:, 0]
    probs = torch.randn(t, targets, generator=g).mul_(2).softmax(-1)
    probs *= torch.rand(t, 1, generator=g)  # the mass need not be 1
    left_out = torch.rand(t, targets, generator=g)
    left_out[:, -1] = 1.0
    ids[left_out < 0.15] = -1
    probs[(left_out > 0.15) & (left_out < 0.3)] = 0.0
    none = (p.labels == -100).cpu()
    ids[none & (torch.rand(t, generator=g) < 0.5)] = -1
    probs[none & (ids[:, -1] >= 0)] = 0.0
    device = p.hidden.device
    return SoftProblem(
        p.hidden, p.weight, p.labels, p.token_weights, p.options, ids.to(device), probs.to(device)
    )


def check_token_weights_gradient(p: Problem, up: Tensor | None, **kwargs):
    """The gradient of the token weights, with a trainable head and without."""
    ours, plain = p.ops()
    wanted = torch.autograd.grad(*_loss_of_weights(p, plain, up, {}))[0]
    for train_head in (False, True):
        p.weight.requires_grad_(train_head)
        gradient = torch.autograd.grad(*_loss_of_weights(p, ours, up, kwargs))[0]
        p.weight.requires_grad_(False)
        assert rel(gradient, wanted) < 1e-5


def _loss_of_weights(p, op, up, kwargs):
    ours = op is p.ops()[0]
    hidden = torch.where(p.scored[:, None], p.hidden, 0.0)
    hidden, weight = (x if ours else x.detach().double() for x in (hidden, p.weight))
    tw = p.token_weights.clone().requires_grad_()
    reduction = "mean" if up is None else "none"
    loss = op(hidden, weight, *p.targets(), token_weights=tw, reduction=reduction, **kwargs)
    return loss, tw, torch.ones_like(loss) if up is None else up.to(loss)


def problem(t, k, v, g, *, masked=0.4, weighted=True, device="cpu", dtype=torch.float32, **options):
    """A random Problem; `masked` of its rows are not scored, half of them by their weight."""
    hidden = torch.randn(t, k, generator=g)
    weight = torch.randn(v, k, generator=g) * (3.0 / k**0.5)
    labels = torch.randint(0, v, (t,), generator=g)
    token_weights = torch.rand(t, generator=g) + 0.1 if weighted else None
    drop = torch.rand(t, generator=g) < masked
    if t > 1:
        drop[0], drop[-1] = masked > 0, False
    elif masked < 1:
        drop[:] = False
    by_weight = drop & (torch.rand(t, generator=g) < 0.5) if weighted else drop & False
    if weighted:
        token_weights[by_weight] = 0
        token_weights = token_weights.to(device)
    labels[drop & ~by_weight] = -100
    hidden[drop] = torch.nan
    return Problem(
        hidden.to(device, dtype),
        weight.to(device, dtype),
        labels.to(device),
        token_weights,
        options,
    )
