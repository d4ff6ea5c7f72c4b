"""Random models of real families, small enough for a unit test."""

import pytest
import torch
import transformers
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, AutoModelForImageTextToText

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
    model = AutoModelForCausalLM.from_config(config, **dtype_keyword(dtype))
    return model.eval().requires_grad_(False)


EXPERTS = dict(
    moe_intermediate_size=24,
    n_routed_experts=4,
    num_experts=4,
    num_local_experts=4,
    moe_num_experts=4,
    num_experts_per_tok=2,
    n_shared_experts=1,
    num_shared_experts=1,
    moe_num_shared_experts=1,
    first_k_dense_replace=1,
    n_group=1,
    topk_group=1,
    head_dim=12,
)
LATENT = dict(
    q_lora_rank=16,
    kv_lora_rank=16,
    qk_nope_head_dim=8,
    qk_rope_head_dim=4,
    v_head_dim=12,
    num_key_value_heads=4,
    head_dim=4,
)
NEMOTRON = dict(
    layers_block_type=["mamba", "attention", "moe", "mlp"],
    num_hidden_layers=4,
    mamba_num_heads=4,
    mamba_head_dim=12,
    ssm_state_size=8,
    chunk_size=16,
    n_groups=2,
    head_dim=12,
    n_routed_experts=4,
    num_experts_per_tok=2,
    moe_intermediate_size=24,
    moe_shared_expert_intermediate_size=24,
    n_group=1,
    topk_group=1,
)
ZAMBA = dict(
    layers_block_type=["mamba", "hybrid", "mamba", "hybrid"],
    num_hidden_layers=4,
    num_key_value_heads=4,
    mamba_d_state=8,
    n_mamba_heads=4,
    mamba_headdim=24,
    mamba_ngroups=1,
    mamba_expand=2,
    chunk_size=16,
    adapter_rank=8,
    num_mem_blocks=1,
    use_shared_attention_adapter=True,
)
GEMMA3N = dict(
    head_dim=12,
    hidden_size_per_layer_input=8,
    vocab_size_per_layer_input=211,
    laurel_rank=8,
    num_kv_shared_layers=0,
    intermediate_size=[80, 80],
    layer_types=["full_attention"] * 2,
    activation_sparsity_pattern=[0.0, 0.0],
)
QWEN3_NEXT = dict(
    shared_expert_intermediate_size=24,
    linear_key_head_dim=12,
    linear_value_head_dim=12,
    linear_num_key_heads=2,
    linear_num_value_heads=4,
    layer_types=["linear_attention", "full_attention"],
)
FALCON_H1 = dict(
    mamba_d_ssm=48,
    mamba_n_heads=4,
    mamba_d_head=12,
    mamba_d_state=8,
    mamba_chunk_size=16,
    head_dim=12,
)
GPT = dict(n_embd=48, n_layer=2, n_head=4, n_positions=256)
# Families whose layers or names are out of the ordinary.
ODD_FAMILIES = {
    "afmoe": {**EXPERTS, "num_dense_layers": 1},
    "deepseek_v3": {**EXPERTS, **LATENT},
    "deepseek_v4": EXPERTS,
    "dots1": {**EXPERTS, "layer_types": ["full_attention"] * 2},
    "ernie4_5_moe": {**EXPERTS, "moe_layer_start_index": 1},
    "glm4_moe": EXPERTS,
    "laguna": EXPERTS,
    "llama4_text": EXPERTS,
    "mixtral": EXPERTS,
    "phimoe": EXPERTS,
    "qwen2_moe": {**EXPERTS, "shared_expert_intermediate_size": 24},
    "qwen3_next": {**EXPERTS, **QWEN3_NEXT},
    "gemma3n_text": GEMMA3N,
    "zamba2": ZAMBA,
    "falcon_h1": FALCON_H1,
    "nemotron_h": NEMOTRON,
    "gpt2": GPT,
    "falcon": {"new_decoder_architecture": False},
    "roberta": {"is_decoder": True},  # its head has a dense layer too
}
EYES = dict(
    hidden_size=32,
    intermediate_size=40,
    num_hidden_layers=2,
    num_attention_heads=2,
    image_size=16,
    patch_size=8,
)
# Family -> (its text model, its vision model, more).
WITH_EYES = {
    "llava": ("llama", "clip_vision_model", {}),
    "gemma3": ("gemma3_text", "siglip_vision_model", {"mm_tokens_per_image": 4}),
    "idefics3": ("llama", "idefics3_vision", {}),
}


def tiny_family(family: str, seed: int = 0) -> torch.nn.Module:
    """A random model of the family, in fp32, or pytest's skip where transformers has it not yet."""
    if family not in CONFIG_MAPPING:
        pytest.skip(f"this transformers has no {family}")
    torch.manual_seed(seed)
    if family in WITH_EYES:
        text, eyes, more = WITH_EYES[family]
        config = CONFIG_MAPPING[family](
            text_config={**TINY, "head_dim": 12, "model_type": text},
            vision_config={**EYES, "model_type": eyes},
            **more,
        )
        kind = AutoModelForImageTextToText
    else:
        config, kind = (
            CONFIG_MAPPING[family](**{**TINY, **ODD_FAMILIES[family]}),
            AutoModelForCausalLM,
        )
    return kind.from_config(config, **dtype_keyword(torch.float32)).eval().requires_grad_(False)
