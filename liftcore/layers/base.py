"""What the frozen weights under an adapter are computed in: as they were loaded, or FP8."""

from __future__ import annotations

import math
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from liftcore.config import LiftConfig
from liftcore.errors import UsageError
from liftcore.layers import depth
from liftcore.layers.fp8 import Fp8Linear
from liftcore.layers.linear import (
    bias_of,
    features,
    is_transposed,
    keep_gradients,
    matrix,
    quantised_by,
)
from liftcore.layers.lora import installed, linear_layers, put
from liftcore.layers.sharded import full


def apply(model: nn.Module, config: LiftConfig) -> dict[str, nn.Module]:
    """Puts the model's linear layers into the dtype that the settings ask for, in place; returns
    what stood there, by path: quantise(). Those that others have quantised are to give a gradient:
    keep_gradients()."""
    keep_gradients(model)
    if config.base_dtype == "model":
        return {}
    numbers = depth.numbers(model, config.layers)
    return quantise(model, numbers[0] if numbers else 0)


def quantise(model: nn.Module, first: int | None = 0) -> dict[str, nn.Module]:
    """Puts FP8 layers in the place of the linear layers that LoRA may be put on; returns what
    stood there, by path, whose memory is free as soon as nobody holds it.

    Gradients can go through the layers of the decoder from number `first` on; None: through none.
    An adapter that is installed is taken off. Raises UsageError when they are quantised already in
    another way, and what targets() raises.
    """
    if (current := installed(model)) is not None:
        current.remove()
    lists, before = depth.list_path(model), {}
    layers = linear_layers(model)
    if other := next(filter(None, map(quantised_by, layers.values())), None):
        raise UsageError(f"the model's linear layers are quantised by {other}: no base_dtype fits")
    for path in list(layers):
        # Popped, so that nothing here holds the weight of a layer that is done.
        layer = layers.pop(path)
        if not isinstance(layer, Fp8Linear):
            before[path] = layer
            layer = Fp8Linear(
                matrix(layer), bias_of(layer), fan_in_fan_out=is_transposed(layer)
            ).train(layer.training)
            put(model, path, layer)
        number = depth.number_of(path, lists)
        if first is not None and (number is None or number >= first):
            layer.keep_transpose()
    return before


@contextmanager
def quantised(model: nn.Module, config: LiftConfig) -> Generator[Mapping[str, nn.Module]]:
    """Within it the model is as apply() leaves it; yields what stood there, which comes back."""
    before = apply(model, config)
    try:
        yield before
    finally:
        if before and (current := installed(model)) is not None:
            current.remove()
        for path, layer in before.items():
            put(model, path, layer)


def dtype_of(model: nn.Module) -> str:
    """ "fp8" when layers of the model are, the package that quantised them, or "model"."""
    kinds = {"fp8" if isinstance(m, Fp8Linear) else quantised_by(m) for m in model.modules()} - {
        None
    }
    return str(min(kinds, key=str)) if kinds else "model"


def samples(model: nn.Module) -> Iterator[tuple[str, tuple[int, ...], Tensor]]:
    """(name, shape, its first 64 numbers) of every weight of a model, codes in FP8 included: they
    tell one model from another. Of what torchao has quantised, which cannot be cut, none."""
    codes = (pair for pair in model.named_buffers() if pair[1].dtype == torch.uint8)
    for name, weight in (*model.named_parameters(), *codes):
        plain = full(weight.detach())
        sample = plain.flatten()[:64] if type(plain) is Tensor else torch.zeros(0)
        yield name, tuple(weight.shape), sample


def workspace(model: nn.Module, tokens: int) -> int:
    """Bytes that the products of a pass of so many tokens take beside their results: on a CPU the
    largest weight as numbers, elsewhere the codes of the widest input."""
    layers = [m for m in model.modules() if isinstance(m, Fp8Linear)]
    if not layers:
        return 0
    if layers[0].codes.device.type != "cpu":
        return tokens * max(max(features(m)) for m in layers)
    return max(math.prod(features(m)) for m in layers) * (2 + max(2, layers[0].dtype.itemsize))
