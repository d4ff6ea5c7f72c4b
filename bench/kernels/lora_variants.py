"""The LoRA ops in every way that can be had: ours, plain PyTorch and the peers.

A problem is one op at one shape. Each variant is built from it and is a call without arguments
that runs forward and backward and returns the outputs and gradients in the order of `truth`.
Building or running may raise: the variant is then reported as not run, with the reason.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.kernels.lora_concat import concat_linear, pack, with_slack
from liftcore.kernels import reference
from liftcore.kernels.lora import lora_gate_up, lora_linear, lora_qkv

SCALING = 2.0
Run = Callable[[], Any]


class LoraProblem:
    """x [T, K] and one or more members with weight [N, K], A [R, K] and B [N, R]."""

    def __init__(
        self,
        op: str,
        tokens: int,
        k: int,
        widths: list[int],
        rank: int,
        device: torch.device,
        dtype: torch.dtype,
    ):
        def random(*shape: int, scale: float = 1.0) -> Tensor:
            return (torch.randn(*shape, device=device) * scale).to(dtype)

        self.op = op
        self.x = random(tokens, k).requires_grad_()
        self.weights = [random(n, k, scale=k**-0.5) for n in widths]
        self.lora_a = [random(rank, k, scale=k**-0.5).requires_grad_() for _ in widths]
        self.lora_b = [random(n, rank, scale=rank**-0.5).requires_grad_() for n in widths]
        self.scalings = [SCALING] * len(widths)
        outputs = widths[:1] if op == "gate_up" else widths
        self.dy = [random(tokens, n) for n in outputs]

    @property
    def trained(self) -> list[Tensor]:
        return [self.x, *self.lora_a, *self.lora_b]

    @property
    def args(self) -> tuple[Tensor, list[Tensor], list[Tensor], list[Tensor], list[float]]:
        return self.x, self.weights, self.lora_a, self.lora_b, self.scalings

    @property
    def member(self) -> tuple[Tensor, Tensor, Tensor, Tensor, float]:
        return self.x, self.weights[0], self.lora_a[0], self.lora_b[0], SCALING

    def differentiated(
        self,
        forward: Callable[[], Tensor | tuple[Tensor, ...]],
        trained: list[Tensor] | None = None,
        dy: list[Tensor] | None = None,
    ) -> Run:
        """A call that runs forward and backward of a function of no arguments."""
        trained, dy = trained or self.trained, dy or self.dy

        def run() -> tuple[Tensor, ...]:
            y = forward()
            y = y if isinstance(y, tuple) else (y,)
            return *y, *torch.autograd.grad(y, trained, dy)

        return run

    def truth(self) -> tuple[Tensor, ...]:
        """Outputs and gradients of the plain formula in fp32."""
        wide = LoraProblem.__new__(LoraProblem)
        wide.op = self.op
        wide.x = self.x.detach().float().requires_grad_()
        wide.weights = [w.float() for w in self.weights]
        wide.lora_a = [a.detach().float().requires_grad_() for a in self.lora_a]
        wide.lora_b = [b.detach().float().requires_grad_() for b in self.lora_b]
        wide.scalings, wide.dy = self.scalings, [d.float() for d in self.dy]
        return plain(wide)()


Build = Callable[[LoraProblem], Run]


def base(p: LoraProblem) -> Run:
    """The floor: the frozen products alone, forward and backward."""

    def run() -> tuple[list[Tensor], list[Tensor]]:
        y = [F.linear(p.x, w) for w in p.weights]
        dy = p.dy * len(p.weights) if p.op == "gate_up" else p.dy
        return y, [d @ w for d, w in zip(dy, p.weights, strict=True)]

    return run


def plain(p: LoraProblem) -> Run:
    op = {
        "linear": lambda *a: reference.lora_qkv(*a)[0],
        "qkv": reference.lora_qkv,
        "gate_up": reference.lora_gate_up,
    }[p.op]
    return p.differentiated(lambda: op(*p.args))


def ours(way: str) -> Build:
    def build(p: LoraProblem) -> Run:
        if way == "triton" and p.x.device.type != "cuda":
            raise RuntimeError("needs a GPU")
        if p.op == "linear":
            return p.differentiated(lambda: lora_linear(*p.member, way=way))
        op = lora_qkv if p.op == "qkv" else lora_gate_up
        return p.differentiated(lambda: op(*p.args, way=way))

    return build


def ours_concat(p: LoraProblem) -> Run:
    if p.op != "linear":
        raise RuntimeError("for a single linear only")
    x, weight, a, b, scaling = p.member
    packed = pack(weight, a, b, scaling)
    # The layer before would write its result into rows with room for S.
    x = with_slack(x, *x.shape, a.shape[0]).copy_(x.detach()).requires_grad_()
    args = x, packed, a, b, scaling
    return p.differentiated(lambda: concat_linear(*args, slack=True), [x, a, b])


def joined(p: LoraProblem, layers: list[Any]) -> Callable[[Tensor], Any]:
    """The op made of one layer a member, each a function of x, as a model without groups has it."""
    if p.op == "gate_up":
        gate, up = layers
        return lambda x: F.silu(gate(x)) * up(x)
    return lambda x: tuple(layer(x) for layer in layers)


def peft(fp32_adapters: bool) -> Build:
    def build(p: LoraProblem) -> Run:
        from peft import LoraConfig, inject_adapter_in_model

        n, (rank, k) = len(p.weights), p.lora_a[0].shape
        model = torch.nn.ModuleList(
            torch.nn.Linear(k, w.shape[0], bias=False, device=w.device, dtype=w.dtype)
            for w in p.weights
        )
        targets = [str(i) for i in range(n)]
        config = LoraConfig(r=rank, lora_alpha=int(SCALING * rank), target_modules=targets)
        inject_adapter_in_model(config, model)
        layers: list[Any] = list(model)
        for i, layer in enumerate(layers):
            # What PEFT's autocast_adapter_dtype, on by default, does to bf16 adapters.
            layer.lora_A.to(torch.float32 if fp32_adapters else p.x.dtype)
            layer.lora_B.to(torch.float32 if fp32_adapters else p.x.dtype)
            with torch.no_grad():
                layer.base_layer.weight.copy_(p.weights[i])
                layer.lora_A["default"].weight.copy_(p.lora_a[i])
                layer.lora_B["default"].weight.copy_(p.lora_b[i])
        trained = [
            m["default"].weight for m in (*(x.lora_A for x in layers), *(x.lora_B for x in layers))
        ]
        op = joined(p, layers)
        return p.differentiated(lambda: op(p.x), [p.x, *trained])

    return build


def unsloth(p: LoraProblem) -> Run:
    from unsloth.kernels.fast_lora import LoRA_QKV, LoRA_W  # ty: ignore[import-not-found]

    if p.op == "gate_up":
        raise RuntimeError("its MLP op holds the down projection too")
    # Its kernels want [batch, T, K] and may overwrite x with dx, which a benchmark must refuse.
    op, last = (LoRA_W, ()) if p.op == "linear" else (LoRA_QKV, (False,))
    members = [
        v
        for w, a, b, s in zip(*p.args[1:], strict=True)
        for v in (w, None, a, b, s)
    ]  # fmt: skip
    dy = [d[None] for d in p.dy]
    return p.differentiated(lambda: op.apply(p.x[None], *members, *last), dy=dy)


def lorafusion(p: LoraProblem) -> Run:
    from lorafusion.ops.lora_v1 import fused_linear_lora  # ty: ignore[import-not-found]

    def layer(*member: Any) -> Callable[[Tensor], Tensor]:
        return lambda x: fused_linear_lora(x, *member)

    op = joined(p, [layer(*member) for member in zip(*p.args[1:], strict=True)])
    return p.differentiated(lambda: op(p.x[None]), dy=[d[None] for d in p.dy])


VARIANTS = {
    "base products": base,
    "plain torch": plain,
    "ours triton": ours("triton"),
    "ours concat": ours_concat,
    "ours plain": ours("plain"),
    "PEFT": peft(True),
    "PEFT bf16": peft(False),
    "Unsloth": unsloth,
    "LoRAFusion": lorafusion,
}
