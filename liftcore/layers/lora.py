"""LoRA on the linear layers of a decoder: attach it, switch it, take it off.

The parameters of an adapter are views of one flat buffer, so that the optimizer, a checkpoint
and a copy are each one operation on one tensor.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Collection, Generator
from contextlib import contextmanager, nullcontext
from typing import NamedTuple

import torch
from torch import Tensor, nn

from liftcore.config import LiftConfig
from liftcore.device_memory import free_bytes
from liftcore.kernels.lora import add_lora, lora_linear
from liftcore.layers import depth, owners
from liftcore.layers.groups import Group, Parts, Siblings, find
from liftcore.layers.linear import (
    bias_of,
    features,
    is_readable,
    is_transposed,
    keep_gradients,
    matrix,
    observed,
    product_weight,
    quantised_by,
    weight_of,
)
from liftcore.layers.owners import Owners
from liftcore.layers.sharded import is_sharded
from liftcore.layers.targets import EXCLUDED, shared_weights, targets
from liftcore.model import body

# The attribute of a model that holds its adapter.
INSTALLED = "_liftcore_adapter"


class LoraLinear(nn.Module):
    """A frozen linear layer with a LoRA branch: y = x Wᵀ + scaling (x Aᵀ) Bᵀ (+ bias). With owners
    there are many, and each row of the batch has its own."""

    def __init__(
        self,
        base: nn.Module,
        lora_a: Tensor,
        lora_b: Tensor,
        scaling: float,
        owners: Owners | None = None,
    ):
        super().__init__()
        self.base = base
        self.lora_a = nn.Parameter(lora_a)  # [R, K], or [E, R, K] with owners
        self.lora_b = nn.Parameter(lora_b)  # [N, R], or [E, N, R]
        self.scaling, self.owners = scaling, owners
        self.group: Group | None = None  # of the layers that share x, while installed

    # Code that asks a linear layer for its weight (attention variants do) must still work.
    @property
    def weight(self) -> Tensor:
        return weight_of(self.base)

    @property
    def bias(self) -> Tensor | None:
        return bias_of(self.base)

    @property
    def in_features(self) -> int:
        return features(self.base)[0]

    @property
    def out_features(self) -> int:
        return features(self.base)[1]

    def forward(self, x: Tensor) -> Tensor:
        if self.group is not None and (y := self.group.output(self, x)) is not None:
            return y
        if (parts := self.parts()) is None:
            return add_lora(x, self.base(x), self.lora_a, self.lora_b, self.scaling)
        if self.owners is not None:
            return self.owners.linear(x, *parts)
        return lora_linear(x, *parts)

    def parts(self) -> Parts | None:
        """What the ops need; None where the base computes its own product."""
        if quantised_by(self.base):
            return None
        weight = product_weight(self.base)
        return Parts(weight, self.lora_a, self.lora_b, self.scaling, bias_of(self.base))


def _parts(layer: nn.Module, x: Tensor) -> Parts | None:
    """What the ops need of a LoraLinear; None when it must run by itself."""
    if not isinstance(layer, LoraLinear) or "forward" in vars(layer) or observed(layer):
        return None
    return layer.parts()


class Slot(NamedTuple):
    """The adapter in one slot: its rows [P] of `values` and `grads`."""

    values: Tensor
    grads: Tensor


class Adapter:
    """One set of LoRA layers for one model; several may exist, one is installed at a time.

    slots           None: one adapter. Else so many of one form, which a batch trains together: each
                    tensor below has a first dimension more, and `owners` says whose rows the next
                    forward has (at first those of slot 0)
    values, grads   flat [P] in the model's dtype: what is trained. Every lora_a, lora_b and its
                    .grad is a view. The A of layers that share an input lie one behind the other,
                    then their B
    frozen          flat, the same of each A where it is not trained (train_a False, LoRA-FA, arXiv
                    2308.03303); else empty
    numbers         of the decoder layers that get LoRA; None: all
    exclude         ends of the paths of those of their linear layers that get none
    layers          module path -> LoraLinear
    targets         what the layers are, how PEFT finds them, and what gets no LoRA
    groups          the layers that share an input
    """

    def __init__(
        self,
        model: nn.Module,
        rank: int,
        alpha: float,
        seed: int = 0,
        *,
        numbers: Collection[int] | None = None,
        exclude: Collection[str] = (),
        train_a: bool = True,
        slots: int | None = None,
    ):
        self.targets, self.slots = targets(model, numbers, exclude), slots
        self.numbers = None if numbers is None else sorted(numbers)
        self.exclude = tuple(exclude)
        bases = self.targets.layers
        keep_gradients(model)
        self.model, self.rank, self.alpha, self.train_a = model, rank, float(alpha), train_a
        of_a, of_b = (sum(rank * features(m)[side] for m in bases.values()) for side in (0, 1))
        trained = of_a + of_b if train_a else of_b
        several, device = () if slots is None else (slots,), self.targets.device
        self.values = torch.zeros(*several, trained, dtype=self.targets.dtype, device=device)
        self.grads = torch.zeros_like(self.values)
        self.frozen = self.values.new_zeros(*several, 0 if train_a else of_a)
        self.owners = None
        if slots is not None:
            self.owners = Owners.first(device)
        beside = [path for path, why in self.targets.left.items() if why == EXCLUDED]
        self.groups, self._grouped = _groups(model, list(bases), beside), True
        self.layers: dict[str, LoraLinear] = {}
        offsets = self._offsets(bases)
        # Drawn on the CPU in fp32, so that every device and dtype starts from the same numbers.
        generator = torch.Generator().manual_seed(seed)
        for path, base in bases.items():
            a_at, b_at = offsets[path]
            k, n = features(base)
            a_shape, b_shape = (rank, k), (n, rank)
            lora_a = _view(self.values if train_a else self.frozen, a_at, a_shape)
            # Uniform in ±1/sqrt(K), as nn.Linear and PEFT start A; B starts at 0.
            start = torch.rand(a_shape, generator=generator, dtype=torch.float32).mul_(2).sub_(1)
            lora_a.copy_(start / math.sqrt(k))
            lora_b = _view(self.values, b_at, b_shape)
            layer = LoraLinear(base, lora_a, lora_b, self.scaling, self.owners)
            if train_a:
                layer.lora_a.grad = _view(self.grads, a_at, a_shape)
            layer.lora_a.requires_grad_(train_a)
            layer.lora_b.grad = _view(self.grads, b_at, b_shape)
            self.layers[path] = layer

    @classmethod
    def of(cls, model: nn.Module, config: LiftConfig, slots: int | None = None) -> Adapter:
        """The adapter that a run with these settings begins from, A drawn at random."""
        return cls(
            model,
            config.rank,
            config.lora_alpha,
            config.seed,
            numbers=depth.numbers(model, config.layers),
            exclude=config.exclude_modules,
            train_a=config.train_a,
            slots=slots,
        )

    def _offsets(self, bases: dict[str, nn.Module]) -> dict[str, tuple[int, int]]:
        """Module path -> where its A and its B start in their flat buffers."""
        group_of = {path: group.members for group in self.groups for path in group.members}
        starts: dict[str, list[int]] = {path: [] for path in bases}
        ends = [0, 0]  # of the buffers of A and B, which are one where A is trained too
        for path in bases:
            members = group_of.get(path, (path,))
            if starts[path]:
                continue  # placed with the first of its group
            for side in (0, 1):
                for member in members:
                    buffer = 0 if self.train_a else side
                    starts[member].append(ends[buffer])
                    ends[buffer] += self.rank * features(bases[member])[side]
        return {path: (a, b) for path, (a, b) in starts.items()}

    @property
    def scaling(self) -> float:
        return self.alpha / self.rank

    @property
    def first_layer(self) -> int:
        """The number of the lowest decoder layer that is trained: no gradient goes below it."""
        return self.numbers[0] if self.numbers else 0

    def slot(self, number: int) -> Slot:
        """What an optimizer reads and writes of one of the slots."""
        return Slot(self.values[number], self.grads[number])

    @torch.no_grad()
    def put(self, number: int, one: Adapter) -> None:
        """Copies an adapter of this form into a slot, whose gradient becomes 0."""
        self.values[number].copy_(one.values)
        self.frozen[number].copy_(one.frozen)
        self.grads[number].zero_()

    @torch.no_grad()
    def load_frozen(self, values: Tensor) -> None:
        """Takes back a copy of `frozen`; raises ValueError when it cannot be one."""
        if values.shape != self.frozen.shape or not bool(values.isfinite().all()):
            raise ValueError("the saved A belongs to another adapter")
        self.frozen.copy_(values)

    def install(self) -> None:
        """Puts this adapter's layers into the model, in place of another adapter's."""
        current = installed(self.model)
        if current is self:
            return
        if current is not None:
            current.remove()
        # First, so that remove() undoes what an interrupt leaves of this.
        self._working: list[Group] = []
        vars(self.model)[INSTALLED] = self
        for path, layer in self.layers.items():
            put(self.model, path, layer)
        for siblings in self.groups:
            group = Group(self.model, siblings, _parts, "group", self.owners)
            group.enabled = self._grouped
            self._working.append(group)

    def remove(self) -> None:
        """Puts the model's own layers back."""
        if installed(self.model) is not self:
            return
        for group in self._working:
            group.remove()
        for path, layer in self.layers.items():
            layer.group = None
            put(self.model, path, layer.base)
        vars(self.model)[INSTALLED] = None

    @contextmanager
    def ungrouped(self) -> Generator[None]:
        """Within it the layers that share an input run one by one."""
        self._group(False)
        try:
            yield
        finally:
            self._group(True)

    def _group(self, together: bool) -> None:
        self._grouped = together  # also where the adapter is taken out and put back meanwhile
        for group in self._working:
            group.enabled = together

    @contextmanager
    def folded(self) -> Generator[None]:
        """Within it W + scaling · B A stands in the place of W: the same answers, sooner.

        In fp32 only, since 16 bit would round a small B A away; where memory has room for the sums,
        no layer shares its weight, and none is quantised.
        """
        readable = all(map(is_readable, self.targets.layers.values())) and not is_sharded(
            self.model
        )
        fp32 = self.values.dtype == torch.float32
        if not fp32 or not readable or self._share_weights() or not self._sums_fit():
            yield
            return
        own = {path: layer.weight.data for path, layer in self.layers.items()}
        try:
            for layer in self.layers.values():
                a, b = layer.lora_a.data, layer.lora_b.data
                total = torch.addmm(matrix(layer.base).data, b, a, alpha=self.scaling)  # [N, K]
                layer.weight.data = total.T if is_transposed(layer.base) else total
            with without_adapter(self.model):
                yield
        finally:
            for path, layer in self.layers.items():
                layer.weight.data = own[path]

    def _share_weights(self) -> bool:
        return bool(shared_weights(self.model, self.targets.layers))

    def _sums_fit(self) -> bool:
        need = sum(layer.weight.nbytes for layer in self.layers.values())
        free = free_bytes(self.values.device)
        return free is not None and free > 2 * need


def installed(model: nn.Module) -> Adapter | None:
    """The adapter whose layers are in the model."""
    return getattr(model, INSTALLED, None)


@contextmanager
def own_adapter_after(model: nn.Module, *, on_failure: bool = False) -> Generator[None]:
    """Behind it the model has the adapter again that it had before, or none; with on_failure only
    when something is raised."""
    before, failed = installed(model), True
    try:
        yield
        failed = False
    finally:
        if failed or not on_failure:
            # An interrupt may have left either of them half installed.
            if (current := installed(model)) is not None:
                current.remove()
            if before is not None:
                before.install()


@contextmanager
def without_adapter(model: nn.Module) -> Generator[None]:
    """Within it the model has its own layers."""
    with own_adapter_after(model):
        if (current := installed(model)) is not None:
            current.remove()
        yield


@contextmanager
def only_adapter_trains(adapter: Adapter) -> Generator[None]:
    """Within it no other parameter of the model gets a gradient, and the layers below the
    adapter's keep nothing for one."""
    own = {id(p) for m in adapter.layers.values() for p in (m.lora_a, m.lora_b)}
    others = [p for p in adapter.model.parameters() if id(p) not in own and p.requires_grad]
    for p in others:
        p.requires_grad_(False)
    try:
        with (
            depth.without_gradient_below(adapter.model, adapter.first_layer),
            nullcontext() if adapter.owners is None else owners.without_warning(),
        ):
            yield
    finally:
        for p in others:
            p.requires_grad_(True)


def linear_layers(
    model: nn.Module, numbers: Collection[int] | None = None, exclude: Collection[str] = ()
) -> dict[str, nn.Module]:
    """Module path -> layer of those that get LoRA; raises what targets() does."""
    return targets(model, numbers, exclude).layers


def lora_layers(model: nn.Module, config: LiftConfig) -> dict[str, nn.Module]:
    """The same for a run with these settings."""
    return linear_layers(model, depth.numbers(model, config.layers), config.exclude_modules)


def _view(flat: Tensor, offset: int, shape: tuple[int, int]) -> Tensor:
    """A matrix of each flat [P], or [E, P]."""
    return flat[..., offset : offset + math.prod(shape)].unflatten(-1, shape)


def _groups(model: nn.Module, paths: list[str], beside: list[str]) -> list[Siblings]:
    """The groups of the model's layers; none when it cannot run on token ids alone."""
    try:
        return find(model, body(model), paths, beside)
    except Exception as error:
        warnings.warn(f"q/k/v and gate/up are not grouped: {error}", stacklevel=3)
        return []


def put(model: nn.Module, path: str, module: nn.Module) -> None:
    """Puts a module into the model at a path."""
    parent, _, name = path.rpartition(".")
    setattr(model.get_submodule(parent), name, module)
