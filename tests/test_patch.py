"""accelerate() and restore() under real PEFT layers."""

import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tiny import tiny_model

import liftcore


def peft_model(**settings):
    model = get_peft_model(
        tiny_model(),
        LoraConfig(
            r=4, lora_alpha=8, target_modules="all-linear", init_lora_weights=False, **settings
        ),
    )
    return model.train()


def loss_and_gradients(model, ids):
    model.zero_grad()
    loss = model(input_ids=ids, labels=ids).loss
    loss.backward()
    return loss.item(), {
        n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None
    }


def test_same_loss_and_gradients_then_restored_bit_for_bit(rng):
    model = peft_model()
    ids = torch.from_numpy(rng.integers(3, 200, size=(2, 17)))
    before, gradients = loss_and_gradients(model, ids)
    report = liftcore.accelerate(model)
    assert len(report.replaced) == 14 and not report.left
    loss, ours = loss_and_gradients(model, ids)
    assert loss == pytest.approx(before, rel=1e-6) and ours.keys() == gradients.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(ours[name], gradient, rtol=1e-4, atol=1e-6)
    liftcore.restore(model)
    after, restored = loss_and_gradients(model, ids)
    assert after == before and all(torch.equal(restored[n], gradients[n]) for n in gradients)


def test_the_ops_really_run(rng, monkeypatch):
    from liftcore import patch

    calls = []
    real = patch.lora_linear
    monkeypatch.setattr(patch, "lora_linear", lambda *a: calls.append(1) or real(*a))
    model = peft_model()
    liftcore.accelerate(model)
    model(input_ids=torch.ones(1, 4, dtype=torch.long))
    assert len(calls) == 14
    with model.disable_adapter():
        model(input_ids=torch.ones(1, 4, dtype=torch.long))
    assert len(calls) == 14, "disabled adapters are PEFT's own business"


@pytest.mark.parametrize(
    ("settings", "why"), [({"lora_dropout": 0.1}, "dropout"), ({"use_dora": True}, "DoRA")]
)
def test_what_it_cannot_take_is_left_and_named(settings, why):
    model = peft_model(**settings)
    with pytest.warns(UserWarning, match="replaced nothing"):
        report = liftcore.accelerate(model)
    assert not report.replaced and set(report.left.values()) == {why}


def test_a_trained_bias_stays_with_peft():
    model = get_peft_model(
        tiny_model("qwen2"), LoraConfig(r=4, target_modules=["q_proj", "o_proj"], bias="lora_only")
    )
    report = liftcore.accelerate(model)
    assert {p.rpartition(".")[2] for p in report.left} == {"q_proj"}
    assert {p.rpartition(".")[2] for p in report.replaced} == {"o_proj"}


def test_merging_after_acceleration(rng):
    model = peft_model()
    ids = torch.from_numpy(rng.integers(3, 200, size=(1, 9)))
    plain = copy.deepcopy(model).merge_and_unload()(ids).logits
    liftcore.accelerate(model)
    torch.testing.assert_close(model(ids).logits, plain, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(model.merge_and_unload()(ids).logits, plain, rtol=1e-4, atol=1e-5)


def test_a_model_without_lora_gets_a_warning():
    with pytest.warns(UserWarning):
        assert not liftcore.accelerate(tiny_model()).replaced
