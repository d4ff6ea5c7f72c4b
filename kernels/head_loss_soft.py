"""The head loss with soft targets: a few probabilities a row in place of one label.

    z_t    = softcap(logit_scale · hidden_t Wᵀ)                       [V]
    loss_t = Σ_j p_tj (logsumexp(z_t) − z_t[id_tj])                   over k targets
    dz_t   = w_t (softmax(z_t) · Σ_j p_tj − p_t scattered to id_t)    [V]

The op is that of head_loss.py: the logits exist a chunk of rows at a time, for the scored rows
only, and with a frozen head the gradient is formed in the forward. One target with p = 1 is the
hard loss. On CUDA the products always run in cuBLAS.
"""

from __future__ import annotations

import torch
from torch import Tensor

from liftcore.kernels.head_loss import check_shared, reduced_loss

NAME = "linear_soft_cross_entropy"


def linear_soft_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    target_ids: Tensor,
    target_probs: Tensor,
    *,
    token_weights: Tensor | None = None,
    row_index: Tensor | None = None,
    reduction: str = "mean",
    softcap: float | None = None,
    logit_scale: float = 1.0,
) -> Tensor:
    """Weighted cross entropy of the LM head against sparse soft targets, scored rows only.

    Shapes: hidden [T, K], weight [V, K], target_ids int [T, k], target_probs float [T, k] ->
    a fp32 scalar, or [T] with reduction "none". The probabilities need not sum to 1, and an id
    may stand twice in a row: both count. An id of −1 or a probability of 0 is no target; a row
    without targets or of weight 0 costs nothing. There is no gradient for the targets. The rest
    is as for linear_cross_entropy, but without a `row_index` CUDA forms the logits of all T rows.
    Raises ValueError when shapes, dtypes or options do not fit.
    """
    _check(hidden, weight, target_ids, target_probs, token_weights, reduction, row_index)
    ids, probs = merged(target_ids, target_probs.detach())
    w = (probs[:, 0] > 0).float()
    if token_weights is not None:
        w = w * token_weights.float()
    rest = (row_index, softcap, float(logit_scale), "cublas", probs)
    return reduced_loss(hidden, weight, ids, w, rest, reduction)


def merged(ids: Tensor, probs: Tensor) -> tuple[Tensor, Tensor]:
    """Targets [T, k] as the kernels want them: int64 and fp32, each id once, the likeliest first.

    A place that is not used has probability 0 and repeats the id of place 0.
    """
    ids = ids.long()
    probs = probs.float().masked_fill(ids < 0, 0.0)
    same = ids[:, :, None] == ids[:, None, :]  # [T, k, k]
    sums = (same * probs[:, None, :]).sum(-1).masked_fill(same.tril(-1).any(-1), 0.0)
    probs, order = sums.sort(dim=-1, descending=True, stable=True)
    ids = ids.gather(-1, order)
    return torch.where(probs > 0, ids, ids[:, :1]), probs


def _check(hidden, weight, target_ids, target_probs, token_weights, reduction, row_index):
    check_shared(NAME, hidden, weight, token_weights, reduction, row_index)
    shape = target_ids.shape
    if (
        len(shape) != 2
        or shape[0] != hidden.shape[0]
        or target_probs.shape != shape
        or not shape[1]
    ):
        raise ValueError(
            f"{NAME}: target_ids {tuple(shape)} and target_probs {tuple(target_probs.shape)} are "
            f"not both [T, k] with T = {hidden.shape[0]} and k ≥ 1"
        )
    if target_ids.is_floating_point() or not target_probs.is_floating_point():
        raise ValueError(
            f"{NAME}: target_ids are {target_ids.dtype}, target_probs {target_probs.dtype}"
        )
