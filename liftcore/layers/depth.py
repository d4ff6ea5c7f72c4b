"""The decoder layers of a model by number, and which of them a run trains."""

from __future__ import annotations

import re
from collections.abc import Generator, Iterable
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn

from liftcore.errors import UsageError
from liftcore.layers.replaced import replaced
from liftcore.model import body

# What LiftConfig.layers may be: a share from the top, or the first and the last.
Layers = float | tuple[int, int] | None


def decoder_layers(model: nn.Module) -> list[nn.Module]:
    """The layers of the decoder, in order: its longest nn.ModuleList; empty when it has none."""
    lists = [m for m in body(model).modules() if isinstance(m, nn.ModuleList)]
    return list(max(lists, key=len, default=[]))


def list_path(model: nn.Module) -> str | None:
    """The path of the list of the decoder's layers, "model.layers"; None when there is none."""
    layers = decoder_layers(model)
    lists = ((p, m) for p, m in model.named_modules() if isinstance(m, nn.ModuleList))
    return next((p for p, m in lists if layers and list(m) == layers), None)


def numbers(model: nn.Module, layers: Layers) -> range | None:
    """The numbers of the layers that the setting `layers` means; None for all.

    Raises UsageError where the model has no such layers.
    """
    return None if layers is None else among(len(decoder_layers(model)), layers)


def among(count: int, layers: Layers) -> range:
    """The numbers that the setting `layers` means in a model of `count` decoder layers. Raises
    UsageError where there are no such layers."""
    if layers is None:
        return range(count)
    if not count:
        raise UsageError("layers: the model has no list of decoder layers")
    if not isinstance(layers, tuple):
        return range(count - max(1, int(layers * count + 0.5)), count)
    first, last = (at + count if at < 0 else at for at in layers)
    if not 0 <= first <= last < count:
        raise UsageError(
            f"layers {layers[0]} to {layers[1]}: the model has the layers 0 to {count - 1}"
        )
    return range(first, last + 1)


def number_of(path: str, lists: str | None) -> int | None:
    """The number of the decoder layer that the module at `path` belongs to, given the path of
    their list; None when it belongs to none."""
    inside = re.match(rf"{re.escape(lists or '')}\.(\d+)(\.|$)", path) if lists else None
    return int(inside[1]) if inside else None


def transformed(paths: Iterable[str], layers: Any, pattern: Any) -> set[str]:
    """Those of `paths` that PEFT adapts by layers_to_transform and layers_pattern.

    Raises TypeError or ValueError for settings that are none of PEFT's.
    """
    if layers is None or layers == []:
        return set(paths)
    wanted = {int(layers)} if isinstance(layers, int) else set(map(int, layers))
    patterns = [pattern] if isinstance(pattern, str) else list(pattern or [])
    inside = [rf"(?:^|.*?\.){p}\.(\d+)\." for p in patterns if p] or [r".*?\.[^.]*\.(\d+)\."]
    hits = {p: next(filter(None, (re.match(i, p) for i in inside)), None) for p in paths}
    return {path for path, hit in hits.items() if hit and int(hit[1]) in wanted}


@contextmanager
def without_gradient_below(model: nn.Module, first: int) -> Generator[None]:
    """Within it the layers below number `first` keep nothing for a backward, whatever their input
    is: some code has the embedding's output require a gradient."""
    with ExitStack() as stack:
        for layer in decoder_layers(model)[:first]:
            stack.enter_context(replaced(layer, forward=torch.no_grad()(layer.forward)))
        yield
