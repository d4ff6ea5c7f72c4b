"""Problems for the LoRA linears of many adapters, and their checks, whatever the path."""

from __future__ import annotations

import torch
from lora_checks import SCALINGS, assert_close, run
from torch import Tensor

from liftcore.kernels import reference
from liftcore.kernels.lora_many import lora_gate_up_many, lora_linear_many, lora_qkv_many

# Tiles of each adapter, rows of a tile, K, widths, ranks: adapters without rows at either end and
# in the middle, one with all rows, tiles of a size that no block of a kernel has.
MANY = [
    ((2, 0, 3), 5, 48, (80,), (8,)),
    ((0, 1, 0), 70, 40, (33,), (3,)),
    ((1, 1, 1, 1), 1, 24, (17,), (1,)),
    ((3, 2), 33, 257, (48, 16, 80), (16, 1, 8)),
    ((0, 4, 1, 0), 64, 80, (65, 65), (8, 128)),
]


class Many:
    """Random inputs of a group of linears with an adapter for each of `counts`."""

    def __init__(self, generator, counts, tile, k, widths, ranks, bias=True):
        def normal(*shape):
            return torch.randn(*shape, generator=generator)

        e, tokens = len(counts), sum(counts) * tile
        self.counts, self.tile = counts, tile
        self.owners = torch.repeat_interleave(torch.arange(e), torch.tensor(counts)).int()
        self.x = normal(tokens, k)
        self.weights = [normal(n, k) / k**0.5 for n in widths]
        # The adapters' flat buffers: the A of a group one behind the other, then their B.
        sizes = [r * k for r in ranks] + [n * r for n, r in zip(widths, ranks, strict=True)]
        self.values = normal(e, sum(sizes)) / k**0.5
        shapes = [(r, k) for r in ranks] + list(zip(widths, ranks, strict=True))
        parts = self.values.split(sizes, dim=1)
        views = [p.unflatten(1, shape) for p, shape in zip(parts, shapes, strict=True)]
        if not bias:  # each in a buffer of its own
            views = [view.clone() for view in views]
        self.lora_a, self.lora_b = views[: len(ranks)], views[len(ranks) :]
        self.scalings = list(SCALINGS[: len(widths)])
        self.biases = [normal(n) if bias else None for n in widths]
        self.dys = [normal(tokens, n) for n in widths]

    @property
    def trained(self) -> list[Tensor]:
        return [self.x, *self.lora_a, *self.lora_b]

    @property
    def args(self):
        group = self.weights, self.lora_a, self.lora_b, self.owners
        return self.x, *group, self.scalings, self.biases

    def leaves(self, dtype=torch.float32, device="cpu") -> Many:
        """A copy whose trained tensors are leaves; in fp32 A and B stay views of the buffer."""

        def new(t):
            return t.detach().to(device, dtype).requires_grad_()

        copy = object.__new__(Many)
        vars(copy).update(vars(self))
        copy.x, copy.lora_a, copy.lora_b = (
            new(self.x),
            *([new(t) for t in ts] for ts in (self.lora_a, self.lora_b)),
        )
        copy.weights = [w.to(device, dtype) for w in self.weights]
        copy.biases = [b if b is None else b.to(device, dtype) for b in self.biases]
        copy.dys = [dy.to(device, dtype) for dy in self.dys]
        copy.owners = self.owners.to(device)
        return copy


def check_group(many: Many) -> None:
    """lora_qkv_many, or lora_linear_many for one member, against fp64 truth."""
    n = len(many.weights)
    labels = [f"{kind}{i}" for kind in ("y",) for i in range(n)]
    labels += ["dx", *(f"d{m}{i}" for m in "AB" for i in range(n))]
    ours, wide = many.leaves(), many.leaves(torch.float64)
    op = lora_qkv_many
    if n == 1:

        def op(x, weights, lora_a, lora_b, owners, scalings, biases):
            return lora_linear_many(
                x, weights[0], lora_a[0], lora_b[0], owners, scalings[0], biases[0]
            )

    right = run(reference.lora_qkv_many, wide, wide.dys)
    result = run(op, ours, ours.dys)
    _close(result, right, labels, many)


def check_gate_up(many: Many, activation: str) -> None:
    """lora_gate_up_many against fp64 truth."""
    ours, wide = many.leaves(), many.leaves(torch.float64)
    right = run(reference.lora_gate_up_many, wide, wide.dys[:1], (*wide.args, activation))
    result = run(lambda *args: lora_gate_up_many(*args, activation=activation), ours, ours.dys[:1])
    _close(result, right, ["h", "dx", "dA0", "dA1", "dB0", "dB1"], many)


def _close(result: list[Tensor], right: list[Tensor], labels: list[str], many: Many) -> None:
    assert_close(result, right, labels)
    for label, ours, truth in zip(labels, result, right, strict=True):
        if label[:2] not in ("dA", "dB"):
            continue
        for e, count in enumerate(many.counts):
            # By adapter: a small one must not hide behind a large one.
            if count:
                # The few terms of one row and rank 1 may cancel but for their rounding.
                assert_close([ours[e]], [truth[e]], [f"{label} of adapter {e}"], bound=1e-3)
            else:
                assert not ours[e].any(), f"{label} of adapter {e}, which has no rows"
