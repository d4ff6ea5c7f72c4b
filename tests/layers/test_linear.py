"""Which layers are plain linear ones, for absorb and for accelerate."""

import copy

import pytest
import torch
from batches import a_batch, randomised
from errors_and_seeds import rel
from patch_checks import assert_as_near, ids_of, run
from peft import LoraConfig, get_peft_model
from tiny import tiny_family, tiny_model
from torch import nn
from torch.nn.utils import parametrize

import liftcore
from liftcore import model as models
from liftcore.layers.lora import Adapter
from liftcore.training.batch import batch_loss


class Scaled(nn.Linear):
    def forward(self, x):
        return super().forward(x) * 0.25


class Clamped(nn.Linear):
    def forward(self, x):
        return super().forward(x).clamp(-50, 50)


class ClampedFarOut(nn.Linear):
    def forward(self, x):
        return super().forward(x).clamp(-5e4, 5e4)


class CalledOtherwise(nn.Linear):
    def __call__(self, x):
        return super().__call__(x) * 0.25


class NoisyInTraining(nn.Linear):
    def forward(self, x):
        return super().forward(x * (1 + 0.1 * torch.rand_like(x)) if self.training else x)


class Switched(nn.Linear):
    def forward(self, x, factor=1.0):
        return super().forward(x) * factor


class OtherWords(nn.Linear):
    def forward(self, x):
        return torch.einsum("...k,nk->...n", x, self.weight)


class Named(nn.Linear):
    """A subclass that changes nothing."""


class Doubled(nn.Module):
    def forward(self, weight):
        return 2 * weight


def a_model(kind=None, change=None):
    model = tiny_model()
    for layer in model.model.layers:
        layer.mlp.up_proj.__class__ = kind or nn.Linear
        if change is not None:
            change(layer.mlp.up_proj)
    return model


def a_hook(layer):
    layer.register_forward_hook(lambda module, args, y: y * 0.25)


def a_patch(layer):
    layer.forward = lambda x: nn.Linear.forward(layer, x) * 0.25


def a_parametrization(layer):
    parametrize.register_parametrization(layer, "weight", Doubled())


OTHER = [
    (Scaled, None),
    (Clamped, None),
    (ClampedFarOut, None),
    (CalledOtherwise, None),
    (NoisyInTraining, None),
    (Switched, None),
    (None, a_hook),
    (None, a_patch),
    (None, a_parametrization),
]


@pytest.mark.parametrize(("kind", "change"), OTHER)
def test_a_layer_that_computes_something_else_is_left_by_both(kind, change, rng):
    model, ids = a_model(kind, change), ids_of(rng, 1, 9)
    state, own = torch.get_rng_state(), model(ids).logits
    adapter = Adapter(model, 2, 4)
    assert len(adapter.layers) == 12 and not any("up_proj" in path for path in adapter.layers)
    assert len(adapter.targets.left) == 2 and "up_proj" in adapter.targets.note
    adapter.install()
    assert rel(model(ids).logits, own) < 1e-5
    adapter.remove()
    assert torch.equal(torch.get_rng_state(), state), "the caller's random numbers stay"

    config = LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False)
    theirs = get_peft_model(a_model(kind, change), config)
    report = liftcore.accelerate(theirs)
    assert {path.rpartition(".")[2] for path in report.left} >= {"up_proj"}
    assert len(report.replaced) == 12


@pytest.mark.parametrize("kind", [OtherWords, Named])
def test_a_plain_layer_in_other_words_is_taken(kind):
    assert len(Adapter(a_model(kind), 2, 4).layers) == 14


@pytest.mark.parametrize("family", ["gpt2", "falcon"])
def test_gradients_equal_the_models_own(family, rng):
    model = tiny_family(family, seed=int(rng.integers(1 << 30)))
    adapter = randomised(Adapter(model, rank=4, alpha=8))
    assert len(adapter.layers) == 8 and not adapter.targets.left
    adapter.install()
    step = a_batch(rng)
    batch_loss(model, models.head(model), step, step.weights.sum()).backward()
    ours = adapter.grads.clone()
    adapter.grads.zero_()
    for layer in adapter.layers.values():
        layer.forward = lambda x, m=layer: m.base(x) + m.scaling * (x @ m.lora_a.T @ m.lora_b.T)
    logits = model(input_ids=step.input_ids).logits
    nll = nn.functional.cross_entropy(logits.flatten(0, 1), step.labels.flatten(), reduction="none")
    ((nll * step.weights.flatten()).sum() / step.weights.sum()).backward()
    assert rel(ours, adapter.grads) < 1e-4


@pytest.mark.filterwarnings("ignore:fan_in_fan_out")
@pytest.mark.parametrize("family", ["gpt2", "falcon"])
def test_accelerate_takes_them(family, rng):
    config = LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False)
    model = get_peft_model(tiny_family(family), config)
    ids = ids_of(rng, 2, 13)
    truth, plain = run(copy.deepcopy(model).double(), ids), run(model, ids)
    report = liftcore.accelerate(model)
    assert len(report.replaced) == 8 and report.loss and not report.left
    assert_as_near(run(model, ids), plain, truth, 1e-4)
    liftcore.restore(model)
    again = run(model, ids)
    assert all(torch.equal(again[name], plain[name]) for name in plain)
