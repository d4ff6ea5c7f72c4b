"""Activation checkpointing of every n-th decoder layer of one model."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from functools import partial

from torch import nn
from torch.utils.checkpoint import checkpoint

from liftcore.layers.depth import decoder_layers
from liftcore.layers.replaced import replaced


@contextmanager
def recomputed(model: nn.Module, every: int, first: int = 0) -> Generator[None]:
    """Within it the backward computes every `every`-th layer from `first` on a second time instead
    of keeping its activations; 0: none. Only this model's layers are touched, and put back."""
    # A model without dropout draws nothing: there is no random state to keep.
    how = dict(use_reentrant=False, preserve_rng_state=False)
    with ExitStack() as stack:
        for layer in decoder_layers(model)[first::every] if every else []:
            again = partial(checkpoint, layer.forward, **how)
            stack.enter_context(replaced(layer, forward=again))
        yield
