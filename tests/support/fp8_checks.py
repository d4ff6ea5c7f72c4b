"""The LoRA linears over FP8 as torch's own casts give them: the truth of the tests."""

import torch

from liftcore.kernels.reference import fp8_rounded as rounded


class _Product(torch.autograd.Function):
    """Q(x) Q(W)ᵀ, and Q(dy) Q(Q(W)ᵀ)ᵀ for x."""

    @staticmethod
    def forward(ctx, x, weight):
        ctx.save_for_backward(weight)
        return rounded(x) @ rounded(weight).T

    @staticmethod
    def backward(ctx, dy):
        (weight,) = ctx.saved_tensors
        return rounded(dy) @ rounded(rounded(weight).T).T, None


def lora_linear(x, weight, lora_a, lora_b, scaling, bias=None):
    """lora_linear of reference.py over FP8, for fp64 tensors."""
    y = _Product.apply(x, weight) + scaling * (x @ lora_a.T) @ lora_b.T
    return y if bias is None else y + bias


def lora_qkv(x, weights, lora_a, lora_b, scalings, biases):
    """A tuple of lora_linear() over members that share x."""
    members = zip(weights, lora_a, lora_b, scalings, biases, strict=True)
    return tuple(lora_linear(x, *member) for member in members)
