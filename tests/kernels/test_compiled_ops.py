"""Every public op under torch.compile: outputs and gradients as in eager code."""

from collections.abc import Callable

import pytest
import torch
from errors_and_seeds import fresh_seed, rel
from lora_checks import SCALINGS
from torch import Tensor

from bench.kernels.lora_concat import concat_linear, pack
from liftcore.kernels.fp8 import quantise_weight
from liftcore.kernels.head_loss import linear_cross_entropy, linear_soft_cross_entropy
from liftcore.kernels.lora import add_lora, lora_gate_up, lora_linear, lora_qkv
from liftcore.kernels.lora_fp8 import fp8_linear
from liftcore.layers.attention import attend, attend_rows
from liftcore.layers.norms import _RmsNorm

T, K, N, R, V = 9, 20, 24, 4, 31


def _lora(normal, bias: bool) -> tuple[Callable, list[Tensor]]:
    weight, offset = normal(N, K), normal(N) if bias else None
    trained = [normal(T, K), normal(R, K), normal(N, R)]
    return lambda x, a, b: lora_linear(x, weight, a, b, 0.7, offset), trained


def _concat(normal) -> tuple[Callable, list[Tensor]]:
    trained = [normal(T, K), normal(R, K), normal(N, R)]
    packed = pack(normal(N, K), trained[1], trained[2], 0.7)
    return lambda x, a, b: concat_linear(x, packed, a, b, 0.7), trained


def _branch(normal) -> tuple[Callable, list[Tensor]]:
    trained = [normal(T, K), normal(T, N), normal(R, K), normal(N, R)]
    return lambda x, y, a, b: add_lora(x, y, a, b, 0.7), trained


def _group(op: Callable, members: int, normal, **options) -> tuple[Callable, list[Tensor]]:
    weights = [normal(N, K) for _ in range(members)]
    factors = [normal(*shape) for shape in [(R, K)] * members + [(N, R)] * members]

    def call(x, *factors):
        a, b = factors[:members], factors[members:]
        return op(x, weights, a, b, SCALINGS[:members], **options)

    return call, [normal(T, K), *factors]


def _fp8(normal, lora: bool) -> tuple[Callable, list[Tensor]]:
    weight, bias = quantise_weight(normal(N, K)), normal(N)
    if not lora:
        return lambda x: fp8_linear(x, weight, bias), [normal(T, K)]
    trained = [normal(T, K), normal(R, K), normal(N, R)]
    return lambda x, a, b: lora_linear(x, weight, a, b, 0.7, bias), trained


def _fp8_gate_up(normal) -> tuple[Callable, list[Tensor]]:
    weights = [quantise_weight(normal(N, K)) for _ in range(2)]
    trained = [normal(T, K), *(normal(R, K) for _ in range(2)), *(normal(N, R) for _ in range(2))]
    return lambda x, *f: lora_gate_up(x, weights, f[:2], f[2:], SCALINGS[:2]), trained


def _frozen(build: Callable, *at: int) -> Callable:
    """The op of `build` with those of its trained tensors frozen that stand at these places."""

    def built(normal) -> tuple[Callable, list[Tensor]]:
        op, tensors = build(normal)
        frozen = {i: tensors[i] for i in at}

        def call(*trained):
            rest = iter(trained)
            return op(*(frozen[i] if i in frozen else next(rest) for i in range(len(tensors))))

        return call, [t for i, t in enumerate(tensors) if i not in frozen]

    return built


def _head(normal, train_head: bool) -> tuple[Callable, list[Tensor]]:
    labels, weights, head = torch.arange(T) % V, normal(T).square(), normal(V, K)

    def call(hidden, trained_head=head):
        return linear_cross_entropy(hidden, trained_head, labels, token_weights=weights)

    return call, [normal(T, K), head] if train_head else [normal(T, K)]


def _soft_head(normal) -> tuple[Callable, list[Tensor]]:
    ids, probs, head = torch.arange(3 * T).view(T, 3) % V, normal(T, 3).softmax(-1), normal(V, K)
    return lambda hidden: linear_soft_cross_entropy(hidden, head, ids, probs), [normal(T, K)]


def _attention(normal, rows: bool) -> tuple[Callable, list[Tensor]]:
    states = [normal(1, heads, T, 8).bfloat16() for heads in (4, 2, 2)]
    if not rows:
        return lambda q, k, v: attend(q, k, v, 0.3), states
    index = torch.tensor([[1, 4, T - 1]])
    return lambda q, k, v: attend_rows(q[:, :, index[0]], k, v, index, 0.3), states


def _norm(normal, offset: float) -> tuple[Callable, list[Tensor]]:
    weight = normal(K).bfloat16()
    return lambda x: _RmsNorm.apply(x, weight, 1e-6, offset), [normal(T, K).bfloat16()]


OPS = {
    "lora_linear": lambda normal: _lora(normal, bias=False),
    "lora_linear with a bias": lambda normal: _lora(normal, bias=True),
    "concat_linear": _concat,
    "add_lora": _branch,
    "lora_qkv of one": lambda normal: _group(lora_qkv, 1, normal),
    "lora_qkv": lambda normal: _group(lora_qkv, 3, normal),
    "lora_gate_up, silu": lambda normal: _group(lora_gate_up, 2, normal),
    "lora_gate_up, gelu": lambda normal: _group(lora_gate_up, 2, normal, activation="gelu_tanh"),
    "lora_linear over FP8": lambda normal: _fp8(normal, lora=True),
    "fp8_linear": lambda normal: _fp8(normal, lora=False),
    "lora_gate_up over FP8": _fp8_gate_up,
    "linear_cross_entropy": lambda normal: _head(normal, train_head=False),
    "linear_cross_entropy, trained head": lambda normal: _head(normal, train_head=True),
    "linear_soft_cross_entropy": _soft_head,
    "attend": lambda normal: _attention(normal, rows=False),
    "attend_rows": lambda normal: _attention(normal, rows=True),
    "norm of Llama": lambda normal: _norm(normal, 0.0),
    "norm of Gemma": lambda normal: _norm(normal, 1.0),
}
OPS |= {
    "lora_linear, A frozen": _frozen(OPS["lora_linear"], 1),
    "lora_linear, x and A frozen": _frozen(OPS["lora_linear"], 0, 1),
    "add_lora, A frozen": _frozen(OPS["add_lora"], 2),
    "lora_qkv, A frozen": _frozen(OPS["lora_qkv"], 1, 2, 3),
    "lora_qkv, one A and one B frozen": _frozen(OPS["lora_qkv"], 1, 6),
    "lora_gate_up, A frozen": _frozen(OPS["lora_gate_up, silu"], 1, 2),
    "lora_gate_up, x and A frozen": _frozen(OPS["lora_gate_up, silu"], 0, 1, 2),
}


@pytest.mark.parametrize("name", OPS)
def test_compiled_is_eager(name: str):
    g = fresh_seed()

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=g)

    op, trained = OPS[name](normal)
    upstream: list[Tensor] = []

    def run(call: Callable) -> list[Tensor]:
        leaves = [t.detach().clone().requires_grad_() for t in trained]
        out = call(*leaves)
        out = [out] if isinstance(out, Tensor) else list(out)
        if not upstream:
            upstream.extend(normal(*y.shape).to(y.dtype) for y in out)
        torch.autograd.backward(out, upstream)
        return [*out, *(leaf.grad for leaf in leaves)]

    right = run(op)
    torch._dynamo.reset()
    ours = run(torch.compile(op, fullgraph=True, backend="aot_eager"))
    assert all(t.abs().max() > 0 for t in right)
    bound = 1e-5 if trained[0].dtype == torch.float32 else 2e-2
    errors = [rel(a, b) for a, b in zip(ours, right, strict=True)]
    assert max(errors) < bound, errors
