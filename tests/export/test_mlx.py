"""Adapters in the form of mlx-lm: its loading rules, without mlx."""

import json
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from test_gguf import adapted, saved_of

from liftcore.errors import LiftError
from liftcore.export.mlx import write_mlx


def test_the_file_is_what_mlx_lm_computes_with(rng, tmp_path):
    """y = x W + scale · (x a) b, on the last num_layers blocks, where a name is among the keys."""
    model, adapter = adapted("llama", rng, num_hidden_layers=3)
    write_mlx(saved_of(adapter, lambda path: ".0." not in path), tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    asked, tensors = config["lora_parameters"], load_file(tmp_path / "adapters.safetensors")
    assert config["fine_tune_type"] == "lora" and config["num_layers"] == 2
    reached = {
        f"model.layers.{n}.{name}.lora_{side}"
        for n in range(3 - config["num_layers"], 3)
        for name, module in model.model.layers[n].named_modules()
        if name in asked["keys"]
        for side in "ab"
    }
    assert reached == tensors.keys()
    path = "model.layers.2.mlp.down_proj"
    layer = adapter.layers[path]
    x = torch.from_numpy(rng.normal(size=(5, layer.in_features))).float()
    right = layer(x) - layer.base(x)
    a, b = tensors[f"{path}.lora_a"], tensors[f"{path}.lora_b"]
    assert a.shape == (layer.in_features, asked["rank"])
    torch.testing.assert_close(asked["scale"] * (x @ a) @ b, right, rtol=1e-4, atol=1e-5)


def test_another_layout_is_refused(rng, tmp_path):
    saved = saved_of(adapted("llama", rng)[1])
    layers = {f"transformer.h.{n}.attn": pair for n, pair in enumerate(saved.layers.values())}
    other = SimpleNamespace(**{**vars(saved), "layers": layers})
    with pytest.raises(LiftError, match=r"transformer\.h\.0\.attn"):
        write_mlx(other, tmp_path / "out")
    assert not (tmp_path / "out").exists()
