"""Activation checkpointing of every n-th decoder layer of one model."""

from __future__ import annotations

import functools
from contextlib import contextmanager

from torch import nn
from torch.utils.checkpoint import checkpoint

from liftcore.model import body


def decoder_layers(model: nn.Module) -> list[nn.Module]:
    """The layers of the decoder, in order: its longest nn.ModuleList; empty when it has none."""
    lists = [m for m in body(model).modules() if isinstance(m, nn.ModuleList)]
    return list(max(lists, key=len, default=[]))


@contextmanager
def recomputed(model: nn.Module, every: int):
    """Within it the backward computes every `every`-th layer a second time instead of keeping
    its activations; 0: none. Only this model's layers are touched, and put back."""
    layers = decoder_layers(model)[::every] if every else []
    before = [vars(layer).get("forward") for layer in layers]
    for layer in layers:
        # A model without dropout draws nothing: there is no random state to keep.
        layer.forward = functools.partial(
            checkpoint, layer.forward, use_reentrant=False, preserve_rng_state=False
        )
    try:
        yield
    finally:
        for layer, forward in zip(layers, before, strict=True):
            if forward is None:
                del layer.forward
            else:
                layer.forward = forward
