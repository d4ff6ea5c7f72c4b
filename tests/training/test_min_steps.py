"""A document that is too short for the steps that a run needs is gone through more often."""

import dataclasses
import random

import numpy as np
import pytest
import torch
from errors_and_seeds import fresh_seed

import liftcore
from liftcore.config import LiftConfig
from liftcore.errors import UsageError
from liftcore.training.length import for_length
from liftcore.training.source import count


def test_a_run_has_at_least_so_many_steps_on_segments():
    rng = np.random.default_rng(fresh_seed().initial_seed())
    for _ in range(20):
        size = int(rng.integers(4, 40))
        config = LiftConfig(
            segment_length=size,
            schedule=str(rng.choice(["jitter", "overlap", "trivial"])),
            batch_size=int(rng.integers(1, 4)),
            epochs=int(rng.integers(1, 6)),
            min_steps=int(rng.integers(0, 40)),
        )
        length = int(rng.integers(2, 400))
        longer = for_length(config, length)
        steps, _ = count(length, longer)
        assert steps >= config.min_steps
        assert dataclasses.replace(longer, epochs=config.epochs) == config
        assert for_length(longer, length) == longer
        # Each epoch has a step, but where both tokens of a document lie in segments of their own.
        assert longer.epochs <= max(config.epochs, config.min_steps) or length < 4


def test_a_long_document_has_its_epochs():
    config = LiftConfig.preset("memorize")
    assert for_length(config, 1000) == config
    assert for_length(config, 64).epochs > config.epochs


def test_who_says_a_number_of_epochs_means_it():
    assert LiftConfig.preset("memorize").min_steps > 0
    assert for_length(LiftConfig.preset("memorize", epochs=8), 64).epochs == 8
    assert LiftConfig.preset("memorize").replace(epochs=3).min_steps == 0
    asked = LiftConfig.preset("understand", objectives=("qa", "replay"))
    assert for_length(asked, 64) == asked, "without segments there are no steps on them"
    both = LiftConfig.preset("understand", epochs=8, min_steps=50)
    assert 25 <= for_length(both, 64).epochs <= 50
    assert LiftConfig().min_steps == LiftConfig.paper().min_steps == 0
    for wrong in (-1, 1.5, 10**6):
        with pytest.raises(UsageError, match="min_steps"):
            LiftConfig(min_steps=wrong)


def test_a_memory_says_the_epochs_that_it_had(tiny_folder):
    base = liftcore.load(tiny_folder, device="cpu", dtype=torch.float32)
    text = [random.randint(300, 4000) for _ in range(40)]
    config = LiftConfig(segment_length=16, epochs=2, batch_size=1, rank=4, min_steps=12)
    memory = liftcore.absorb(*base, text, config=config, progress=False)
    assert memory.config == dataclasses.replace(config, epochs=4)
    assert memory.training.steps >= 12
    assert memory.training.token_passes == 4 * 40
