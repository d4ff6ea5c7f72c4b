"""Frozen layers in FP8, and those that other packages quantised, under an adapter."""

import copy
import json
from types import SimpleNamespace

import pytest
import torch
from bees import TEXT
from errors_and_seeds import fresh_seed, rel
from fp8_checks import rounded
from quantised import int8, int8_model, nf4, nf4_model
from tiny import tiny_family, tiny_model

import liftcore
from liftcore.config import LiftConfig
from liftcore.errors import LiftError, UsageError
from liftcore.layers import base
from liftcore.layers.fp8 import Fp8Linear
from liftcore.layers.lora import Adapter, linear_layers
from liftcore.training import memory_plan

CONFIG = LiftConfig(segment_length=16, epochs=8, rank=8, learning_rate=5e-2, base_dtype="fp8")

pytestmark = pytest.mark.usefixtures("elsewhere")


def fp8_layers(model):
    return {path: m for path, m in model.named_modules() if isinstance(m, Fp8Linear)}


def hidden(model, ids):
    with torch.no_grad():
        return model(ids).logits


def test_a_layer_in_fp8_is_the_product_of_rounded_rows():
    linear = torch.nn.Linear(48, 40)
    layer = Fp8Linear(linear.weight, linear.bias)
    x = torch.randn(2, 7, 48, generator=fresh_seed())
    right = rounded(x.view(14, 48)) @ rounded(linear.weight).T + linear.bias.double()
    assert rel(layer(x).view(14, 40), right) < 1e-6
    assert torch.equal(layer.weight.double(), rounded(linear.weight))
    # Whole numbers: what a model is cast to does not touch them.
    assert torch.equal(copy.deepcopy(layer).to(torch.float16).weight, layer.weight)


def test_the_layers_for_lora_are_put_into_fp8_in_place():
    model = tiny_model(num_hidden_layers=3)
    ids = torch.randint(3, 200, (2, 20), generator=fresh_seed())
    paths, own = list(linear_layers(model)), hidden(model, ids)
    base.quantise(model, first=1)
    layers = fp8_layers(model)
    assert list(layers) == paths == list(linear_layers(model)) and len(paths) == 21
    assert 0.003 < rel(hidden(model, ids), own) < 0.1
    assert type(model.lm_head) is torch.nn.Linear and base.dtype_of(model) == "fp8"
    # A gradient goes through the layers from the first on only.
    kept = {path for path, layer in layers.items() if layer.codes_t is not None}
    assert kept == {path for path in paths if ".layers.0." not in path}
    weights = sum(layer.codes.numel() for layer in layers.values())
    bytes_ = sum(b.nbytes for m in layers.values() for b in m.buffers())
    assert weights * (1 + 2 / 3) < bytes_ < 1.05 * weights * (1 + 2 / 3)
    base.quantise(model, first=0)
    assert all(layer.codes_t is not None for layer in fp8_layers(model).values())


def test_the_gradient_goes_through_layers_without_lora():
    """LoRA in the lower layer, below one in FP8 that has none: its loss falls."""
    model = tiny_model()
    base.apply(model, CONFIG.replace(layers=(0, 0)))
    adapter = Adapter.of(model, CONFIG.replace(layers=(0, 0)))
    adapter.install()
    ids = torch.randint(3, 200, (2, 20), generator=fresh_seed())
    adapter.values.normal_(std=0.05)

    def loss():
        return model(ids, labels=ids).loss

    before = loss()
    before.backward()
    step = adapter.grads / adapter.grads.norm()
    with torch.no_grad():
        adapter.values -= 0.02 * step
        # By what the gradient foretells; rounding makes a staircase of it.
        assert 0.5 < (before - loss()) / (0.02 * adapter.grads.norm()) < 1.5


def test_behind_an_estimate_the_model_is_as_it_was():
    model = tiny_model()
    adapter = Adapter(model, 4, 8.0)
    adapter.install()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    assert (
        liftcore.estimate(model, 100, CONFIG).flops
        == liftcore.estimate(model, 100, CONFIG.replace(base_dtype="model")).flops
    )
    after = model.state_dict()
    assert after.keys() == before.keys() and model._liftcore_adapter is adapter
    assert all(torch.equal(after[k], before[k]) for k in before) and not fp8_layers(model)


def test_the_memory_plan_counts_what_the_products_need():
    model = tiny_model()
    adapter = Adapter.of(model, CONFIG)
    fixed = memory_plan.choose(model, adapter, 2, 16).fixed_bytes
    base.apply(model, CONFIG)
    adapter = Adapter.of(model, CONFIG)
    # The largest weight in fp32, and on the way there in two bytes.
    assert memory_plan.choose(model, adapter, 2, 16).fixed_bytes == fixed + 48 * 80 * 6


def test_a_conv1d_stays_one_for_peft():
    model = tiny_family("gpt2")
    assert Adapter(model, 4, 8.0).targets.fan_in_fan_out
    ids = torch.randint(3, 200, (1, 9), generator=fresh_seed())
    own = hidden(model, ids)
    base.quantise(model)
    assert Adapter(model, 4, 8.0).targets.fan_in_fan_out and fp8_layers(model)
    assert rel(hidden(model, ids), own) < 0.1


@pytest.fixture
def memory(loaded):
    return liftcore.absorb(*loaded, TEXT, title="Bees", config=CONFIG, progress=False)


def test_a_memory_on_fp8_is_trained_saved_and_loaded(memory, tmp_path):
    assert memory.report.base_dtype == "fp8" and "base in FP8 (e4m3)" in memory.report.text()
    assert memory.adapter.values.dtype == torch.float32
    folder = memory.save(tmp_path / "m")
    said = json.loads((folder / "liftcore.json").read_text())
    assert said["report"]["base_dtype"] == said["config"]["base_dtype"] == "fp8"
    ids = torch.tensor([memory.tokenizer(TEXT)["input_ids"]])
    again = liftcore.load_memory(folder, device="cpu", dtype=torch.float32)
    layers = fp8_layers(again.model)
    assert layers and all(layer.codes_t is None for layer in layers.values())
    assert rel(hidden(again.model, ids), hidden(memory.model, ids)) < 1e-6
    # A model that is given stays as it is.
    plain = liftcore.load(again.adapter.model.config.name_or_path, device="cpu")
    other = liftcore.load_memory(folder, plain)
    assert not fp8_layers(other.model)
    assert 1e-3 < rel(hidden(other.model, ids), hidden(memory.model, ids)) < 0.2
    with pytest.raises(LiftError, match="quantised model cannot be merged"):
        memory.write_merged(tmp_path / "merged")


def test_another_memory_of_the_same_model_has_a_base_of_its_own(loaded):
    plain = CONFIG.replace(base_dtype="model")
    first = liftcore.absorb(*loaded, TEXT, config=plain, progress=False)
    ids = torch.tensor([first.tokenizer(TEXT)["input_ids"]])
    own = hidden(first.model, ids)
    second = liftcore.absorb(*loaded, TEXT, config=CONFIG, progress=False)
    assert fp8_layers(second.model)
    # Of 49,152 tokens a random model gives each 10.8 nats; both learn the same.
    losses = first.training.loss, second.training.loss
    assert max(losses) < 10.7 and abs(losses[0] - losses[1]) < 0.05
    first.adapter.install()
    assert torch.equal(hidden(first.model, ids), own)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("make, package", [(int8_model, "torchao"), (nf4_model, "bitsandbytes")])
def test_bases_of_other_packages_keep_their_product(make, package):
    model = make()
    assert base.dtype_of(model) == package
    adapter = Adapter(model, 4, 8.0)
    assert len(adapter.layers) == 14 and adapter.values.dtype == torch.float32
    adapter.values.normal_(std=0.1)
    ids = torch.randint(3, 200, (2, 9), generator=fresh_seed())
    adapter.install()
    ours = [hidden(model, ids)]
    model(ids, labels=ids).loss.backward()
    ours.append(adapter.grads.clone())
    # The truth: W + scaling B A as one weight in plain layers, whose W the package tells.
    adapter.remove()
    plain = copy.deepcopy(model)
    deltas = []
    for path, layer in adapter.layers.items():
        k, n = layer.in_features, layer.out_features
        weight = layer.base(torch.eye(k).requires_grad_()).detach().T.contiguous()
        a, b = (m.detach().clone().requires_grad_() for m in (layer.lora_a, layer.lora_b))
        deltas.append((layer, a, b))
        linear = torch.nn.Linear(k, n, bias=False)
        del linear.weight
        linear.weight = weight + 2.0 * b @ a
        base.put(plain, path, linear)
    right = [hidden(plain, ids)]
    plain(ids, labels=ids).loss.backward()
    assert rel(ours[0], right[0]) < 1e-4
    for layer, a, b in deltas:
        assert rel(layer.lora_a.grad, a.grad) < 1e-3 and rel(layer.lora_b.grad, b.grad) < 1e-3
    with pytest.raises(UsageError, match=f"quantised by {package}"):
        base.quantise(model)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("quantise, package", [(int8, "torchao"), (nf4, "bitsandbytes")])
def test_a_memory_on_weights_of_other_packages(quantise, package, loaded, tmp_path):
    model, tokenizer = loaded
    quantise(model)
    memory = liftcore.absorb(
        model, tokenizer, TEXT, config=CONFIG.replace(base_dtype="model", epochs=4), progress=False
    )
    assert memory.training.loss < 10.7 and f"quantised by {package}" in memory.report.text()
    folder = memory.save(tmp_path / "m")
    ids = torch.tensor([tokenizer(TEXT)["input_ids"]])
    again = liftcore.load_memory(folder, (model, tokenizer))
    assert rel(hidden(again.model, ids), hidden(memory.model, ids)) < 1e-5
    with pytest.raises(LiftError, match="cannot be merged"):
        memory.write_merged(tmp_path / "merged")


def test_4_bit_weights_that_were_repacked_for_inference_are_refused():
    """The stand-in has what bitsandbytes' layers have on a CPU with AVX512-BF16."""

    class Linear4bit(torch.nn.Linear):
        support_avx512bf16_for_cpu = True

    Linear4bit.__module__ = "bitsandbytes.nn.modules"
    model = tiny_model()
    for path in linear_layers(model):
        four = Linear4bit(*reversed(model.get_submodule(path).weight.shape), bias=False)
        four.weight.quant_state = SimpleNamespace(packing_format_for_cpu="o_proj" in path)
        base.put(model, path, four)
    with pytest.raises(UsageError, match="repacked"):
        Adapter(model, 4, 8.0)
