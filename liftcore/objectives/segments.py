"""The document's segments, cut freshly each epoch (LIFT, equations 2 and 3)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from liftcore.config import LiftConfig
from liftcore.objectives import Objective
from liftcore.objectives.sample import Sample
from liftcore.segments import cut


class Segments(Objective):
    """Each segment behind `prefix`; without one its first token has no context and weighs 0."""

    name = "segments"

    def __init__(self, tokens: np.ndarray, config: LiftConfig, prefix: Sequence[int]):
        self.tokens, self.config = tokens, config
        self.prefix = np.array(prefix, dtype=np.int32)

    def samples(self, epoch: int) -> list[Sample]:
        segments, p = cut(len(self.tokens), self.config, epoch), len(self.prefix)
        found = []
        for start, stop, own in zip(segments.start, segments.stop, segments.weights, strict=True):
            ids = np.concatenate([self.prefix, self.tokens[start:stop].astype(np.int32)])
            weights = np.concatenate([np.zeros(p, dtype=np.float32), own])
            weights[0] = 0
            found.append(Sample(ids, weights, source=self.name))
        return found
