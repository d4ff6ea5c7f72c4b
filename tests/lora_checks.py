"""Problems and comparisons that the LoRA tests share, whatever the device and path."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from liftcore.kernels import reference

SCALINGS = (0.7, 1.5, -2.0)


def rel(a: Tensor, b: Tensor) -> float:
    """‖a − b‖ / ‖b‖; NaN in a gives NaN, which is under no bound."""
    a, b = a.detach().double(), b.detach().double()
    return ((a - b).norm() / b.norm().clamp_min(1e-30)).item()


def fresh_seed() -> torch.Generator:
    seed = int(torch.seed() % 2**31)
    print("seed", seed)
    return torch.Generator().manual_seed(seed)


@dataclass
class Group:
    """Inputs of the LoRA linears of one group; gradients are wanted for `trained`."""

    x: Tensor
    weights: list[Tensor]
    lora_a: list[Tensor]
    lora_b: list[Tensor]
    scalings: list[float]
    biases: list[Tensor | None]

    @property
    def trained(self) -> list[Tensor]:
        return [self.x, *self.lora_a, *self.lora_b]

    @property
    def args(self):
        return self.x, self.weights, self.lora_a, self.lora_b, self.scalings, self.biases

    @property
    def single(self):
        """The arguments of lora_linear for the first member."""
        members = self.weights, self.lora_a, self.lora_b, self.scalings, self.biases
        return self.x, *(m[0] for m in members)

    def to(self, **kwargs) -> Group:
        """A copy with another dtype or device, its trained tensors leaves again."""

        def new(t, grad=False):
            return t if t is None else t.detach().to(copy=True, **kwargs).requires_grad_(grad)

        return Group(
            new(self.x, True),
            [new(w) for w in self.weights],
            [new(a, True) for a in self.lora_a],
            [new(b, True) for b in self.lora_b],
            self.scalings,
            [new(b) for b in self.biases],
        )


def make_group(generator, tokens, k, widths, ranks, bias=True) -> Group:
    """Random fp32 inputs on the CPU with outputs of order 1."""

    def normal(*shape):
        return torch.randn(*shape, generator=generator)

    group = Group(
        normal(tokens, k),
        [normal(n, k) / k**0.5 for n in widths],
        [normal(r, k) / k**0.5 for r in ranks],
        [normal(n, r) / r**0.5 for n, r in zip(widths, ranks, strict=True)],
        list(SCALINGS[: len(widths)]),
        [normal(n) if bias else None for n in widths],
    )
    return group.to(dtype=torch.float32)


def run(function, group: Group, dys: list[Tensor], args=None):
    """Outputs and the gradients of x, A and B."""
    out = function(*(group.args if args is None else args))
    outs = [out] if isinstance(out, Tensor) else list(out)
    grads = torch.autograd.grad(outs, group.trained, dys)
    return [*outs, *grads]


def truth(function: str, group: Group, dys: list[Tensor], *extra):
    """What run gives for the reference op of that name, computed in fp64."""
    wide = group.to(dtype=torch.float64)
    op = getattr(reference, function)
    return run(op, wide, [dy.double() for dy in dys], (*wide.args, *extra))


def names(group: Group, outputs: int) -> list[str]:
    n = len(group.weights)
    return [
        *(f"y{i}" for i in range(outputs)),
        "dx",
        *(f"d{m}{i}" for m in "AB" for i in range(n)),
    ]


def assert_close(ours, right, labels, bound=1e-5):
    errors = {label: rel(a, b) for label, a, b in zip(labels, ours, right, strict=True)}
    bad = {label: e for label, e in errors.items() if not e <= bound}
    assert not bad, f"relative errors {bad} over {bound}"
