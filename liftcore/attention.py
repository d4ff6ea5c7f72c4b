"""Causal attention of short segments on a CPU, as plain matrix products.

torch's CPU flash kernel is made for long sequences; for bf16 segments of up to 512 tokens three
products and a softmax take about half its time, forward and backward. Elsewhere SDPA stays.
"""

from __future__ import annotations

from contextlib import contextmanager
from functools import lru_cache

import torch
from torch import Tensor, nn

NAME = "liftcore_causal"
LONGEST = 512


class _CausalAttention(torch.autograd.Function):
    """P = softmax(scale · Q Kᵀ + mask), O = P V, with H query heads over G key heads."""

    @staticmethod
    def forward(ctx, query, key, value, scale):
        b, h, s, d = query.shape
        g = key.shape[1]
        q = (query * scale).reshape(b * g, -1, d)  # [B·G, H/G·S, D]
        k, v = key.reshape(b * g, s, d), value.reshape(b * g, s, d)
        p = torch.bmm(q, k.transpose(1, 2))  # [B·G, H/G·S, S]
        p.view(b, h, s, s).add_(_mask(s, p.dtype))
        p = torch.softmax(p, dim=-1)
        ctx.save_for_backward(q, k, v, p)
        ctx.scale, ctx.sizes = scale, (query.shape, key.shape)
        return torch.bmm(p, v).view(b, h, s, d)

    @staticmethod
    def backward(ctx, dout):
        q, k, v, p = ctx.saved_tensors
        query_shape, key_shape = ctx.sizes
        dout = dout.reshape(q.shape)
        dv = torch.bmm(p.transpose(1, 2), dout)
        dp = torch.bmm(dout, v.transpose(1, 2))
        ds = torch._softmax_backward_data(dp, p, -1, p.dtype)
        dq = torch.bmm(ds, k).mul_(ctx.scale)
        dk = torch.bmm(ds.transpose(1, 2), q)
        return dq.view(query_shape), dk.view(key_shape), dv.view(key_shape), None


@lru_cache(maxsize=4)
def _mask(size: int, dtype: torch.dtype) -> Tensor:
    return torch.full((size, size), float("-inf"), dtype=dtype).triu_(1)


def causal_attention(module, query, key, value, attention_mask, scaling=None, **kwargs):
    """The attention function that transformers calls: query [B, H, S, D] -> [B, S, H, D]."""
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    size, sliding = query.shape[2], kwargs.get("sliding_window")
    plain = (
        attention_mask is None
        and key.shape[2] == size
        and size <= LONGEST
        and not kwargs.get("dropout")
        and (sliding is None or sliding >= size)
        and query.dtype == torch.bfloat16
        and query.shape[-1] == value.shape[-1]
    )
    if not plain:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, **kwargs
        )
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    return _CausalAttention.apply(query, key, value, scale).transpose(1, 2), None


@contextmanager
def fast_cpu_attention(model: nn.Module):
    """Within it a bf16 model on a CPU that uses SDPA attends through causal_attention."""
    from transformers import AttentionInterface

    parameter = next(model.parameters())
    config = model.config.get_text_config()
    before = config._attn_implementation
    fits = (
        parameter.device.type == "cpu"
        and parameter.dtype == torch.bfloat16
        and before == "sdpa"
        and not getattr(config, "sliding_window", None)
    )
    if not fits:
        yield
        return
    AttentionInterface.register(NAME, causal_attention)
    config._attn_implementation = NAME
    try:
        yield
    finally:
        config._attn_implementation = before
