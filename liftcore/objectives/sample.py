"""A training sample: one row of tokens, what each counts as a target, and what it should be."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


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
    weights[0] is 0, and so is the weight of a prompt. With `soft` the targets are the teacher's
    where a weight is above 0, else the tokens themselves."""

    ids: np.ndarray  # int32 [n], any prompt and BOS included
    weights: np.ndarray  # float32 [n]
    soft: SoftTargets | None = None
    source: str = ""  # the objective's name

    def __len__(self) -> int:
        return len(self.ids)


def prompted(prompt: list[int], target: list[int], source: str) -> Sample:
    """The sample that scores each token of `target` behind `prompt`, which must not be empty."""
    ids = np.array([*prompt, *target], dtype=np.int32)
    weights = np.zeros(len(ids), dtype=np.float32)
    weights[len(prompt) :] = 1
    return Sample(ids, weights, source=source)
