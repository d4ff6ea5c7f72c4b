"""What a model has forgotten: the rise of its loss on own words that were never trained on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from liftcore import answer
from liftcore import model as models
from liftcore.layers.batches import by_length, padded
from liftcore.layers.lora import without_adapter
from liftcore.objectives.teacher import BATCH_TOKENS
from liftcore.questions.own_words import OwnWords

# Tokens at the beginning of all rows that are worth reading apart.
WORTH = 8


class Forgetting:
    """The loss on `rows`, which an adapter must not be trained on, and how far it has risen.

    before   nats a token of the replies, of the model without its adapter
    """

    def __init__(self, model: nn.Module, rows: Sequence[OwnWords]):
        self.model, self.rows = model, list(rows)
        with without_adapter(model):
            self.before = own_loss(model, self.rows)

    def rise(self) -> float:
        """How much higher the loss is now, in nats; the model must be able to generate."""
        return own_loss(self.model, self.rows) - self.before


@torch.no_grad()
def own_loss(model: nn.Module, rows: Sequence[OwnWords]) -> float:
    """Mean cross entropy of the replies' tokens in nats, of the model as it stands."""
    head, device = models.head(model), next(model.parameters()).device
    total, scored = torch.zeros((), dtype=torch.float64, device=device), 0
    with models.evaluating(model):
        for part in by_length([len(row.tokens) for row in rows], BATCH_TOKENS):
            batch = [rows[i] for i in part]
            ids = padded([row.tokens for row in batch]).to(device)
            states, read = _states(model, ids, _alike(model, batch))
            for own, row in zip(states, batch, strict=True):
                reply = torch.from_numpy(row.tokens[row.reply_start :]).to(device)
                # Token t is predicted by row t − 1.
                logits = head.logits(own[row.reply_start - 1 - read : len(row.tokens) - 1 - read])
                total += F.cross_entropy(logits, reply, reduction="sum")
                scored += len(reply)
    return float(total) / scored


def _alike(model: nn.Module, rows: Sequence[OwnWords]) -> int:
    """Tokens of a chat template's beginning, which are worth reading once for all rows."""
    shared = answer.alike([row.tokens[: row.reply_start] for row in rows])
    return shared if shared >= WORTH and len(rows) > 1 and answer.keeps_a_cache(model) else 0


def _states(model: nn.Module, ids: Tensor, shared: int) -> tuple[Tensor, int]:
    """Hidden states [B, S − shared, K] of rows int64 [B, S] behind the `shared` tokens that they
    begin with, and `shared`."""
    how: dict[str, Any] = {"use_cache": False}
    if shared:
        cache = answer.read_once(model, ids[:1, :shared], len(ids))
        how = {"past_key_values": cache, "use_cache": True}
    return models.body(model)(input_ids=ids[:, shared:], **how).last_hidden_state, shared
