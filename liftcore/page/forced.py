"""The probability of each token of a document where the model is shown the right ones before it
(teacher forcing): one forward for all, where the greedy probes generate at a few places."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from liftcore import model as models
from liftcore.layers.batches import by_length, padded
from liftcore.model import Head
from liftcore.objectives.teacher import BATCH_TOKENS, CHUNK_BYTES
from liftcore.report import PROMPT

# Tokens that a row is scored on: each is predicted behind PROMPT to PROMPT + NEW others, as in the
# probes. With more before it a text that repeats itself would be copied and not recalled.
NEW = 96


@dataclass(frozen=True)
class Forced:
    """tokens    int64 [L], the document's
    nats        float32 [L], −log of the probability of each; NaN where nothing stands before it
    likeliest   int64 [L], what the model would say in the place of each; −1 there
    """

    tokens: np.ndarray
    nats: np.ndarray
    likeliest: np.ndarray

    @property
    def right(self) -> float:
        """The share of the tokens that are the likeliest."""
        known = self.likeliest >= 0
        return float((self.likeliest == self.tokens)[known].mean()) if known.any() else 0.0


@torch.no_grad()
def forced(
    model: nn.Module,
    tokens: np.ndarray,
    *,
    prefix: list[int],
    say: Callable[[int, int], None] = lambda done, of: None,
) -> Forced:
    """The tokens int64 [L] of a document as the model as it stands predicts them, in rows of at
    most PROMPT + NEW tokens behind `prefix`. `say` hears how many rows of all are read."""
    length, known = len(tokens), len(prefix)
    nats, likeliest = np.full(length, np.nan, np.float32), np.full(length, -1)
    # (first token of a row, first that is scored, the end)
    first = PROMPT + NEW
    rows = [(0, 0 if known else 1, min(first, length))]
    rows += [(at - PROMPT, at, min(at + NEW, length)) for at in range(first, length, NEW)]
    texts = [np.concatenate([prefix, tokens[a:b]]).astype(np.int64) for a, _, b in rows]
    head, done = models.head(model), 0
    with models.evaluating(model):
        for part in by_length([len(text) for text in texts], BATCH_TOKENS):
            ids = padded([texts[i] for i in part]).to(head.weight.device)
            hidden = models.body(model)(input_ids=ids, use_cache=False).last_hidden_state
            for states, i in zip(hidden, part, strict=True):
                start, a, b = rows[i]
                right = torch.from_numpy(tokens[a:b]).to(ids.device)
                # Token t is predicted by row t − 1.
                before = known + a - start - 1
                scored = _scored(head, states[before : before + b - a], right)
                nats[a:b], likeliest[a:b] = scored
            done += len(part)
            say(done, len(rows))
    return Forced(tokens, nats, likeliest)


def _scored(head: Head, hidden: Tensor, right: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Nats of the tokens `right` [M] and the likeliest ones, of hidden states [M, K]."""
    rows = max(1, CHUNK_BYTES // (4 * head.weight.shape[0]))
    nats, likeliest = [], []
    for states, ids in zip(hidden.split(rows), right.split(rows), strict=True):
        z = head.logits(states)  # [m, V]
        nats.append(z.logsumexp(-1) - z.gather(-1, ids[:, None])[:, 0])
        likeliest.append(z.argmax(-1))
    return torch.cat(nats).cpu().numpy(), torch.cat(likeliest).cpu().numpy()
