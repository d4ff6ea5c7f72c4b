"""A training sample: one row of tokens, what each counts as a target, and what it should be."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

# The label of a token that is not scored, as transformers has it.
IGNORE = -100


@dataclass(frozen=True)
class SoftTargets:
    """A teacher's probabilities of its k likeliest tokens for each position of a row.

    Not renormalised: what is missing to 1 is the rest of the vocabulary's, and is not trained on.
    """

    ids: np.ndarray  # int32 [n, k]
    probs: np.ndarray  # float16 [n, k]


@dataclass(frozen=True)
class Sample:
    """One row. weights[t] is what token t counts as a target, predicted from the tokens before it;
    weights[0] is 0, and so is the weight of a prompt. A token is scored when its weight is not 0.
    With `soft` the targets are the teacher's, else the tokens themselves."""

    ids: np.ndarray  # int32 [n], any prompt and BOS included
    weights: np.ndarray  # float32 [n]
    soft: SoftTargets | None = None
    source: str = ""  # the objective's name

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True)
class OwnedSample(Sample):
    """A sample of one of several documents that are trained together, in units of its own
    normaliser."""

    slot: int = 0  # of the adapter that the document has

    @classmethod
    def of(cls, sample: Sample, normaliser: float, slot: int) -> OwnedSample:
        weights = sample.weights / np.float32(normaliser)
        return cls(sample.ids, weights, sample.soft, sample.source, slot)


def prompted(
    prompt: Sequence[int] | np.ndarray,
    target: Sequence[int] | np.ndarray,
    source: str,
    weights: np.ndarray | None = None,
    soft: SoftTargets | None = None,
) -> Sample:
    """The sample that scores `target` behind `prompt`; behind an empty one the first token has no
    context and weighs 0.

    weights   float32 of the target's tokens; without them each weighs 1
    soft      a teacher's targets of the target's tokens
    """
    p = len(prompt)
    ids = np.concatenate([np.asarray(prompt, np.int32), np.asarray(target, np.int32)])
    counts = np.zeros(len(ids), dtype=np.float32)
    counts[p:] = 1 if weights is None else weights
    counts[0] = 0
    if soft is not None:
        empty = ((p, 0), (0, 0))
        soft = SoftTargets(np.pad(soft.ids, empty), np.pad(soft.probs, empty))
    return Sample(ids, counts, soft, source)
