"""A tiny model trained for ten steps through the Triton ops: the losses of the plain formulas."""

import torch
from head_checks import fresh_seed

from liftcore.kernels import reference
from liftcore.kernels.head_loss import linear_cross_entropy
from liftcore.kernels.lora import lora_linear
from liftcore.kernels.lora_group import lora_gate_up, lora_qkv

V, K, N, R, T = 97, 48, 80, 8, 24


class Plain:
    """The same ops in plain PyTorch, under autograd."""

    linear = staticmethod(reference.lora_linear)
    qkv = staticmethod(reference.lora_qkv)
    gate_up = staticmethod(reference.lora_gate_up)
    loss = staticmethod(reference.linear_cross_entropy)


class Fused:
    """The ops of the package, which take the Triton path here."""

    linear = staticmethod(lora_linear)
    qkv = staticmethod(lora_qkv)
    gate_up = staticmethod(lora_gate_up)
    loss = staticmethod(linear_cross_entropy)


def losses(ops, seed):
    """Ten AdamW steps of one block (attention, MLP) and a tied, frozen head."""
    g = torch.Generator().manual_seed(seed)

    def random(*shape):
        return torch.randn(*shape, generator=g) / shape[-1] ** 0.5

    embedding = torch.randn(V, K, generator=g)
    shapes = {"q": (K, K), "k": (K, K), "v": (K, K), "gate": (N, K), "up": (N, K), "down": (K, N)}
    w = {name: random(*shape) for name, shape in shapes.items()}
    a = {name: random(R, shape[1]).requires_grad_() for name, shape in shapes.items()}
    b = {name: torch.zeros(shape[0], R, requires_grad=True) for name, shape in shapes.items()}
    optimizer = torch.optim.AdamW([*a.values(), *b.values()], lr=1e-2, weight_decay=0.0)

    def members(*names):
        return (
            [w[n] for n in names],
            [a[n] for n in names],
            [b[n] for n in names],
            [2.0] * len(names),
        )

    found = []
    for _ in range(10):
        tokens = torch.randint(0, V, (T + 1,), generator=g)
        weights = torch.rand(T, generator=g) * (torch.arange(T) >= T // 3)
        x = embedding[tokens[:-1]]
        q, k, v = ops.qkv(x, *members("q", "k", "v"))
        x = x + torch.nn.functional.scaled_dot_product_attention(
            q[None], k[None], v[None], is_causal=True
        ).squeeze(0)
        mlp = ops.gate_up(x, *members("gate", "up"))
        x = x + ops.linear(mlp, w["down"], a["down"], b["down"], 2.0)
        loss = ops.loss(x, embedding, tokens[1:], token_weights=weights)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        found.append(loss.item())
    return torch.tensor(found)


def test_ten_steps():
    seed = fresh_seed().initial_seed()
    ours, plain = losses(Fused, seed), losses(Plain, seed)
    assert (ours - plain).abs().max() < 1e-4
    assert ours.std() > 1e-3
