"""Causal attention of training segments, without a mask tensor.

transformers builds masks by the name of the attention function. Under a name of our own it builds
none: it then neither reads the position ids back from the device, once a step, nor hands over a
mask tensor while a CUDA graph is captured, which would rule out the flash and cuDNN kernels.

On a CPU, torch's flash kernel is made for long sequences; for bf16 segments of up to 512 tokens
three products and a softmax take about half its time, forward and backward. Elsewhere SDPA stays.
"""

from __future__ import annotations

from contextlib import contextmanager, nullcontext
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

NAME = "liftcore_causal"
LONGEST = 512


class _MaskedAttention(torch.autograd.Function):
    """P = softmax(scale · Q Kᵀ + mask), O = P V, with H query heads over G key heads."""

    @staticmethod
    def forward(ctx, query, key, value, mask, scale):
        b, h, q, d = query.shape
        g, s = key.shape[1:3]
        query_ = (query * scale).reshape(b * g, -1, d)  # [B·G, H/G·Q, D]
        k, v = key.reshape(b * g, s, d), value.reshape(b * g, s, d)
        p = torch.bmm(query_, k.transpose(1, 2))  # [B·G, H/G·Q, S]
        p.view(b, h, q, s).add_(mask)
        p = torch.softmax(p, dim=-1)
        ctx.save_for_backward(query_, k, v, p)
        ctx.scale, ctx.sizes = scale, (query.shape, key.shape)
        return torch.bmm(p, v).view(b, h, q, d)

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
        return dq.view(query_shape), dk.view(key_shape), dv.view(key_shape), None, None


@lru_cache(maxsize=4)
def _mask(size: int, dtype: torch.dtype) -> Tensor:
    return torch.full((size, size), float("-inf"), dtype=dtype).triu_(1)


def _by_products(query: Tensor, key: Tensor, value: Tensor) -> bool:
    """Whether plain products beat SDPA for these tensors."""
    return (
        query.device.type == "cpu"
        and query.dtype == torch.bfloat16
        and key.shape[2] <= LONGEST
        and query.shape[-1] == value.shape[-1]
    )


def attend(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
    """Causal attention: query [B, H, S, D], key and value [B, G, S, D] -> [B, H, S, D]."""
    if _by_products(query, key, value):
        return _MaskedAttention.apply(query, key, value, _mask(key.shape[2], key.dtype), scale)
    return _sdpa(query, key, value, scale)


def attend_rows(query: Tensor, key: Tensor, value: Tensor, index: Tensor, scale: float) -> Tensor:
    """Causal attention of the positions index [B, Q] only: query [B, H, Q, D] -> [B, H, Q, D]."""
    s = torch.arange(key.shape[2], device=index.device)
    seen = (s <= index[..., None])[:, None]  # [B, 1, Q, S]
    if _by_products(query, key, value):
        mask = torch.zeros(seen.shape, dtype=key.dtype).masked_fill_(~seen, float("-inf"))
        return _MaskedAttention.apply(query, key, value, mask, scale)
    return _sdpa(query, key, value, scale, seen)


def _sdpa(query, key, value, scale, mask=None):
    """torch's attention, causal without a mask."""
    copies = query.shape[1] // key.shape[1]
    # The kernels that take fewer key heads take neither a mask nor fp32.
    grouped = copies > 1 and mask is None and query.dtype != torch.float32
    if copies > 1 and not grouped:
        key, value = (t.repeat_interleave(copies, dim=1) for t in (key, value))
    return F.scaled_dot_product_attention(
        query, key, value, mask, is_causal=mask is None, scale=scale, enable_gqa=grouped
    )


def causal_attention(module, query, key, value, attention_mask, scaling=None, **kwargs):
    """The attention function that transformers calls: query [B, H, S, D] -> [B, S, H, D].

    Raises ValueError for what it would compute wrongly: a mask, a cache, a sliding window shorter
    than S, a soft cap, dropout.
    """
    size, window = query.shape[2], kwargs.get("sliding_window")
    if attention_mask is not None or key.shape[2] != size:
        raise ValueError("liftcore's attention is for whole segments without a mask or cache")
    if window is not None and size > window:
        raise ValueError(f"segments of {size} tokens, but a sliding window of {window}")
    if kwargs.get("dropout") or kwargs.get("softcap"):
        raise ValueError("liftcore's attention has no dropout and no soft cap")
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    return attend(query, key, value, scale).transpose(1, 2), None


@contextmanager
def fast_attention(model: nn.Module, length: int | None = None):
    """Within it training segments of at most `length` tokens attend through causal_attention.

    Left as they are: models that do not use SDPA, whose sliding window is shorter than `length`
    (any window when it is None), or whose attention is not causal, soft-capped or with dropout;
    fp32 on a CPU, where nothing is gained. On sm_90 and newer cuDNN comes first, then flash; this
    choice has not run on a GPU.
    """
    from transformers import AttentionInterface

    parameter = next(model.parameters())
    config = model.config.get_text_config()
    before = config._attn_implementation
    on_gpu = parameter.device.type == "cuda"
    if (
        before != "sdpa"
        or not (on_gpu or (parameter.device.type == "cpu" and parameter.dtype == torch.bfloat16))
        or not _plainly_causal(config, length, model.training)
    ):
        yield
        return
    AttentionInterface.register(NAME, causal_attention)
    config._attn_implementation = NAME
    try:
        with _kernels(parameter.device) if on_gpu else nullcontext():
            yield
    finally:
        config._attn_implementation = before


@contextmanager
def own_attention(model: nn.Module):
    """Within it a model in fast_attention attends as it does by itself: with masks and a cache."""
    config = model.config.get_text_config()
    name = config._attn_implementation
    if name == NAME:
        config._attn_implementation = "sdpa"
    try:
        yield
    finally:
        config._attn_implementation = name


def _plainly_causal(config, length: int | None, training: bool) -> bool:
    windows = [getattr(config, name, None) for name in ("sliding_window", "attention_chunk_size")]
    long_enough = all(w is None or (length is not None and length <= w) for w in windows)
    dropout = training and getattr(config, "attention_dropout", 0)
    return (
        long_enough
        and not dropout
        and not getattr(config, "attn_logit_softcapping", None)
        and not getattr(config, "use_bidirectional_attention", False)
        and getattr(config, "is_causal", True)
    )


def _kernels(device: torch.device):
    """cuDNN's attention, then flash, on Hopper and newer; torch's own order elsewhere."""
    if torch.cuda.get_device_capability(device) < (9, 0):
        return nullcontext()
    order = [
        SDPBackend.CUDNN_ATTENTION,
        SDPBackend.FLASH_ATTENTION,
        SDPBackend.EFFICIENT_ATTENTION,
        SDPBackend.MATH,
    ]
    return sdpa_kernel(order, set_priority=True)
