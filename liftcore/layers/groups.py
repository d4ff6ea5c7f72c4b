"""Sibling linear layers that share an input, found by structure and computed together.

One forward of a few tokens shows which layers of one parent get the same tensor: q/k/v, gate/up.
Within the parent's forward the first member's call then computes all of them, and the others
take their outputs when they are called with that very tensor. A parent that is
down(act(gate(x)) · up(x)), which is checked by numbers, also fuses the product.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from liftcore.kernels.fp8 import Weight
from liftcore.kernels.lora import ACTIVATIONS, lora_gate_up, lora_qkv
from liftcore.kernels.lora_plain import activated
from liftcore.layers.linear import features, observed
from liftcore.layers.owners import Owners
from liftcore.layers.replaced import put_back
from liftcore.layers.sharded import whole
from liftcore.model import causal_lm, evaluating

LARGEST = 3  # members of lora_qkv
# Sizes of a gate's argument in a trial. The activations differ most, and are least like a line,
# at order 3; what cuts large values off, or small ones, shows far out.
PROBES = (0.01, 3.0, 30.0, 1000.0)


class Parts(NamedTuple):
    """What the ops need of a LoRA linear, in the order of their arguments."""

    weight: Weight  # [N, K]
    lora_a: Tensor  # [R, K]
    lora_b: Tensor  # [N, R]
    scaling: float
    bias: Tensor | None


@dataclass(frozen=True)
class Siblings:
    """Module paths: `members` share an input, in the order of their calls.

    With `down` the parent computes down(act(members[0](x)) · members[1](x)), and act is
    `activation`.
    """

    parent: str
    members: tuple[str, ...]
    down: str | None = None
    activation: str | None = None


@torch.no_grad()
def find(
    model: nn.Module, body: nn.Module, paths: list[str], beside: Collection[str] = ()
) -> list[Siblings]:
    """The groups among the linear layers at `paths`, seen in one forward of `body`. Those at
    `beside` are members of none, but one of them may be the `down` of one.

    A layer that is called twice, or not with one tensor alone, belongs to no group. Raises what
    the model's forward raises on plain token ids.
    """
    seen: dict[str, list[tuple[str, Tensor | None]]] = {}  # parent -> its layers' inputs

    def watch(path: str) -> Callable:
        def note(module: nn.Module, args: tuple, kwargs: dict) -> None:
            alone = len(args) == 1 and not kwargs and isinstance(args[0], Tensor)
            seen.setdefault(path.rpartition(".")[0], []).append((path, args[0] if alone else None))

        return note

    handles = [
        model.get_submodule(path).register_forward_pre_hook(watch(path), with_kwargs=True)
        for path in (*paths, *beside)
    ]
    try:
        with evaluating(body):
            device = causal_lm(body).get_input_embeddings().weight.device
            ids = torch.arange(1, 5, device=device)[None]
            body(input_ids=ids, use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    with evaluating(body):
        return [
            group
            for parent, calls in seen.items()
            for group in _groups(model, parent, calls, frozenset(beside))
        ]


def _groups(
    model: nn.Module,
    parent: str,
    calls: list[tuple[str, Tensor | None]],
    beside: Collection[str],
) -> list[Siblings]:
    names = [path for path, _ in calls]
    inputs: dict[int, list[str]] = {}
    for path, x in calls:
        if x is not None and names.count(path) == 1 and path not in beside:
            inputs.setdefault(id(x), []).append(path)
    groups = []
    for paths in inputs.values():
        # A last one alone is no group.
        for i in range(0, len(paths) - 1, LARGEST):
            group = Siblings(parent, tuple(paths[i : i + LARGEST]))
            others = [call for call in calls if call[0] not in paths]
            if len(paths) == 2 and len(others) == 1:
                group = _gated(model, parent, group.members, *others[0])
            groups.append(group)
    return groups


def _gated(
    model: nn.Module, parent: str, members: tuple[str, ...], down: str, inner: Tensor | None
) -> Siblings:
    """The group with its activation, when the parent is down(act(gate(x)) · up(x))."""
    owner = model.get_submodule(parent)
    one, two, last = (model.get_submodule(path) for path in (*members, down))
    plain = Siblings(parent, members)
    dropout = any(isinstance(m, nn.Dropout) and m.p for m in owner.modules())
    if inner is None or dropout or "forward" in vars(owner):
        return plain
    if not all(_untouched(child) for child in _others(owner, (*members, down)).values()):
        return plain
    with whole(owner, model):
        return _activated(owner, (one, two, last), members, down, inner) or plain


def _activated(
    owner: nn.Module,
    layers: tuple[nn.Module, nn.Module, nn.Module],
    members: tuple[str, ...],
    down: str,
    inner: Tensor,
) -> Siblings | None:
    """The group of a parent that computes down(act(gate(x)) · up(x)); None for another."""
    one, two, last = layers
    parent = down.rpartition(".")[0]
    try:
        x = _probe(one, two, inner)
        right = type(owner).forward(owner, x)
        with _training(owner), torch.random.fork_rng():
            trained = type(owner).forward(owner, x)
    except Exception:
        return None
    # Noise or dropout by a function, that only training has.
    if not isinstance(right, Tensor) or not _same_rows(trained, right):
        return None
    for gate, up, order in ((one, two, members), (two, one, members[::-1])):
        for activation in ACTIVATIONS:
            g, u = gate(x), up(x)
            if g.shape != u.shape or u.shape[-1] != features(last)[0]:
                return None
            ours = last(activated(g, activation == "gelu_tanh") * u)
            if ours.shape == right.shape and _same_rows(ours, right):
                return Siblings(parent, order, down, activation)
    return None


def _probe(one: nn.Module, two: nn.Module, like: Tensor) -> Tensor:
    """Rows [1, 4 · probes, K] for which the gate's argument, whichever it is, has those sizes."""
    x = torch.randn(4, features(one)[0], generator=torch.Generator().manual_seed(0)).to(like)
    smaller = min(one(x).float().std(), two(x).float().std())
    return torch.cat([x.float() * (s / smaller) for s in PROBES])[None].to(like.dtype)


def _same_rows(ours: Tensor, right: Tensor) -> bool:
    """Whether every row agrees: a row of large numbers must not hide the others."""
    # One rounding more or less, averaged over a row.
    bound = 2**-7 if right.element_size() == 2 else 1e-5
    error = (ours.float() - right.float()).norm(dim=-1)
    near = error <= bound * right.float().norm(dim=-1)
    # Where both ran out of fp16 there is nothing to compare.
    beyond = ~(right.isfinite().all(-1) | ours.isfinite().all(-1))
    return bool((near | beyond).all()) and bool(near.any())


@contextmanager
def _training(module: nn.Module) -> Generator[None]:
    """Within it all of a module trains, whatever its parts did before."""
    before = [m for m in module.modules() if not m.training]
    for m in before:
        m.training = True
    try:
        yield
    finally:
        for m in before:
            m.training = False


class Group:
    """A group at work in a model; remove() takes it out again.

    Nothing is kept once the parent's forward has ended, and outside of it no call is answered.
    Its members are the children of these names whose attribute `mark` it is: a layer that
    somebody takes out of the model is not kept alive. `parts` gives those of a member for an x,
    or None where it must run by itself. With `owners` the members have many adapters.
    """

    def __init__(
        self,
        model: nn.Module,
        siblings: Siblings,
        parts: Callable[[nn.Module, Tensor], Parts | None],
        mark: str,
        owners: Owners | None = None,
    ):
        self.owners = owners
        self.parent = model.get_submodule(siblings.parent)
        self.names = [path.rpartition(".")[2] for path in siblings.members]
        self.mark = mark
        for name in self.names:
            setattr(getattr(self.parent, name), mark, self)
        self.down = (siblings.down or "").rpartition(".")[2]  # "": nothing is fused
        self.activation, self.parts = siblings.activation or "", parts
        # What the fused op leaves out, such as the activation's module.
        self.others: dict[str, nn.Module] = {}
        self.open, self.x = False, None
        self.ready: list[Tensor | None] = []
        self.enabled = True  # without, every member runs by itself
        self.handles = [
            self.parent.register_forward_pre_hook(self._enter),
            self.parent.register_forward_hook(self._leave, always_call=True),
        ]
        if siblings.down:
            self.others = _others(self.parent, (*siblings.members, siblings.down))
            self.parent.forward = self._gated

    def remove(self) -> None:
        for handle in self.handles:
            handle.remove()
        put_back(self.parent, Group._gated)

    def output(self, member: nn.Module, x: Tensor) -> Tensor | None:
        """The member's output for x; None when the member must compute it by itself."""
        if not self.open or not self.enabled:
            return None
        name = next((name for name in self.names if self._child(name) is member), None)
        if name == self.names[0]:
            self.x, self.ready = None, []
            inputs = self._inputs(x)
            if inputs is None:
                return None
            qkv = lora_qkv if self.owners is None else self.owners.qkv
            ys = qkv(x, *inputs)
            # A list by name: torch.compile of torch 2.11 makes a tuple of `y, *ready = ys`.
            ready: list[Tensor | None] = list(ys[1:])
            self.x, self.ready = x, ready
            return ys[0]
        if x is not self.x or name is None:
            return None
        at = self.names.index(name) - 1
        y, self.ready[at] = self.ready[at], None
        return y

    def _child(self, name: str) -> nn.Module | None:
        return getattr(self.parent, name, None)

    def _inputs(self, x: Tensor) -> list | None:
        # Others may have put another layer in a member's place since.
        parts = []
        for member in map(self._child, self.names):
            ours = member is not None and getattr(member, self.mark, None) is self
            part = self.parts(member, x) if ours else None
            if part is None:
                return None
            parts.append(part)
        return [list(part) for part in zip(*parts, strict=True)]

    def _gated(self, x: Tensor, *args: object, **kwargs: object) -> Tensor:
        alone = args or kwargs or not self.enabled or not self._same_others()
        inputs = None if alone else self._inputs(x)
        if inputs is None:
            return type(self.parent).forward(self.parent, x, *args, **kwargs)
        gate_up = lora_gate_up if self.owners is None else self.owners.gate_up
        h = gate_up(x, *inputs, activation=self.activation)
        return getattr(self.parent, self.down)(h)

    def _same_others(self) -> bool:
        there = self.others.items()
        return all(self._child(name) is other and _untouched(other) for name, other in there)

    def _enter(self, *call: object) -> None:
        self.open = True

    def _leave(self, *call: object) -> None:
        self.open, self.x, self.ready = False, None, []


def _others(parent: nn.Module, paths: tuple[str, ...]) -> dict[str, nn.Module]:
    """The parent's children by name, without those at `paths`."""
    names = [path.rpartition(".")[2] for path in paths]
    return {name: child for name, child in parent.named_children() if name not in names}


def _untouched(module: nn.Module) -> bool:
    """Whether a module and those in it run as their classes say, unwatched."""
    return not any("forward" in vars(m) or observed(m) for m in module.modules())
