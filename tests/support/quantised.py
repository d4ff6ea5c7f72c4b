"""Tiny models whose linear layers other packages have quantised."""

import pytest
import torch
from tiny import tiny_model

from liftcore.layers.base import put
from liftcore.layers.lora import linear_layers


def int8_model(family="llama"):
    """A model for int8()."""
    model = tiny_model(family, initializer_range=0.2)
    int8(model)
    return model


def int8(model):
    """By torchao, in place; pytest's skip where that is missing."""
    quantization = pytest.importorskip("torchao.quantization")
    quantization.quantize_(
        model,
        quantization.Int8WeightOnlyConfig(),
        filter_fn=lambda m, name: isinstance(m, torch.nn.Linear) and "lm_head" not in name,
    )


def nf4_model(family="qwen3"):
    """A model for nf4()."""
    model = tiny_model(family, initializer_range=0.2, hidden_size=64, intermediate_size=128)
    nf4(model)
    return model


def nf4(model):
    """By bitsandbytes, in place; pytest's skip where that is missing."""
    layers = pytest.importorskip("bitsandbytes").nn
    for path, linear in linear_layers(model).items():
        four = layers.Linear4bit(
            *(linear.in_features, linear.out_features, False, torch.float32), quant_type="nf4"
        )
        four.weight = layers.Params4bit(linear.weight.data, requires_grad=False, quant_type="nf4")
        put(model, path, four.to("cpu"))
