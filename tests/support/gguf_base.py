"""Tiny models of transformers as GGUF files, and llama.cpp on them."""

import json
import urllib.request
from contextlib import contextmanager

import gguf
import torch

from liftcore.export.gguf import FAMILIES
from liftcore.export.llama_cpp import served


def write_base(model, file):
    """The model in fp32, with a vocabulary of two letters a token."""
    config, vocabulary = model.config, model.config.vocab_size
    family = FAMILIES[config.model_type]
    arch = gguf.MODEL_ARCH[family.arch]
    writer = gguf.GGUFWriter(file, gguf.MODEL_ARCH_NAMES[arch])
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(head)
    writer.add_value_length(head)
    writer.add_rope_dimension_count(head)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    rope = config.rope_parameters
    writer.add_rope_freq_base(rope.get("full_attention", rope)["rope_theta"])
    writer.add_vocab_size(vocabulary)
    if config.model_type in ("gemma2", "gemma3_text", "phi3"):
        writer.add_sliding_window(getattr(config, "sliding_window", None) or 256)
    if config.model_type == "gemma2":
        writer.add_attn_logit_softcapping(config.attn_logit_softcapping)
        writer.add_final_logit_softcapping(config.final_logit_softcapping)
    if config.model_type == "granite":
        writer.add_attention_scale(config.attention_multiplier)
        writer.add_embedding_scale(config.embedding_multiplier)
        writer.add_residual_scale(config.residual_multiplier)
        writer.add_logit_scale(config.logits_scaling)
    letters = "abcdefghijklmnopqrstuvwxyz"
    words = [a + b for a in letters for b in letters]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(["Ċ", *words[: vocabulary - 1]])
    writer.add_token_types([gguf.TokenType.NORMAL] * vocabulary)
    writer.add_token_merges(["a a"])
    writer.add_eos_token_id(2)
    names = gguf.get_tensor_name_map(arch, config.num_hidden_layers)
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    for path, values in model.state_dict().items():
        if path == "lm_head.weight" and config.tie_word_embeddings:
            continue
        if config.model_type.startswith("gemma") and "norm" in path:
            values = values + 1
        count = heads.get(path.split(".")[-2])
        if count and family.reordered:
            halves = values.reshape(count, 2, -1, *values.shape[1:])
            values = torch.stack([halves[:, 0], halves[:, 1]], dim=2).reshape(values.shape)
        writer.add_tensor(names.get_name(path, (".weight", ".bias")), values.contiguous().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@contextmanager
def llama_cpp(base, lora=None):
    """A function: token ids -> {token: log-probability} of the likeliest next tokens."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with served(base, lora, context=128, threads=1) as address:

        def likeliest(ids):
            asked = json.dumps({"prompt": ids, "n_predict": 1, "n_probs": 5, "temperature": 0})
            kind = {"Content-Type": "application/json"}
            request = urllib.request.Request(f"{address}/completion", asked.encode(), kind)
            answer = json.load(opener.open(request, timeout=60))
            top = answer["completion_probabilities"][0]["top_logprobs"]
            return {each["id"]: each["logprob"] for each in top}

        yield likeliest
