"""Tiny models whose linear layers other packages have quantised."""

import pytest
import torch
from tiny import tiny_model

from liftcore.layers.base import put
from liftcore.layers.lora import linear_layers


def int8_model(family="llama"):
    """By torchao; pytest's skip where that is missing."""
    quantization = pytest.importorskip("torchao.quantization")
    model = tiny_model(family, initializer_range=0.2)
    quantization.quantize_(
        model,
        quantization.Int8WeightOnlyConfig(),
        filter_fn=lambda m, name: isinstance(m, torch.nn.Linear) and "lm_head" not in name,
    )
    return model


def nf4_model(family="qwen3"):
    """By bitsandbytes; pytest's skip where that is missing."""
    layers = pytest.importorskip("bitsandbytes").nn
    model = tiny_model(family, initializer_range=0.2, hidden_size=64, intermediate_size=128)
    for path, linear in linear_layers(model).items():
        four = layers.Linear4bit(
            *(linear.in_features, linear.out_features, False, torch.float32), quant_type="nf4"
        )
        four.weight = layers.Params4bit(linear.weight.data, requires_grad=False, quant_type="nf4")
        put(model, path, four.to("cpu"))
    return model
