"""Adapters as GGUF, run by llama.cpp itself on tiny models of each family."""

import importlib.util
from types import SimpleNamespace

import pytest
import torch
from tiny import tiny_model

from liftcore.errors import LiftError
from liftcore.export.gguf import FAMILIES, write_gguf
from liftcore.export.saved import Saved
from liftcore.layers.lora import Adapter

gguf = pytest.importorskip("gguf")
needs_llama_cpp = pytest.mark.skipif(
    importlib.util.find_spec("xllamacpp") is None, reason="llama.cpp needs xllamacpp"
)
TINY = {"gemma3_text": "gemma3"}  # the names of tests/support/tiny.py


def saved_of(adapter, keep=lambda path: True):
    """A saved memory with those of the adapter's layers whose paths are kept."""
    layers = {
        path: (layer.lora_a.detach(), layer.lora_b.detach())
        for path, layer in adapter.layers.items()
        if keep(path)
    }
    info = SimpleNamespace(about=SimpleNamespace(title="Bees", base_model="tiny"))
    saved = Saved(None, info, {"lora_alpha": adapter.alpha}, layers)
    vars(saved)["model_config"] = adapter.model.config
    return saved


def adapted(family, rng, **changes):
    """A tiny model with an adapter that changes what it says."""
    model = tiny_model(TINY.get(family, family), seed=int(rng.integers(2**31)), **changes)
    adapter = Adapter(model, 4, 8.0)
    adapter.values.copy_(torch.from_numpy(rng.normal(size=len(adapter.values)) * 0.2))
    return model, adapter


@needs_llama_cpp
@pytest.mark.parametrize("family", FAMILIES)
def test_llama_cpp_computes_what_liftcore_does(family, rng, tmp_path):
    from gguf_base import llama_cpp, write_base

    tied = {"tie_word_embeddings": True} if family == "qwen3" else {}
    model, adapter = adapted(family, rng, **tied)
    prompts = rng.integers(3, 200, size=(3, 20)).tolist()
    write_base(model, tmp_path / "base.gguf")
    write_gguf(saved_of(adapter), tmp_path / "lora.gguf")
    without = [model(torch.tensor([p])).logits[0, -1].log_softmax(-1) for p in prompts]
    adapter.install()
    having = [model(torch.tensor([p])).logits[0, -1].log_softmax(-1) for p in prompts]
    with llama_cpp(tmp_path / "base.gguf") as ask:
        assert max(map(error, map(ask, prompts), without)) < 0.01
    with llama_cpp(tmp_path / "base.gguf", tmp_path / "lora.gguf") as ask:
        there = list(map(ask, prompts))
    assert max(map(error, there, having)) < 0.01
    assert min(map(error, there, without)) > 0.03, "the adapter changes nothing: no test"


def error(there, logits):
    """The largest difference of llama.cpp's log-probabilities."""
    return max(abs(logits[token].item() - value) for token, value in there.items())


@needs_llama_cpp
def test_an_adapter_on_some_layers_only(rng, tmp_path):
    from gguf_base import llama_cpp, write_base

    model, adapter = adapted("llama", rng)
    for path, layer in adapter.layers.items():
        if ".0." in path:
            layer.lora_b.data.zero_()
    write_base(model, tmp_path / "base.gguf")
    write_gguf(saved_of(adapter, lambda path: ".1." in path), tmp_path / "lora.gguf")
    names = [t.name for t in gguf.GGUFReader(tmp_path / "lora.gguf").tensors]
    assert names and all(name.startswith("blk.1.") for name in names)
    adapter.install()
    prompt = rng.integers(3, 200, size=20).tolist()
    with llama_cpp(tmp_path / "base.gguf", tmp_path / "lora.gguf") as ask:
        assert (
            error(ask(prompt), model(torch.tensor([prompt])).logits[0, -1].log_softmax(-1)) < 0.01
        )


def test_what_llama_cpp_has_no_place_for_is_refused(rng, tmp_path):
    _, adapter = adapted("llama", rng)
    saved = saved_of(adapter)
    saved.layers["model.layers.0.self_attn.extra_proj"] = next(iter(saved.layers.values()))
    with pytest.raises(LiftError, match=r"no place for model\.layers\.0\.self_attn\.extra_proj"):
        write_gguf(saved, tmp_path / "lora.gguf")
    vars(saved)["model_config"] = SimpleNamespace(model_type="falcon")
    with pytest.raises(LiftError, match=r"falcon.*qwen3"):
        write_gguf(saved, tmp_path / "lora.gguf")
    assert not list(tmp_path.iterdir())


def test_a_file_that_is_there_stays(rng, tmp_path):
    _, adapter = adapted("qwen2", rng)
    (tmp_path / "lora.gguf").write_text("mine")
    with pytest.raises(LiftError, match="--force"):
        write_gguf(saved_of(adapter), tmp_path / "lora.gguf")
    assert (tmp_path / "lora.gguf").read_text() == "mine"
    write_gguf(saved_of(adapter), tmp_path / "lora.gguf", force=True)
    fields = gguf.GGUFReader(tmp_path / "lora.gguf").fields
    assert fields["adapter.lora.alpha"].contents() == 8.0
    assert fields["general.type"].contents() == "adapter"
