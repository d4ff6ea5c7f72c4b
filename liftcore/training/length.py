"""What the length of a document does to the settings of its run."""

from __future__ import annotations

from dataclasses import replace

from liftcore.config import LiftConfig
from liftcore.training.source import count


def for_length(config: LiftConfig, length: int) -> LiftConfig:
    """The settings for a document of `length` tokens: with as many more epochs as min_steps needs,
    where it is trained on segments."""
    if "segments" not in config.objectives:
        return config
    steps, _ = count(length, config) if _may_be_short(config, length) else (config.min_steps, 0)
    while 0 < steps < config.min_steps:
        an_epoch = -(-steps // config.epochs)
        more = max(1, (config.min_steps - steps) // an_epoch)
        config = replace(config, epochs=config.epochs + more)
        steps, _ = count(length, config)
    return config


def _may_be_short(config: LiftConfig, length: int) -> bool:
    """Whether it is worth a count, which takes as long as the run has steps."""
    return length // config.target_tokens * config.epochs < config.min_steps
