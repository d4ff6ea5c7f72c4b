"""Random models of real families, small enough for a unit test."""

import torch
import transformers

from liftcore.pretrained import dtype_keyword

# Before 4.56 the layers of transformers return tuples, and SDPA always gets a mask.
OLD_TRANSFORMERS = "dtype" not in dtype_keyword(torch.float32)
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
# Families that absorb() has no test of its own for.
MORE_FAMILIES = {
    "phi3": (transformers.Phi3Config, {}),  # q/k/v and gate/up are one projection each
    "smollm3": (transformers.SmolLM3Config, {}),
}


def tiny_model(family="llama", seed=0, dtype=torch.float32, **changes):
    """A random model of a real family, small enough for a unit test."""
    kind, extra = (FAMILIES | MORE_FAMILIES)[family]
    torch.manual_seed(seed)
    config = kind(**{**TINY, **extra, **changes})
    model = transformers.AutoModelForCausalLM.from_config(config, **dtype_keyword(dtype))
    return model.eval().requires_grad_(False)
