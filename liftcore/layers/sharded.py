"""A frozen base whose decoder layers are spread over the processes of a run (FSDP2).

fully_shard gathers a layer before its forward and before its backward, and lets go of it behind
them. What runs inside of that finds plain weights: the ops, groups, norms, the last layer for some
rows. Embedding, head and LoRA stay whole on every rank.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from liftcore.config import LiftConfig
from liftcore.errors import LiftError, UsageError
from liftcore.layers.depth import decoder_layers
from liftcore.model import body


def is_sharded(model: nn.Module) -> bool:
    """Whether a part of the model is under fully_shard."""
    return any(_is_shard(module) for module in model.modules())


def shard(model: nn.Module, device: torch.device) -> None:
    """Spreads the decoder layers over the ranks of the process group, and puts the rest on
    `device`. Raises LiftError where torch cannot do that."""
    try:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard
    except ImportError as error:
        raise LiftError("a sharded base needs torch 2.7 or newer") from error
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    layers = decoder_layers(model)
    if not layers:
        raise LiftError(f"{type(model).__name__} has no list of decoder layers to shard")
    for layer in layers:
        fully_shard(layer, mesh=mesh, reshard_after_forward=True)
    inside = {id(p) for layer in layers for p in layer.parameters()}
    model.to(device)
    rest = {p for p in model.parameters() if id(p) not in inside}
    # A root without weights of its own: the head reads the embedding's outside of any forward.
    fully_shard(body(model), mesh=mesh, reshard_after_forward=True, ignored_params=rest)


@contextmanager
def whole(module: nn.Module, model: nn.Module) -> Generator[None]:
    """Within it the decoder layer that holds `module` has its weights; every rank enters it."""
    holding = [m for m in model.modules() if _is_shard(m) and any(x is module for x in m.modules())]
    inner: Any = holding[-1] if holding else None  # the root's own come before
    if inner is not None:
        inner.unshard()
    try:
        yield
    finally:
        if inner is not None:
            inner.reshard()


def full(weight: Tensor) -> Tensor:
    """The whole of a weight; every rank calls it."""
    spread: Any = weight
    return spread.full_tensor() if hasattr(weight, "full_tensor") else weight


def part(weight: Tensor) -> Tensor:
    """This rank's part of a weight."""
    spread: Any = weight
    return spread.to_local() if hasattr(weight, "to_local") else weight


def _is_shard(module: nn.Module) -> bool:
    return hasattr(module, "unshard") and hasattr(module, "reshard")


def check(model: nn.Module, config: LiftConfig) -> None:
    """Raises UsageError where the model is sharded, and the settings do not fit that."""
    if is_sharded(model):
        check_settings(config)


def check_settings(config: LiftConfig) -> None:
    """Raises UsageError for settings that need the model for more than training and measuring."""
    writes = set(config.qa_kinds) & {"question", "summary", "rephrasing", "facts"}
    if (
        not {"segments", "recitation", "qa"}.issuperset(config.objectives)
        or ("qa" in config.objectives and writes)
        or config.adapter_init != "random"
        or config.keep is not None
        or config.base_dtype != "model"
    ):
        raise UsageError(
            "a sharded base trains on segments, recitation and questions that it need not write, "
            "from a random start, in its own dtype: add --preset plain"
        )
