"""LoRA and the head on every supported family, against the model's own forward and autograd."""

import numpy as np
import pytest
import torch
from batches import a_batch, randomised
from tiny import FAMILIES, tiny_model

from liftcore import model as models
from liftcore.errors import LiftError
from liftcore.layers.lora import Adapter, LoraLinear, only_adapter_trains, without_adapter
from liftcore.training.batch import batch_loss


@pytest.mark.parametrize("family", FAMILIES)
def test_loss_and_gradients_equal_the_models_own(rng, family):
    """The fused loss against logits, cross entropy and autograd through plain torch."""
    model = tiny_model(family, seed=int(rng.integers(1 << 30)))
    adapter = randomised(Adapter(model, rank=4, alpha=8))
    adapter.install()
    step = a_batch(rng)
    loss = batch_loss(model, models.head(model), step, step.weights.sum())
    loss.backward()
    ours = adapter.grads.clone()
    adapter.grads.zero_()

    for layer in adapter.layers.values():
        layer.forward = lambda x, m=layer: m.base(x) + m.scaling * (x @ m.lora_a.T @ m.lora_b.T)
    logits = model(input_ids=step.input_ids).logits.double()
    nll = torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), step.labels.flatten(), reduction="none"
    )
    truth = (nll * step.weights.flatten()).sum() / step.weights.sum()
    truth.backward()
    assert loss.item() == pytest.approx(truth.item(), rel=1e-5)
    assert (ours - adapter.grads).norm() / adapter.grads.norm() < 1e-4
    for path, layer in adapter.layers.items():
        assert layer.lora_a.grad.abs().max() > 0, f"no gradient reaches {path}"


@pytest.mark.parametrize("family", FAMILIES)
def test_lora_is_on_every_linear_layer_but_the_head(family):
    model = tiny_model(family)
    linears = [n for n, m in model.named_modules() if isinstance(m, torch.nn.Linear)]
    adapter = Adapter(model, rank=2, alpha=4)
    adapter.install()
    assert sorted(adapter.layers) == sorted(n for n in linears if n != "lm_head")
    assert len(adapter.layers) == 14
    assert not isinstance(model.lm_head, LoraLinear)


def test_layers_spread_over_dtypes_are_refused():
    model = tiny_model()
    model.model.layers[1].mlp.up_proj.half()
    with pytest.raises(LiftError, match="one device"):
        Adapter(model, 2, 4)


def test_no_gradient_for_a_frozen_weight(rng):
    model = tiny_model().requires_grad_(True)
    adapter = Adapter(model, rank=2, alpha=4)
    adapter.install()
    with only_adapter_trains(adapter):
        batch_loss(model, models.head(model), a_batch(rng), 1.0).backward()
    own = {id(p) for layer in adapter.layers.values() for p in (layer.lora_a, layer.lora_b)}
    assert all(p.grad is None for p in model.parameters() if id(p) not in own)
    assert all(p.requires_grad for p in model.parameters()), "the caller's flags come back"


def test_a_new_adapter_changes_nothing_and_removal_restores(rng):
    model = tiny_model()
    ids = torch.from_numpy(rng.integers(3, 200, size=(2, 9)))
    before = model(ids).logits
    modules = dict(model.named_modules())
    adapter = Adapter(model, rank=4, alpha=8)
    adapter.install()
    assert torch.equal(model(ids).logits, before), "B starts at zero"
    randomised(adapter)
    assert not torch.allclose(model(ids).logits, before)
    with without_adapter(model):
        assert torch.equal(model(ids).logits, before)
    adapter.remove()
    assert torch.equal(model(ids).logits, before)
    assert dict(model.named_modules()).keys() == modules.keys()


def test_two_adapters_take_turns(rng):
    model = tiny_model()
    ids = torch.from_numpy(rng.integers(3, 200, size=(1, 9)))
    one, two = (randomised(Adapter(model, rank=4, alpha=8, seed=s)) for s in (1, 2))
    one.install()
    first = model(ids).logits
    two.install()
    assert not torch.allclose(model(ids).logits, first)
    one.install()
    assert torch.equal(model(ids).logits, first)


def test_a_head_that_is_not_understood_is_refused():
    model = tiny_model()
    plain = type(model.lm_head).forward
    model.lm_head.forward = lambda x: plain(model.lm_head, x) ** 3
    with pytest.raises(LiftError, match="logits"):
        models.head(model)


def test_a_soft_cap_is_not_ignored():
    """Were the cap left out, the check of the head would have to notice."""
    model = tiny_model("gemma2")
    model.config.final_logit_softcapping = 0.5
    assert models.head(model).softcap == 0.5
    del model._liftcore_head
    model.config.final_logit_softcapping = None
    own = type(model).forward

    def capped(*args, **kwargs):
        out = own(model, *args, **kwargs)
        out.logits = 0.01 * torch.tanh(out.logits / 0.01)
        return out

    model.forward = capped
    with pytest.raises(LiftError):
        models.head(model)


def test_a_model_without_linear_layers_is_refused():
    class Bare(torch.nn.Module):
        def get_output_embeddings(self):
            return None

        def get_decoder(self):
            return self

    with pytest.raises(LiftError, match=r"no nn.Linear"):
        Adapter(Bare(), 2, 4)


def test_probe_positions_do_not_move(rng):
    from liftcore.report import measure

    model = tiny_model()
    tokens = np.asarray(rng.integers(3, 200, size=150))
    a, b = (measure(model, tokens, prefix=[], probes=8) for _ in range(2))
    assert a == b and len(a.positions) == 8 and max(a.positions) <= 150 - 64


@pytest.mark.parametrize("family", ["granite", "gemma2"])
def test_a_head_with_a_bias(family, rng):
    """Loss, gradients and greedy text of the model's own logits."""
    from liftcore.answer import greedy

    model = tiny_model(family, seed=int(rng.integers(1 << 30)))
    model.lm_head.bias = torch.nn.Parameter(torch.randn(211) * 2, requires_grad=False)
    adapter = randomised(Adapter(model, rank=4, alpha=8))
    adapter.install()
    step = a_batch(rng)
    loss = batch_loss(model, models.head(model), step, step.weights.sum())
    loss.backward()
    ours = adapter.grads.clone()
    adapter.grads.zero_()
    logits = model(input_ids=step.input_ids).logits
    nll = torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), step.labels.flatten(), reduction="none"
    )
    right = (nll * step.weights.flatten()).sum() / step.weights.sum()
    right.backward()
    assert loss.item() == pytest.approx(right.item(), rel=1e-5)
    assert (ours - adapter.grads).norm() / adapter.grads.norm() < 1e-4
    assert torch.equal(greedy(model, step.input_ids[:, :5], 1)[:, 0], logits[:, 4].argmax(-1))
    model.lm_head.bias = None
    assert models.head(model).bias is None, "not the head of before"
