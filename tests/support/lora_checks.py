"""Problems and comparisons that the LoRA tests share, whatever the device and path."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
import torch.distributed as dist
from errors_and_seeds import rel
from ranks import on_ranks
from torch import Tensor

from liftcore.kernels import reference
from liftcore.kernels.lora import lora_gate_up, lora_linear, lora_qkv

SCALINGS = (0.7, 1.5, -2.0)


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


class Block(torch.nn.Module):
    """q/k/v, gate/up and a linear with adapters as parameters, all bases frozen buffers.

    `ops` are the ops, or those of reference.py.
    """

    def __init__(self, generator, ops=(lora_qkv, lora_gate_up, lora_linear)):
        super().__init__()
        self.groups = [
            make_group(generator, 1, 16, (16, 8, 8), (4, 4, 4), bias=False),
            make_group(generator, 1, 16, (24, 24), (4, 4), bias=False),
            make_group(generator, 1, 24, (16,), (4,), bias=False),
        ]
        self.ops = ops
        self.adapters = torch.nn.ParameterList(
            torch.nn.Parameter(t.detach()) for g in self.groups for t in g.trained[1:]
        )

    def forward(self, x):
        at, args = 0, []
        for group in self.groups:
            n = len(group.weights)
            a, b = ([self.adapters[i] for i in range(at + j, at + j + n)] for j in (0, n))
            args.append((group.weights, a, b, group.scalings))
            at += 2 * n
        qkv, gate_up, linear = self.ops
        q, k, v = qkv(x, *args[0])
        h = gate_up(x + q * torch.cat([k, v], dim=-1), *args[1])
        return linear(h, *(m[0] for m in args[2]))


def check_parallel(seed: int) -> None:
    """Gradients of a Block under DDP and FSDP2 on two processes, each with half of the rows.

    They are those of the plain ops under the same wrapper, which is not always the average:
    over gloo, FSDP2 of torch 2.7 sums.
    """
    on_ranks(2, partial(_parallel, seed))


def _parallel(seed: int, rank: int) -> None:
    from torch.distributed.fsdp import fully_shard

    mine = slice(3 * rank, 3 * rank + 3)
    plain = (reference.lora_qkv, reference.lora_gate_up, reference.lora_linear)

    def gradients(wrap: str, *ops) -> list[Tensor]:
        """Of all adapters, after two steps from the same start."""
        generator = torch.Generator().manual_seed(seed)
        block = Block(generator, *ops)
        x, dy = (torch.randn(6, 16, generator=generator) for _ in range(2))
        if wrap == "ddp":
            parallel = torch.nn.parallel.DistributedDataParallel(block)
        else:
            parallel = fully_shard(block, mesh=dist.init_device_mesh("cpu", (2,)))
        for _ in range(2):
            block.zero_grad()
            parallel(x[mine]).backward(dy[mine])
        grads = [p.grad for p in block.adapters]
        return [g.full_tensor() if wrap == "fsdp2" else g for g in grads]

    for wrap in ("ddp", "fsdp2"):
        right = gradients(wrap, plain)
        assert all(g.abs().max() > 0 for g in right)
        labels = [f"{wrap} adapter {i}" for i in range(len(right))]
        assert_close(gradients(wrap), right, labels, bound=1e-5)
