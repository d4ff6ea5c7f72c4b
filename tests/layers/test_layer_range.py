"""LoRA on some decoder layers and linear layers only, and a frozen A."""

import json

import numpy as np
import pytest
import torch
from steps import CONFIG, Run
from tiny import tiny_model

from liftcore import adapter as adapters
from liftcore.errors import LiftError, UsageError
from liftcore.kernels.reference import lora_linear
from liftcore.layers import depth
from liftcore.layers.lora import Adapter, only_adapter_trains
from liftcore.model import body
from liftcore.training.graph import GraphRunner
from liftcore.training.memory_plan import Activations, measure
from liftcore.training.runner import Runner
from liftcore.training.source import segments_alone

PART = dict(layers=(2, 3), train_a=False)


def a_model(**changes):
    return tiny_model(num_hidden_layers=5, initializer_range=0.2, **changes)


@pytest.mark.parametrize(
    ("setting", "count", "right"),
    [
        (0.5, 30, range(15, 30)),
        (0.5, 5, range(2, 5)),
        (0.01, 4, range(3, 4)),
        (1.0, 3, range(3)),
        ((1, 2), 5, range(1, 3)),
        ((-2, -1), 5, range(3, 5)),
        (None, 4, range(4)),
    ],
)
def test_what_the_setting_means(setting, count, right):
    assert depth.among(count, setting) == right


@pytest.mark.parametrize("setting", [(1, 5), (3, 2), (-6, 1)])
def test_layers_that_are_not_there(setting):
    with pytest.raises(UsageError, match="layers 0 to 4"):
        Adapter.of(a_model(), CONFIG.replace(layers=setting))


def test_below_the_first_layer_nothing_is_kept():
    model = a_model()
    adapter = Adapter.of(model, CONFIG.replace(**PART))
    assert {p.split(".")[2] for p in adapter.layers} == {"2", "3"}
    adapter.install()
    # As code for gradient checkpointing does.
    hook = model.get_input_embeddings().register_forward_hook(lambda m, a, y: y.requires_grad_())
    inputs = []
    model.model.layers[2].register_forward_pre_hook(lambda m, args: inputs.append(args[0]))
    with only_adapter_trains(adapter):
        used = measure(model, 16)
    hook.remove()
    assert used.layers[:2] == [0, 0] and all(used.layers[2:])
    assert not inputs[0].requires_grad


def test_layers_below_are_not_computed_again():
    used = Activations([0, 0, 10, 10], rest=5, hidden=3, first=2)
    # One layer is kept, the input of the other, and the two that the backward holds.
    assert used.peak(1, 2) == (10 + 3 + 5) + 10 + 10
    assert used.longer(2).first == 2


@pytest.mark.parametrize("kind", [Runner, GraphRunner])
@pytest.mark.parametrize("recompute", [0, 1])
@pytest.mark.parametrize("exclude", [(), ("down_proj",), ("k_proj", "mlp.up_proj")])
def test_a_stays_and_the_gradient_of_b_is_that_of_autograd(rng, kind, recompute, exclude):
    config = CONFIG.replace(**PART, exclude_modules=exclude)
    source = segments_alone(rng.integers(3, 200, 120), config, [])
    run = Run(kind, source, num_hidden_layers=5)
    run.runner.use(run.runner.plan.cut(run.runner.rows, 2, recompute))
    frozen = run.adapter.frozen.clone()
    assert run.adapter.values.numel() == sum(m.lora_b.numel() for m in run.adapter.layers.values())
    run.take()
    assert torch.equal(run.adapter.frozen, frozen) and frozen.any()
    assert run.adapter.values.any()
    # The same steps by a plain adapter whose A has no rate.
    plain = _steps_in_plain_torch(source.config, frozen, run)
    torch.testing.assert_close(run.adapter.values, plain, rtol=1e-4, atol=1e-5)


def _steps_in_plain_torch(config, frozen, run):
    from liftcore.training.batch import batch_loss, make
    from liftcore.training.optimizer import MasterAdamW

    model = tiny_model(initializer_range=0.2, num_hidden_layers=5)
    adapter = Adapter.of(model, config)
    adapter.frozen.copy_(frozen)
    for layer in adapter.layers.values():

        def forward(x, layer=layer):
            return lora_linear(x, *layer.parts())

        layer.forward = forward
    for group in adapter.groups:
        assert len(group.members) > 1
    adapter.groups = []
    adapter.install()
    optimizer = MasterAdamW(adapter, config)
    again = segments_alone(run.source.objectives[0].tokens, config, [])
    for step in again.steps():
        batch_loss(model, run.runner.head, make(step.samples), step.normaliser, None).backward()
        optimizer.clip()
        optimizer.step(step.rate)
    return adapter.values


def test_the_product_is_fused_beside_a_plain_last_layer():
    model = a_model()
    every = Adapter.of(model, CONFIG)
    some = Adapter.of(model, CONFIG.replace(exclude_modules=("down_proj",)))
    assert some.groups == every.groups and all(g.down for g in some.groups[1::2])
    assert {*every.layers} - {*some.layers} == {g.down for g in every.groups[1::2]}
    assert "5 named down_proj (exclude_modules)" in some.targets.note
    apart = Adapter.of(model, CONFIG.replace(exclude_modules=("k_proj", "layers.1.mlp.up_proj")))
    members = {g.members for g in apart.groups}
    own = "model.layers.{}.self_attn.{}_proj"
    assert {tuple(own.format(n, x) for x in "qv") for n in range(5)} <= members
    assert len(members) == 9, "a gate alone is no group"


@pytest.mark.parametrize("exclude", ["down_proj", ("",), (3,)])
def test_exclude_modules_is_a_list_of_names(exclude):
    with pytest.raises(UsageError, match="exclude_modules is no list of names"):
        CONFIG.replace(exclude_modules=exclude)


def test_something_must_be_left():
    names = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    with pytest.raises(LiftError, match="exclude_modules"):
        Adapter.of(a_model(), CONFIG.replace(exclude_modules=names))


@pytest.mark.parametrize("exclude", [(), ("down_proj",), ("k_proj", "mlp.up_proj")])
def test_peft_gives_the_same_logits(tmp_path, exclude):
    from peft import PeftModel

    model = a_model()
    adapter = Adapter.of(model, CONFIG.replace(**PART, exclude_modules=exclude))
    with torch.no_grad():
        adapter.values.normal_(0, 0.3)
    adapters.write(adapter, tmp_path)
    settings = json.loads((tmp_path / adapters.CONFIG).read_text())
    assert settings["layers_to_transform"] == [2, 3] and settings["layers_pattern"] == ["layers"]
    ids = torch.arange(3, 40)[None]
    own = model(ids).logits
    adapter.install()
    right = model(ids).logits
    adapter.remove()
    assert not torch.allclose(own, right, atol=1e-2)
    again = adapters.read(model, tmp_path, train_a=False)
    assert again.numbers == [2, 3] and again.layers.keys() == adapter.layers.keys()
    assert adapters.left_out(model, tmp_path) == exclude
    again.install()
    assert torch.equal(model(ids).logits, right)
    again.remove()
    theirs = PeftModel.from_pretrained(a_model(), tmp_path)
    torch.testing.assert_close(theirs(ids).logits, right, rtol=1e-4, atol=1e-5)


def test_peft_settings_of_other_layers_are_refused(tmp_path):
    model = a_model()
    adapters.write(Adapter.of(model, CONFIG.replace(**PART)), tmp_path)
    file = tmp_path / adapters.CONFIG
    settings = json.loads(file.read_text())
    for changes in ({"layers_to_transform": [1, 2]}, {"layers_pattern": ["h"]}):
        file.write_text(json.dumps({**settings, **changes}))
        with pytest.raises(LiftError):
            adapters.read(model, tmp_path)
    file.write_text(json.dumps({**settings, "layers_pattern": None}))
    assert adapters.read(model, tmp_path).numbers == [2, 3]


def adapted(**settings):
    """(a model that PEFT has adapted, B drawn at random; token ids; its logits)."""
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(a_model(), LoraConfig(r=4, **settings))
    for name, p in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(p, 0, 0.3)
    ids = torch.arange(3, 40)[None]
    return model, ids, model(ids).logits


def test_accelerate_fuses_the_product_beside_a_plain_last_layer():
    import liftcore

    model, ids, right = adapted(target_modules=["gate_proj", "up_proj"])
    assert len(liftcore.accelerate(model).groups) == 5
    assert "forward" in vars(model.get_submodule("base_model.model.model.layers.0.mlp"))
    torch.testing.assert_close(model(ids).logits, right, rtol=1e-4, atol=1e-5)


def test_accelerate_takes_peft_on_some_layers():
    import liftcore

    names = ["q_proj", "v_proj", "up_proj"]
    model, ids, right = adapted(target_modules=names, layers_to_transform=[2, 3])
    assert len(liftcore.accelerate(model).replaced) == 6
    torch.testing.assert_close(model(ids).logits, right, rtol=1e-4, atol=1e-5)


def test_the_forward_of_the_body_is_that_of_all_rows(rng):
    """A number of layers from the middle: those above pass a gradient on and train nothing."""
    model = a_model()
    adapter = Adapter.of(model, CONFIG.replace(layers=(1, 2)))
    adapter.install()
    with only_adapter_trains(adapter):
        body(model)(torch.arange(3, 20)[None]).last_hidden_state.sum().backward()
    assert adapter.grads.any() and np.isfinite(adapter.grads.numpy()).all()
