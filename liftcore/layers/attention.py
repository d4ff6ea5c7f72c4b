"""Causal attention of training segments, without a mask tensor.

transformers builds masks by the name of the attention function. Under a name of our own it builds
none: it then neither reads the position ids back from the device, once a step, nor hands over a
mask tensor while a CUDA graph is captured, which would rule out the flash kernel.

On a CPU, torch's flash kernel is made for long sequences; for bf16 segments of up to 512 tokens
three products and a softmax take about half its time, forward and backward. Elsewhere SDPA stays.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, contextmanager
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from liftcore.errors import first_line
from liftcore.layers.replaced import off_by
from liftcore.model import body, causal_lm

NAME = "liftcore_causal"
LONGEST = 512
# What transformers hands to every attention function, and SDPA does not look at. Anything else
# that says something (a bias, sinks, an index) would change the result.
HARMLESS = {
    "cache_position", "num_items_in_batch", "output_attentions", "output_hidden_states",
    "output_router_logits", "position_ids", "return_dict", "use_cache",
}  # fmt: skip


class _MaskedAttention(torch.autograd.Function):
    """P = softmax(scale · Q Kᵀ + mask), O = P V, with H query heads over G key heads."""

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scale: float
    ) -> Tensor:
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
    def backward(ctx: Any, dout: Tensor) -> tuple:  # ty: ignore[incompatible-method-override]  # one output
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


def _sdpa(
    query: Tensor, key: Tensor, value: Tensor, scale: float, mask: Tensor | None = None
) -> Tensor:
    """torch's attention, causal without a mask."""
    copies = query.shape[1] // key.shape[1]
    # The kernels that take fewer key heads take neither a mask nor fp32.
    grouped = copies > 1 and mask is None and query.dtype != torch.float32
    if copies > 1 and not grouped:
        key, value = (t.repeat_interleave(copies, dim=1) for t in (key, value))
    return F.scaled_dot_product_attention(
        query, key, value, mask, is_causal=mask is None, scale=scale, enable_gqa=grouped
    )


def causal_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """The attention function that transformers calls: query [B, H, S, D] -> [B, S, H, D].

    Raises ValueError for what it would compute wrongly: a mask, a cache, a sliding window shorter
    than S, dropout, and every argument that it does not know.
    """
    size, window = query.shape[2], kwargs.get("sliding_window")
    if attention_mask is not None or key.shape[2] != size:
        raise ValueError("liftcore's attention is for whole segments without a mask or cache")
    if window is not None and size > window:
        raise ValueError(f"segments of {size} tokens, but a sliding window of {window}")
    if name := unknown(module, kwargs):
        raise ValueError(f"liftcore's attention does not know {name}")
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    return attend(query, key, value, scale).transpose(1, 2), None


def unknown(module: nn.Module, kwargs: dict) -> str | None:
    """The name of an argument of an attention call that plain causal attention leaves out."""
    causal = kwargs.get("is_causal")
    if not (getattr(module, "is_causal", True) if causal is None else causal):
        return "is_causal=False"
    for name, value in kwargs.items():
        if name in HARMLESS or name in ("is_causal", "sliding_window"):
            continue
        # Nothing said: None, False, no dropout.
        if value is not None and not (isinstance(value, int | float) and not value):
            return name
    return None


@contextmanager
def fast_attention(model: nn.Module, length: int | None = None) -> Generator[str]:
    """Within it training segments attend through causal_attention; those that are
    beyond_window() need own_attention().

    Left as they are: models that do not use SDPA, whose sliding window is shorter than `length`
    (any window when it is None), or whose attention is not causal, soft-capped or with dropout;
    fp32 on a CPU, where nothing is gained; and any model whose attention computes something else
    in a trial of `length` tokens, or not at all through transformers' interface. Yields why, ""
    when it is taken.
    Training asks for deterministic algorithms, and then torch refuses cuDNN's attention: flash
    attention is what runs.
    """
    from transformers import AttentionInterface

    parameter = next(model.parameters())
    config = causal_lm(model).config.get_text_config()
    on_gpu = parameter.device.type == "cuda"
    if (
        config._attn_implementation != "sdpa"
        or not (on_gpu or (parameter.device.type == "cpu" and parameter.dtype == torch.bfloat16))
        or not _plainly_causal(config, length, model.training)
    ):
        yield "its attention is not plainly causal SDPA, or gains nothing"
        return
    AttentionInterface.register(NAME, causal_attention)
    if why := _differs(model, config, length or LONGEST // 8):
        yield why
        return
    with attending(config, NAME):
        yield ""


@torch.no_grad()
def _differs(model: nn.Module, config: Any, length: int) -> str:
    """Why causal_attention is not what this model's attention computes; "" when it is.

    One forward of `length` tokens by the model itself, in which every call of its attention is
    computed in both ways, and one through causal_attention, which gets no mask.
    """
    from transformers import AttentionInterface

    decoder, own, ours = body(model), [], []
    weight = causal_lm(model).get_input_embeddings().weight
    tried = (length, model.training, weight.dtype)
    if vars(model).get("_liftcore_attention") == tried:
        return ""
    random = torch.Generator().manual_seed(0)
    ids = torch.randint(weight.shape[0], (1, length), generator=random).to(weight.device)
    sdpa = AttentionInterface()["sdpa"]

    def both(module: nn.Module, q: Tensor, k: Tensor, v: Tensor, mask: Any, **kwargs: Any) -> tuple:
        right = sdpa(module, q, k, v, mask, **kwargs)
        own.append((causal_attention(module, q, k, v, None, **kwargs)[0], right[0]))
        return right

    def counted(*args: Any, **kwargs: Any) -> tuple[Tensor, None]:
        ours.append(1)
        return causal_attention(*args, **kwargs)

    try:
        with _table("sdpa", both), torch.random.fork_rng(enabled=model.training):
            right = decoder(input_ids=ids, use_cache=False).last_hidden_state
        with (
            _table(NAME, counted),
            attending(config, NAME),
            torch.random.fork_rng(enabled=model.training),
        ):
            hidden = decoder(input_ids=ids, use_cache=False).last_hidden_state
    except Exception as error:
        return f"its own attention stays ({first_line(error)[:160]})"
    if not own:
        return "nothing of it attends through transformers' interface"
    if len(own) != len(ours):
        return "its own attention stays (not every layer attends through transformers' interface)"
    # 16-bit numbers: a call alone is near, the whole model is as far off as its roundings add up.
    worst = max(off_by(a, b) for a, b in own)
    if not (worst < (0.02 if right.element_size() == 2 else 1e-3) and off_by(hidden, right) < 0.1):
        return f"its own attention stays (another result, off by {worst:.2g})"
    vars(model)["_liftcore_attention"] = tried
    return ""


@contextmanager
def _table(name: str, function: Callable) -> Generator[None]:
    """Within it transformers' attention of this name is another function."""
    from transformers import AttentionInterface

    table = AttentionInterface._global_mapping
    before = table[name]
    table[name] = function
    try:
        yield
    finally:
        table[name] = before


@contextmanager
def attending(config: Any, name: str) -> Generator[None]:
    """Within it a model of this configuration attends through the function of this name."""
    before = config._attn_implementation
    config._attn_implementation = name
    try:
        yield
    finally:
        config._attn_implementation = before


def own_attention(model: nn.Module) -> AbstractContextManager[None]:
    """Within it a model in fast_attention attends as it does by itself: with masks and a cache."""
    config = causal_lm(model).config.get_text_config()
    name = config._attn_implementation
    return attending(config, "sdpa" if name == NAME else name)


def beyond_window(model: nn.Module, length: int) -> bool:
    """Whether a model attends to less than `length` tokens somewhere, which causal_attention does
    not know."""
    return any(window < length for window in _windows(causal_lm(model).config.get_text_config()))


def _windows(config: Any) -> list[int]:
    named = [getattr(config, name, None) for name in ("sliding_window", "attention_chunk_size")]
    return [window for window in named if window is not None]


def _plainly_causal(config: Any, length: int | None, training: bool) -> bool:
    long_enough = all(length is not None and length <= window for window in _windows(config))
    dropout = training and getattr(config, "attention_dropout", 0)
    return (
        long_enough
        and not dropout
        and not getattr(config, "attn_logit_softcapping", None)
        and not getattr(config, "use_bidirectional_attention", False)
        and bool(getattr(config, "is_causal", True))
    )
