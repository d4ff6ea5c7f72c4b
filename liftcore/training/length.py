"""What the length of a document does to the settings of its run."""

from __future__ import annotations

from dataclasses import replace

from liftcore.config import LiftConfig
from liftcore.training.source import count


def for_length(config: LiftConfig, length: int) -> LiftConfig:
    """The settings for a document of `length` tokens: with as many more epochs as min_steps needs,
    where it is trained on segments."""
    # A count takes as long as the run has steps: not where these are surely enough.
    surely = length // config.target_tokens * config.epochs
    if surely >= config.min_steps or "segments" not in config.objectives:
        return config
    while 0 < (steps := count(length, config)[0]) < config.min_steps:
        an_epoch = -(-steps // config.epochs)
        more = max(1, (config.min_steps - steps) // an_epoch)
        config = replace(config, epochs=config.epochs + more)
    return config
