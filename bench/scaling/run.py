"""One point of the scaling benchmark: what a document of some length costs, in one process.

LIFT    one epoch of training, then a question without the document in the prompt
ICL     the document in the prompt: flash attention, prefill into a KV cache (in chunks on a GPU;
        on a CPU one piece is faster), logits of the last token only; then a question on top of
        the cache
naive   the document in the prompt in one piece, fp32 logits of all its tokens, as the paper's
        baseline does
"""

from __future__ import annotations

import time
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention.bias import causal_lower_right
from torch.nn.functional import scaled_dot_product_attention
from transformers import Cache, PreTrainedModel

from bench import shapes
from liftcore import device_memory as usage
from liftcore import model as models
from liftcore.config import LiftConfig
from liftcore.layers.attention import attending
from liftcore.layers.lora import Adapter, own_adapter_after
from liftcore.pretrained import dtype_keyword
from liftcore.training.loop import train
from liftcore.training.source import segments_alone

QUESTION, STEPS = 32, 8
# A short point is measured again, and the fastest run counts.
REPEATS, REPEAT_SECONDS = 3, 12.0
CHUNK = {"cpu": 2**20, "cuda": 8192}
FLASH = "bench_flash_chunks"
# Llama-3-8B with random weights: the cost is that of the shape.
LLAMA_8B: dict[str, Any] = dict(
    vocab_size=128256, hidden_size=4096, intermediate_size=14336, num_hidden_layers=32,
    num_attention_heads=32, num_key_value_heads=8, max_position_embeddings=2**20,
    rope_parameters={"rope_type": "default", "rope_theta": 500000.0},
)  # fmt: skip


def load(name: str, device: torch.device) -> PreTrainedModel:
    """A model by name; "llama-3-8b" is the shape with random weights, which needs no download."""
    if name != "llama-3-8b":
        return shapes.build(name, device)[0]
    from transformers import AutoModelForCausalLM, LlamaConfig

    with torch.device(device):
        model = AutoModelForCausalLM.from_config(
            LlamaConfig(**LLAMA_8B), **dtype_keyword(torch.bfloat16)
        )
    return model.eval().requires_grad_(False)


def measure(way: str, model: PreTrainedModel, tokens: int, config: LiftConfig) -> dict:
    """Seconds and peak bytes of one point, the fastest of up to three runs; {"oom": True} where
    memory ends.

    first_seconds     until the document is in the weights, or in the cache
    question_seconds  a question of 32 tokens up to its first answer token
    token_seconds     each further answer token
    """
    device = next(model.parameters()).device
    ids = np.random.default_rng(0).integers(3, model.config.vocab_size, size=tokens)
    run = {"icl": _icl, "naive": _naive}.get(way, _lift)
    settings = config if way in ("icl", "naive") else config.replace(schedule=way)
    try:
        # The first call of everything is slower, and its memory is less.
        run(model, ids[: 2 * QUESTION], settings)
        usage.reset_peak(device)
        point, started = run(model, ids, settings), _now(model)
        for _ in range(REPEATS - 1):
            if _now(model) - started + point["first_seconds"] < REPEAT_SECONDS:
                point = min(point, run(model, ids, settings), key=lambda f: f["first_seconds"])
    except (MemoryError, RuntimeError) as error:
        if not _out_of_memory(error):
            raise
        return {"oom": True}
    return {"oom": False, **point, "peak_bytes": usage.peak_bytes(device)}


def _out_of_memory(error: Exception) -> bool:
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or (
        "allocate memory" in str(error)
    )


def _lift(model: PreTrainedModel, ids: np.ndarray, config: LiftConfig) -> dict:
    device, start = next(model.parameters()).device, _now(model)
    with own_adapter_after(model):
        adapter = Adapter.of(model, config)
        adapter.install()
        done = train(adapter, segments_alone(ids, config.replace(epochs=1), []))
        first = _now(model) - start
        question = torch.from_numpy(ids[None, :QUESTION]).to(device)
        return {"first_seconds": first, "passes": done.token_passes, **_ask(model, question, None)}


@torch.no_grad()
def _icl(model: PreTrainedModel, ids: np.ndarray, config: LiftConfig) -> dict:
    device, body = next(model.parameters()).device, models.body(model)
    document = torch.from_numpy(ids[None]).to(device)
    cache, start = None, _now(model)
    chunks = document.split(CHUNK[device.type], dim=1)
    with flash_chunks(model, len(chunks) > 1):
        for chunk in chunks:
            cache = body(input_ids=chunk, past_key_values=cache, use_cache=True).past_key_values
    first = _now(model) - start
    return {
        "first_seconds": first,
        "passes": len(ids),
        **_ask(model, document[:, :QUESTION], cache),
    }


@contextmanager
def flash_chunks(model: PreTrainedModel, on: bool) -> Generator[None]:
    """Within it a chunk behind a cache attends through flash attention: transformers would give
    SDPA a mask [chunk, cache], which rules that kernel out. Has not run on a GPU."""
    from transformers import AttentionInterface

    config = model.config.get_text_config()
    name = config._attn_implementation
    if on and name == "sdpa":
        AttentionInterface.register(FLASH, _chunk_attention)
        name = FLASH
    with attending(config, name):
        yield


def _chunk_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **kwargs: object,
) -> tuple[Tensor, None]:
    """query [B, H, S, D] over key [B, G, T, D], the S last of T tokens -> [B, S, H, D]."""
    if attention_mask is not None:
        raise RuntimeError("this attention is causal; it takes no mask")
    bias = causal_lower_right(query.shape[2], key.shape[2])
    out = scaled_dot_product_attention(
        query, key, value, attn_mask=bias, scale=scaling, enable_gqa=True
    )
    return out.transpose(1, 2), None


@torch.no_grad()
def _naive(model: PreTrainedModel, ids: np.ndarray, config: LiftConfig) -> dict:
    document, start = torch.from_numpy(ids[None]).to(next(model.parameters()).device), _now(model)
    model(input_ids=document, use_cache=True).logits.float()[:, -1].argmax(-1)
    return {"first_seconds": _now(model) - start, "passes": len(ids)}


@torch.no_grad()
def _ask(model: PreTrainedModel, question: torch.Tensor, cache: Cache | None) -> dict:
    """The cost of a question [1, 32] on top of a cache, and of each token of its answer."""
    head, body, step, marks = models.head(model), models.body(model), question, [_now(model)]
    for _ in range(1 + STEPS):
        out = body(input_ids=step, past_key_values=cache, use_cache=True)
        cache = out.past_key_values
        step = head.logits(out.last_hidden_state[:, -1]).argmax(-1, keepdim=True)
        marks.append(_now(model))
    return {
        "question_seconds": marks[1] - marks[0],
        "token_seconds": float(np.median(np.diff(marks[1:]))),
    }


def _now(model: PreTrainedModel) -> float:
    if next(model.parameters()).is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter()
