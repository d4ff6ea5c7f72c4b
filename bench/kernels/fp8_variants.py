"""The LoRA linear over a base in FP8, beside the base products in the dtype of x.

The truth is the plain formula of the same codes (kernels/lora_fp8_plain.py) in fp32: what FP8
itself costs in precision is no matter of a kernel, and `python -m bench recall` measures it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from bench.kernels.lora_variants import SCALING, Build, LoraProblem, Run, base
from liftcore.kernels.fp8 import quantise_weight
from liftcore.kernels.lora import lora_linear, lora_qkv


class Fp8Problem(LoraProblem):
    """A linear, or a group of them, whose weights are quantised too."""

    def __init__(self, *args: Any):
        super().__init__(*args)
        self.codes = [quantise_weight(w) for w in self.weights]

    def truth(self) -> tuple[Tensor, ...]:
        x, *adapters = (t.detach().float().requires_grad_() for t in self.trained)
        n = len(self.codes)
        ys = lora_qkv(x, self.codes, adapters[:n], adapters[n:], self.scalings, way="plain")
        return *ys, *torch.autograd.grad(ys, [x, *adapters], [dy.float() for dy in self.dy])


def way(name: str) -> Build:
    def build(p: LoraProblem) -> Run:
        assert isinstance(p, Fp8Problem)
        if name == "triton" and p.x.device.type != "cuda":
            raise RuntimeError("needs a GPU")
        if len(p.codes) > 1:
            members = p.codes, p.lora_a, p.lora_b, p.scalings
            return p.differentiated(lambda: lora_qkv(p.x, *members, way=name))
        args = p.x, p.codes[0], p.lora_a[0], p.lora_b[0], SCALING
        return p.differentiated(lambda: lora_linear(*args, way=name))

    return build


VARIANTS = {"base products": base, "plain torch": way("plain"), "ours triton": way("triton")}
