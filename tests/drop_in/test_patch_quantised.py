"""Quantised bases under accelerate(): their product stays theirs, the LoRA part is ours."""

import copy

import pytest
import torch
from errors_and_seeds import fresh_seed, rel
from peft import LoraConfig, get_peft_model
from quantised import int8_model, nf4_model
from tiny import tiny_model

import liftcore
from liftcore.drop_in import peft_lora as patch_lora
from liftcore.kernels import reference
from liftcore.kernels.lora import add_lora


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_op_against_fp64(dtype):
    g = fresh_seed()
    x, y = torch.randn(2, 5, 23, generator=g), torch.randn(2, 5, 17, generator=g)
    a, b = torch.randn(4, 23, generator=g) / 5, torch.randn(17, 4, generator=g) / 2
    dout = torch.randn(2, 5, 17, generator=g)

    def run(op, dtype):
        leaves = [t.to(dtype, copy=True).requires_grad_() for t in (x, y, a, b)]
        out = op(*leaves, 0.7)
        return [out, *torch.autograd.grad(out, leaves, dout.to(dtype))]

    def plain(x, y, a, b, scaling):
        return y + reference.lora_linear(x, x.new_zeros(17, 23), a, b, scaling)

    truth, theirs, ours = run(plain, torch.float64), run(plain, dtype), run(add_lora, dtype)
    for right, peer, got in zip(truth, theirs, ours, strict=True):
        assert got.dtype == dtype and rel(got, right) <= 2 * rel(peer, right) + 1e-6


def test_shapes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="do not fit"):
        add_lora(*(torch.ones(s) for s in ((2, 3), (2, 5), (1, 4), (5, 1))), 1.0)


class Linear4bit(torch.nn.Module):
    """A stand-in for a quantised layer: codes instead of weights, and a product of its own."""

    def __init__(self, linear):
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.step = linear.weight.abs().max() / 7
        codes = (linear.weight / self.step).round().to(torch.int8)
        self.weight = torch.nn.Parameter(codes, requires_grad=False)

    def forward(self, x):
        return x @ (self.weight.to(x.dtype) * self.step).T


def quantised_model(kind):
    config = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", init_lora_weights=False)
    model = get_peft_model(tiny_model(), config).train()
    for module in list(model.modules()):
        if patch_lora.is_lora(module):
            module.base_layer = kind(module.base_layer)
    return model


def run(model, ids):
    model.zero_grad()
    out = model(input_ids=ids, labels=ids)
    out.loss.backward()
    gradients = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    return [out.loss.detach(), out.logits.detach(), *gradients]


def check(model, ids, monkeypatch):
    truth = run(copy.deepcopy(model), ids)
    calls, real = [], patch_lora.add_lora
    monkeypatch.setattr(patch_lora, "add_lora", lambda *a: calls.append(1) or real(*a))
    report = liftcore.accelerate(model)
    assert len(report.replaced) == 14 and not report.groups and report.loss and not report.left
    calls.clear()
    assert max(rel(a, b) for a, b in zip(run(model, ids), truth, strict=True)) < 1e-5
    assert len(calls) == 14
    liftcore.restore(model)
    assert all(torch.equal(a, b) for a, b in zip(run(model, ids), truth, strict=True))


def test_a_known_quantised_base_keeps_its_product(rng, monkeypatch):
    monkeypatch.setattr(Linear4bit, "__module__", "bitsandbytes.nn.modules")
    model = quantised_model(Linear4bit)
    check(model, torch.from_numpy(rng.integers(3, 200, size=(2, 9))), monkeypatch)


def test_an_unknown_quantised_base_is_left_and_named():
    model = quantised_model(Linear4bit)  # of this module, not of bitsandbytes
    with pytest.warns(UserWarning, match="replaced no LoRA linear"):
        report = liftcore.accelerate(model)
    assert set(report.left.values()) == {"its base is Linear4bit"} and report.loss


@pytest.mark.filterwarnings("ignore")
def test_torchao_int8_weights(rng, monkeypatch):
    model = int8_model()
    model.quantization_method = "torchao"
    config = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", init_lora_weights=False)
    try:
        model = get_peft_model(model, config).train()
    except TypeError as error:
        pytest.skip(f"this PEFT wants a model that transformers quantised: {error}")
    check(model, torch.from_numpy(rng.integers(3, 200, size=(2, 9))), monkeypatch)


@pytest.mark.filterwarnings("ignore")
def test_bitsandbytes_4_bit_weights(rng, monkeypatch):
    model = nf4_model("qwen3")
    model.is_loaded_in_4bit = True  # as from_pretrained says
    config = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", init_lora_weights=False)
    model = get_peft_model(model, config).train()
    check(model, torch.from_numpy(rng.integers(3, 200, size=(2, 9))), monkeypatch)
