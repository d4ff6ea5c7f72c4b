"""A tiny model trained for ten steps through the Triton ops: the losses of the plain formulas."""

import torch
from errors_and_seeds import fresh_seed

from liftcore.kernels import reference
from liftcore.kernels.head_loss import linear_cross_entropy
from liftcore.kernels.lora import lora_gate_up, lora_linear, lora_qkv

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
    """Losses of ten SGD steps of one block (attention, MLP) and a tied, frozen head on one batch.

    Also the gradients of the first step. SGD, since Adam would hide a wrong factor in them.
    """
    g = torch.Generator().manual_seed(seed)

    def random(*shape):
        return torch.randn(*shape, generator=g) / shape[-1] ** 0.5

    embedding = torch.randn(V, K, generator=g)
    shapes = {"q": (K, K), "k": (K, K), "v": (K, K), "gate": (N, K), "up": (N, K), "down": (K, N)}
    w = {name: random(*shape) for name, shape in shapes.items()}
    a = {name: random(R, shape[1]).requires_grad_() for name, shape in shapes.items()}
    # Not zero, as one would start: then dA and dx of the first step would not depend on them.
    b = {name: (0.1 * random(shape[0], R)).requires_grad_() for name, shape in shapes.items()}
    trained = [*a.values(), *b.values()]
    optimizer = torch.optim.SGD(trained, lr=0.05)
    tokens = torch.randint(0, V, (T + 1,), generator=g)
    weights = torch.rand(T, generator=g) * (torch.arange(T) >= T // 3)

    def members(*names):
        return (
            [w[n] for n in names],
            [a[n] for n in names],
            [b[n] for n in names],
            [2.0] * len(names),
        )

    history, first = [], None
    for _ in range(10):
        x = embedding[tokens[:-1]]
        q, k, v = ops.qkv(x, *members("q", "k", "v"))
        x = x + torch.nn.functional.scaled_dot_product_attention(
            q[None], k[None], v[None], is_causal=True
        ).squeeze(0)
        mlp = ops.gate_up(x, *members("gate", "up"))
        x = x + ops.linear(mlp, w["down"], a["down"], b["down"], 2.0)
        loss = ops.loss(x, embedding, tokens[1:], token_weights=weights, logit_scale=K**-0.5)
        optimizer.zero_grad()
        loss.backward()
        first = first or [t.grad.clone() for t in trained]
        optimizer.step()
        history.append(loss.item())
    return torch.tensor(history), first


def test_ten_steps():
    seed = fresh_seed().initial_seed()
    (ours, ours_first), (plain, plain_first) = losses(Fused, seed), losses(Plain, seed)
    for mine, right in zip(ours_first, plain_first, strict=True):
        assert right.norm() > 0 and (mine - right).norm() <= 1e-4 * right.norm()
    assert (ours - plain).abs().max() < 1e-4
    assert ours[-1] < 0.9 * ours[0], ours
