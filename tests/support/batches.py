"""A batch of a tiny model, and an adapter that is not the identity."""

import torch

from liftcore.config import LiftConfig
from liftcore.objectives.segments import Segments
from liftcore.training.batch import make


def randomised(adapter):
    """B starts at zero; the tests need every gradient to be alive."""
    with torch.no_grad():
        adapter.values.normal_(0, 0.1)
    return adapter


def a_batch(rng, vocabulary=211, length=40):
    tokens = rng.integers(3, vocabulary, size=length)
    config = LiftConfig(segment_length=16, stride=6, schedule="overlap", overlap_loss="mean")
    return make(Segments(tokens, config, []).samples(0))
