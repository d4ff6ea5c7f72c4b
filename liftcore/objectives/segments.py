"""The document's segments, cut freshly each epoch (LIFT, equations 2 and 3)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from liftcore.config import LiftConfig
from liftcore.objectives import Objective
from liftcore.objectives.sample import Sample, prompted
from liftcore.segments import cut


class Segments(Objective):
    """Each segment behind `prefix`; without one its first token has no context and weighs 0."""

    name = "segments"

    def __init__(self, tokens: np.ndarray, config: LiftConfig, prefix: Sequence[int]):
        self.tokens, self.config = tokens, config
        self.prefix = prefix

    @property
    def longest(self) -> int:
        return len(self.prefix) + min(self.config.segment_length, len(self.tokens))

    def samples(self, epoch: int) -> list[Sample]:
        segments = cut(len(self.tokens), self.config, epoch)
        return [
            prompted(self.prefix, self.tokens[start:stop], self.name, weights)
            for start, stop, weights in zip(
                segments.start, segments.stop, segments.weights, strict=True
            )
        ]
