"""Models to measure: the embedded one, and models of random weights in the shapes of known ones.

A shape needs no download. Cost does not depend on the weights.
"""

from __future__ import annotations

import copy

import numpy as np
import torch
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from liftcore import model as models
from liftcore.cost import shallow_config
from liftcore.errors import LiftError
from liftcore.fiction.documents import fictional_document
from liftcore.tokens import text_ids

# Published sizes: hidden, MLP, layers, query heads, key and value heads, vocabulary.
SHAPES = {
    "smollm2-135m": ("LlamaConfig", (576, 1536, 30, 9, 3, 49152), {"tie_word_embeddings": True}),
    "llama-3-8b": ("LlamaConfig", (4096, 14336, 32, 32, 8, 128256), {}),
    "qwen3-8b": ("Qwen3Config", (4096, 12288, 36, 32, 8, 151936), {"head_dim": 128}),
}


def config(name: str, layers: int | None = None) -> PreTrainedConfig:
    """The transformers configuration of a shape, cut to its first layers if asked."""
    import transformers

    kind, (hidden, mlp, depth, heads, kv, vocab), extra = SHAPES[name]
    full = getattr(transformers, kind)(
        **{
            "hidden_size": hidden,
            "intermediate_size": mlp,
            "num_hidden_layers": depth,
            "num_attention_heads": heads,
            "num_key_value_heads": kv,
            "vocab_size": vocab,
            "max_position_embeddings": 16384,
            "tie_word_embeddings": False,
            **extra,
        }
    )
    return full if layers is None else shallow_config(full, layers)


def default_layers(name: str, device: torch.device) -> int | None:
    """One layer of an 8B shape on a CPU, all of them elsewhere."""
    return 1 if device.type == "cpu" and name in ("llama-3-8b", "qwen3-8b") else None


def build(
    name: str, device: torch.device, layers: int | None = None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase | None]:
    """(model, tokenizer or None): the embedded model where it is installed and no layers are
    cut, random weights for a shape, else whatever liftcore.load takes."""
    if name not in SHAPES or (name == "smollm2-135m" and layers is None):
        try:
            return models.load(name, device=device)
        except LiftError:
            if name not in SHAPES:
                raise
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(
            config(name, layers), dtype=models.default_dtype(device)
        )
    return model.eval().requires_grad_(False), None


def twin(model: PreTrainedModel) -> PreTrainedModel:
    """A copy of the modules over the same weights, so that every variant can wrap its own."""
    shared = [*model.parameters(), *model.buffers()]
    return copy.deepcopy(model, {id(t): t for t in shared})


def text(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None, length: int
) -> np.ndarray:
    """Token ids [length]: a fictional document, over and over, for a real model; random ones for
    a shape."""
    if tokenizer is None:
        vocabulary = models.head(model).weight.shape[0]
        return np.random.default_rng(0).integers(0, vocabulary, size=length)
    document = fictional_document(0, min(max(1550, length), 5000)).text
    ids = np.asarray(text_ids(tokenizer, document))
    return np.resize(ids, length)
