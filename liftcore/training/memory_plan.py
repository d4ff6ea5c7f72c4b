"""How a step is cut so that it fits into memory: segments at once, layers to recompute."""

from __future__ import annotations

import gc
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from liftcore.device_memory import free_bytes, gib, out_of_memory
from liftcore.layers import base, sharded
from liftcore.layers.depth import decoder_layers
from liftcore.layers.lora import Adapter
from liftcore.model import body

# The rest is for what the plan cannot see: workspaces of the libraries, and fragments, for which a
# CPU's allocator took 1.3 to 2.5 times what was asked of it.
SHARE = {"cuda": 0.9, "cpu": 0.4}
# The head's chunk of logits and its gradient (head_loss_cublas.py, head_loss_plain.py).
HEAD_BYTES = 320 * 2**20
# Fewer tokens a pass cost as much as this many more: small products use a device less well.
# Not measured on a GPU.
OVERHEAD_TOKENS = 64
RECOMPUTE = (0, 4, 2, 1)


@dataclass(frozen=True)
class MemoryPlan:
    """A step takes `passes` passes of at most `micro_batch` segments; of each pass every
    `recompute`-th layer is computed again in the backward (0: none)."""

    micro_batch: int
    passes: int
    recompute: int = 0
    free_bytes: int | None = None  # None: not known
    used: Activations | None = None
    fixed_bytes: int = 0  # what does not depend on the cuts

    @property
    def peak_bytes(self) -> int:
        """Expected beyond what is there already."""
        activations = self.used.peak(self.micro_batch, self.recompute) if self.used else 0
        return self.fixed_bytes + activations

    def __str__(self) -> str:
        how = f"{_count(self.micro_batch, 'segment')} at once"
        if self.passes > 1:
            how += f", {_count(self.passes, 'pass')} a step"
        layers = {0: "nothing", 1: "every layer", 2: "every 2nd layer"}.get(
            self.recompute, f"every {self.recompute}th layer"
        )
        free = "" if self.free_bytes is None else f" of {gib(self.free_bytes)} free"
        return f"{how}, {layers} recomputed; about {gib(self.peak_bytes)}{free}"

    def cut(self, segments: int, micro_batch: int, recompute: int) -> MemoryPlan:
        """This plan with other cuts of a step of so many segments."""
        passes = -(-segments // micro_batch)
        return replace(self, micro_batch=micro_batch, passes=passes, recompute=recompute)

    def smaller(self, segments: int) -> MemoryPlan | None:
        """The plan after running out of memory: half of the segments, then every layer
        recomputed; None when there is nothing left to save."""
        if self.micro_batch > 1:
            return self.cut(segments, -(-self.micro_batch // 2), self.recompute)
        return replace(self, recompute=1) if self.recompute != 1 else None


def _count(n: int, noun: str) -> str:
    return f"{n} {noun}" if n == 1 else f"{n} {noun}{'es' if noun.endswith('s') else 's'}"


@dataclass(frozen=True)
class Activations:
    """Bytes that one segment's forward keeps for its backward."""

    layers: list[int]  # by decoder layer
    rest: int
    hidden: int  # of the hidden states between two layers
    first: int = 0  # of the layers that are trained; those below keep nothing

    def longer(self, times: float) -> Activations:
        """The same for a segment `times` as long."""
        if times == 1:
            return self
        layers = [int(times * n) for n in self.layers]
        return replace(
            self, layers=layers, rest=int(times * self.rest), hidden=int(times * self.hidden)
        )

    def peak(self, segments: int, recompute: int) -> int:
        """What a pass of so many segments needs at most."""
        again = self.layers[self.first :: recompute] if recompute else []
        kept = sum(self.layers) - sum(again) + len(again) * self.hidden + self.rest
        # The backward holds one layer's gradients, and again the activations of a recomputed one.
        most = max(self.layers, default=self.rest)
        return segments * (kept + most + max(again, default=0))


def choose(model: nn.Module, adapter: Adapter, segments: int, size: int) -> MemoryPlan:
    """The cheapest plan that fits the device's free memory.

    A step has `segments` segments of `size` tokens. Recomputing costs a third of what it covers;
    a pass of few tokens uses the device badly. When nothing fits, the smallest plan is tried.
    Where the free memory is not known, all segments of a step go at once.
    """
    device = adapter.values.device
    free, share = free_bytes(device), SHARE.get(device.type, 0.5)
    used = replace(measure(model, size), first=adapter.first_layer)
    # fp32 masters and gradients, two moments, of what is trained; what is in the adapter's dtype
    # exists already.
    fixed = HEAD_BYTES + 16 * adapter.values.numel() + base.workspace(model, segments * size)
    plans = []
    micro = segments
    while True:
        for recompute in RECOMPUTE:
            passes = -(-segments // micro)
            plans.append(MemoryPlan(micro, passes, recompute, free, used, fixed))
        if micro == 1:
            break
        micro = -(-micro // 2)

    def cost(plan: MemoryPlan) -> float:
        again = 1 / 3 / plan.recompute if plan.recompute else 0.0
        return (1 + again) * plan.passes * (plan.micro_batch * size + OVERHEAD_TOKENS)

    fitting = [p for p in plans if free is None or p.peak_bytes <= share * free]
    return min(fitting, key=cost) if fitting else plans[-1]


def measure(model: nn.Module, size: int) -> Activations:
    """Runs one segment of `size` tokens forward and counts what autograd keeps.

    Where not even that fits, a shorter one tells it: activations grow with the length.
    """
    length = size
    while True:
        try:
            return _measure(model, length).longer(size / length)
        except RuntimeError as error:
            if not out_of_memory(error) or length < 32:
                raise
        length //= 2
        gc.collect()


def _measure(model: nn.Module, size: int) -> Activations:
    layers = decoder_layers(model)
    kept, seen = [0] * (len(layers) + 1), _storages(model)
    with _counting(layers, kept, seen):
        ids = torch.zeros(1, size, dtype=torch.int64, device=next(model.parameters()).device)
        hidden = body(model)(input_ids=ids, use_cache=False).last_hidden_state
    return Activations(kept[:-1], kept[-1], hidden.numel() * hidden.element_size())


def _storages(model: nn.Module) -> set[int]:
    tensors = (*model.parameters(), *model.buffers())
    return {each.untyped_storage().data_ptr() for t in tensors for each in _parts(sharded.part(t))}


def _parts(tensor: Any) -> list[Tensor]:
    """The tensors that hold the numbers of one: those of torchao are made of several."""
    names = tensor.__tensor_flatten__()[0] if hasattr(tensor, "__tensor_flatten__") else ()
    return [getattr(tensor, name) for name in names] or [tensor]


@contextmanager
def _counting(layers: list[nn.Module], kept: list[int], seen: set[int]) -> Generator[None]:
    """Adds the bytes of each saved storage to the layer that is running, the last entry: none."""
    at = [-1]

    def pack(tensor: Tensor) -> Tensor:
        for part in _parts(tensor):
            storage = part.untyped_storage()
            if storage.data_ptr() not in seen:
                seen.add(storage.data_ptr())
                kept[at[0]] += storage.nbytes()
        # A result that its own node keeps would be a circle that nothing frees.
        return tensor.detach()

    def enter(number: int) -> Callable[..., None]:
        return lambda *_: at.__setitem__(0, number)

    hooks = [layer.register_forward_pre_hook(enter(i)) for i, layer in enumerate(layers)]
    hooks += [layer.register_forward_hook(enter(-1)) for layer in layers]
    try:
        with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            yield
    finally:
        for hook in hooks:
            hook.remove()
