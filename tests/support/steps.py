"""A runner and its steps, and a source of all kinds of samples."""

import numpy as np
from streams import Fixed, sample
from tiny import tiny_model

from liftcore.config import LiftConfig
from liftcore.layers import base
from liftcore.layers.lora import Adapter
from liftcore.objectives.sample import Sample, SoftTargets
from liftcore.objectives.segments import Segments
from liftcore.training.source import StepSource

# A large eps: Adam would turn rounding in a gradient near 0 into a whole step.
CONFIG = LiftConfig(segment_length=24, epochs=3, batch_size=4, rank=4, learning_rate=5e-3, eps=1e-2)


class Run:
    """A runner, and the steps that it takes one after the other."""

    def __init__(self, kind, source, device="cpu", **options):
        model = tiny_model(initializer_range=0.2, **options).to(device)
        config = source.config
        base.apply(model, config)
        self.adapter = Adapter.of(model, config)
        self.adapter.install()
        self.model, self.source = model, source
        self.runner = kind(self.adapter, source)
        self.steps = source.steps()
        self.taken = 0

    def take(self, count=10**6):
        for step in self.steps:
            assert np.isfinite(self.runner.run(step))
            self.taken += 1
            count -= 1
            if not count:
                break
        return self

    @property
    def losses(self):
        return self.runner.losses[: self.taken]


def mixed(rng, tokens, config=CONFIG):
    """A source of segments, questions and a teacher's targets."""
    soft = []
    for _ in range(5):
        n = int(rng.integers(6, 20))
        targets = SoftTargets(
            rng.integers(3, 200, (n, 3)).astype(np.int32), rng.random((n, 3)).astype(np.float16) / 4
        )
        weights = np.where(np.arange(n) > n // 2, 1, 0).astype(np.float32)
        soft.append(Sample(rng.integers(3, 200, n).astype(np.int32), weights, targets, "distill"))
    questions = [sample(12, 4, "qa", first=3 + i) for i in range(7)]
    objectives = [Segments(tokens, config, [1]), Fixed(questions, "qa"), Fixed(soft, "distill")]
    return StepSource(objectives, config, 200, prefix=1)
