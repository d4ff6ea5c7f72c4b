"""What goes into the linear layers of an adapter over a text: a second moment, or a sample.

A second moment is kept as [K, K] up to K = WIDEST where there are more than 2 K tokens; rows
otherwise, and of a wider layer a sample of at most ROWS of them.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from liftcore.layers.batches import by_length, padded
from liftcore.layers.depth import decoder_layers
from liftcore.layers.linear import features
from liftcore.layers.lora import Adapter, without_adapter
from liftcore.model import body, evaluating

WIDEST = 2048
ROWS = 2048
# Tokens that one forward reads at once.
PASS = 2048


@dataclass
class Inputs:
    """The inputs of one group of layers over a text: their second moment, or a sample of them.

    width     K
    expected  tokens of the whole text
    total     tokens that were seen
    moment  fp32 [K, K], the sum of x xᵀ; None where rows are kept
    rows    fp32 [n, K], at most ROWS of all rows, evenly spread
    """

    width: int
    expected: int
    total: int = 0
    moment: Tensor | None = None
    kept: list[Tensor] = field(default_factory=list)

    def add(self, x: Tensor) -> None:
        """Takes more rows [n, K]."""
        if self.width <= WIDEST and self.expected > 2 * self.width:
            x = x.float()
            if self.moment is None:
                self.moment = x.new_zeros(self.width, self.width)
            self.moment.addmm_(x.T, x)
        else:
            apart = max(1, -(-self.expected // ROWS)) if self.width > WIDEST else 1
            self.kept.append(x[-self.total % apart :: apart].float())
        self.total += len(x)

    @property
    def rows(self) -> Tensor:
        """What was kept, fp32 [n, K]."""
        self.kept = [torch.cat(self.kept)]
        return self.kept[0]

    def times(self, z: Tensor) -> Tensor:
        """The second moment times z [K, r], without forming it where rows are kept."""
        if self.moment is not None:
            return self.moment @ z / self.total
        rows = self.rows
        return rows.T @ (rows @ z) / len(rows)

    def mean(self) -> Tensor:
        """The second moment [K, K], for K up to WIDEST."""
        if self.moment is not None:
            return self.moment / self.total
        return self.rows.T @ self.rows / len(self.rows)

    def scale(self) -> float:
        """The mean of the second moment's diagonal."""
        if self.moment is not None:
            return float(self.moment.diagonal().sum()) / self.total / self.width
        return float(self.rows.square().sum()) / len(self.rows) / self.width


def input_groups(adapter: Adapter) -> list[tuple[str, ...]]:
    """The paths of the adapter's layers, those together that share an input."""
    group_of = {path: group.members for group in adapter.groups for path in group.members}
    return list(dict.fromkeys(group_of.get(path, (path,)) for path in adapter.layers))


@torch.no_grad()
def inputs(adapter: Adapter, rows: Sequence[np.ndarray], *, skip: int = 0) -> dict[str, Inputs]:
    """The inputs of each group, by its first layer's path, over rows of token ids int [n]; the
    first `skip` tokens of each row are left out. The model's own layers run, without an adapter."""
    model = adapter.model
    firsts = [paths[0] for paths in input_groups(adapter)]
    lengths = list(map(len, rows))
    total = sum(max(0, length - skip) for length in lengths)
    gathered = {p: Inputs(features(adapter.layers[p].base)[0], total) for p in firsts}
    counts: list[Tensor] = [torch.empty(0)]  # of the running pass: which positions do, bool [B · S]

    def take(path: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            x = [*args, *kwargs.values()][0]
            x = x.reshape(-1, x.shape[-1])
            # Some layers see a part of the positions only, and do not say which.
            gathered[path].add(x[counts[0]] if len(x) == len(counts[0]) else x)

        return hook

    with without_adapter(model), evaluating(model), _stopping(model, adapter.numbers):
        hooks = [
            model.get_submodule(path).register_forward_pre_hook(take(path), with_kwargs=True)
            for path in firsts
        ]
        try:
            for part in by_length(lengths, PASS):
                ids = padded([rows[i] for i in part])
                at, ends = torch.arange(ids.shape[1]), torch.tensor([lengths[i] for i in part])
                mask = (at >= skip) & (at < ends[:, None])
                counts[0] = mask.flatten().to(adapter.values.device)
                with suppress(_Reached):
                    body(model)(input_ids=ids.to(adapter.values.device), use_cache=False)
        finally:
            for hook in hooks:
                hook.remove()
    return gathered


class _Reached(Exception):
    """The forward has left the last layer that matters."""


@contextmanager
def _stopping(model: nn.Module, numbers: Sequence[int] | None) -> Generator[None]:
    """Within it a forward ends behind the last of these decoder layers."""

    def stop(*_: object) -> None:
        raise _Reached

    layers = decoder_layers(model)
    if numbers is None or numbers[-1] == len(layers) - 1:
        yield
        return
    hook = layers[numbers[-1]].register_forward_hook(stop)
    try:
        yield
    finally:
        hook.remove()
