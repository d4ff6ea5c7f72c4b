"""A tiny random model of every causal language model that transformers knows."""

from __future__ import annotations

import dataclasses
import inspect
from typing import Any

import torch
from transformers import PreTrainedConfig, PreTrainedModel

VOCABULARY = 211
# What a size becomes, by the name that configurations give it.
SIZES = {
    2: "num_hidden_layers n_layer n_layers num_layers decoder_layers encoder_layers "
    "num_experts_per_tok moe_topk top_k experts_per_token num_key_value_heads num_kv_heads "
    "index_n_heads linear_num_key_heads num_nextn_predict_layers num_blocks n_groups "
    "mamba_n_groups n_group topk_group hc_mult swa_num_key_value_heads",
    4: "num_attention_heads n_head n_heads num_heads decoder_attention_heads "
    "encoder_attention_heads num_experts n_routed_experts num_local_experts moe_num_experts "
    "linear_num_value_heads linear_num_heads mamba_n_heads mamba_num_heads swa_num_attention_heads "
    "num_mem_blocks",
    8: "kv_lora_rank q_lora_rank qk_rope_head_dim qk_nope_head_dim v_head_dim o_lora_rank "
    "time_step_rank mamba_dt_rank laurel_rank hidden_size_per_layer_input rotary_dim "
    "adapter_rank mamba_d_state state_size ssm_state_size mamba_chunk_size hc_lowrank "
    "sliding_window_size rel_extent dim_model_base router_hidden_size index_topk_freq",
    16: "head_dim index_head_dim linear_key_head_dim linear_value_head_dim swa_head_dim dim_head "
    "d_head qk_head_dim chunk_size mamba_d_head mamba_head_dim attention_head_size "
    "index_topk linear_head_dim mamba_headdim swa_v_head_dim swa_qk_head_dim",
    64: "hidden_size d_model n_embd embedding_size embedding_dim emb_dim word_embed_proj_dim "
    "input_embedding_size output_embedding_size attention_hidden_size lru_width",
    96: "intermediate_size ffn_dim decoder_ffn_dim encoder_ffn_dim n_inner dff dim_ff "
    "ffn_hidden_size moe_intermediate_size shared_expert_intermediate_size d_inner "
    "expert_ffn_hidden_size "
    "shared_intermediate_size intermediate_size_mlp dense_intermediate_size feed_forward_size "
    "shared_experts_intermediate_size moe_shared_expert_intermediate_size",
    VOCABULARY: "vocab_size decoder_vocab_size vocab_size_per_layer_input unpadded_vocab_size",
    256: "max_position_embeddings n_positions n_ctx max_seq_len model_max_length context_length "
    "original_max_position_embeddings sliding_window",
}
LAYERS = ("num_hidden_layers", "num_layers", "depth", "num_blocks", "encoder_layers")
SMALL = {name: size for size, names in SIZES.items() for name in names.split()}
TOKENS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
# What a family needs beside: where its sizes hang together in a way of their own.
MAMBA = dict(mamba_d_head=16, mamba_n_heads=8, mamba_expand=2)
FULL = ["full_attention", "full_attention"]
CHANGES: dict[str, dict[str, Any]] = {
    "bamba": MAMBA,
    "cohere_compass_text": {
        "num_hidden_layers": 4,
        "layer_types": [*["sliding_attention"] * 3, "full_attention"],
        "rope_parameters": {
            f"{kind}_attention": {"rope_type": "default", "rope_theta": 1e4}
            for kind in ("sliding", "full")
        },
    },
    "dots1": {"first_k_dense_replace": 1, "n_shared_experts": 1},
    "dots3_note_text": {"num_key_value_heads": 4},
    "falcon_h1": {**MAMBA, "mamba_d_ssm": 128},
    "gemma3n_text": {"num_hidden_layers": 4, "num_kv_shared_layers": 0},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]], "window_size": 64},
    "granitemoehybrid": {**MAMBA, "layer_types": ["mamba", "attention"]},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"], "num_dense_layers": 1},
    "longcat_flash": {"qk_rope_head_dim": 8, "head_dim": 8, "vocab_size": VOCABULARY},
    "mamba2": {"num_heads": 8, "head_dim": 16, "expand": 2, "n_groups": 2, "state_size": 16},
    "qwen3_5_text": {"layer_types": ["linear_attention", "full_attention"]},
    "qwen3_next": {"layer_types": ["linear_attention", "full_attention"]},
    "roc_bert": {"pronunciation_vocab_size": 50, "shape_vocab_size": 50},
    "xmod": {"languages": ["en_XX"], "default_language": "en_XX"},
    "reformer": {"axial_pos_embds": False},
    "zamba": {
        "attention_hidden_size": 128,
        "attention_head_dim": 32,
        "num_hidden_layers": 4,
        "layers_block_type": ["mamba", "hybrid", "mamba", "hybrid"],
        "hybrid_layer_ids": [1, 3],
    },
    "zamba2": {
        "num_hidden_layers": 3,
        "layers_block_type": ["mamba", "hybrid", "mamba"],
        "mamba_headdim": 16,
        "n_mamba_heads": 8,
    },
    "zaya": {"num_experts_per_tok": 1},
}


def names() -> list[str]:
    """The model types that AutoModelForCausalLM knows, in order."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    return sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


def small_config(family: str) -> PreTrainedConfig:
    """A configuration of this model type whose sizes are tiny."""
    from transformers import CONFIG_MAPPING

    kind = CONFIG_MAPPING[family]
    return kind(**_sizes_of(family))


def _sizes_of(family: str) -> dict[str, Any]:
    from transformers import CONFIG_MAPPING

    kind = CONFIG_MAPPING[family]
    return {**_sizes(kind), **CHANGES.get(family, {})}


def _sizes(kind: type) -> dict[str, Any]:
    names = {*inspect.signature(kind.__init__).parameters}
    if dataclasses.is_dataclass(kind):
        names |= {f.name for f in dataclasses.fields(kind)}
    sizes: dict[str, Any] = {n: s for n, s in SMALL.items() if n in names}
    sizes |= {n: i for n, i in TOKENS.items() if n in names}
    if "kv_lora_rank" in names:  # attention with a latent has as many keys as queries
        sizes |= {"num_key_value_heads": 4} if "num_key_value_heads" in names else {}
    if "moe_layer_end_index" in names:
        sizes |= {"moe_k": 2}
    for name in getattr(kind, "sub_configs", {}):
        part = getattr(kind(), name, None)
        if part is None:
            continue
        if name == "text_config":
            sizes[name] = _sizes(type(part)) | CHANGES.get(part.model_type, {})
        else:  # images and sounds, which no test here has: small enough to be built
            sizes[name] = {n: 2 for n in LAYERS if hasattr(part, n)}
    if "is_decoder" in names:
        sizes["is_decoder"] = True
    return sizes


def tiny(family: str, dtype: torch.dtype = torch.float32, seed: int = 0) -> PreTrainedModel:
    """A random model of this type in evaluation mode, with nothing trainable."""
    from transformers import AutoModelForCausalLM

    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(small_config(family), dtype=dtype)
    return model.eval().requires_grad_(False)
