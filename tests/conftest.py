"""Shared by all tests: no network, a private cache that is converted once, tiny models."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import numpy as np
import pytest
import torch
import transformers

import liftcore

# Tiny models gain nothing from threads, and lose much when tests run side by side.
torch.set_num_threads(1)

TINY = dict(
    vocab_size=211,
    hidden_size=48,
    intermediate_size=80,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=256,
    pad_token_id=0,
    bos_token_id=1,
    eos_token_id=2,
)
FAMILIES = {
    "llama": (transformers.LlamaConfig, {}),
    "mistral": (transformers.MistralConfig, {"head_dim": 12}),
    "qwen2": (transformers.Qwen2Config, {}),
    "qwen3": (transformers.Qwen3Config, {"head_dim": 12}),
    "gemma2": (
        transformers.Gemma2Config,
        {"head_dim": 12, "final_logit_softcapping": 0.5, "query_pre_attn_scalar": 12},
    ),
    "gemma3": (transformers.Gemma3TextConfig, {"head_dim": 12, "query_pre_attn_scalar": 12}),
    "granite": (transformers.GraniteConfig, {"logits_scaling": 4.0}),
}


def tiny_model(family="llama", seed=0, dtype=torch.float32, **changes):
    """A random model of a real family, small enough for a unit test."""
    kind, extra = FAMILIES[family]
    torch.manual_seed(seed)
    config = kind(**{**TINY, **extra, **changes})
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=dtype)
    return model.eval().requires_grad_(False)


@pytest.fixture
def rng():
    """Fresh random numbers every run; the seed is printed for a failing test."""
    seed = int(np.random.SeedSequence().entropy % 2**32)
    print("seed", seed)
    return np.random.default_rng(seed)


@pytest.fixture(scope="session")
def embedded():
    """(model, tokenizer) of the embedded model; tests must leave it as they found it."""
    return liftcore.load("smollm2-135m", device="cpu")


@pytest.fixture(scope="session")
def tokenizer(embedded):
    return embedded[1]


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory, tokenizer):
    """A random two-layer model with the embedded model's tokenizer, as a local folder."""
    folder = tmp_path_factory.mktemp("tiny-model")
    tiny_model(vocab_size=len(tokenizer), pad_token_id=2).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
