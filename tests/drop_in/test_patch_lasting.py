"""An accelerated model stays a model: merged, switched, saved, copied, compiled, restored."""

import copy
import gc
import io
import weakref

import pytest
import torch
from errors_and_seeds import rel
from patch_checks import assert_as_near, count_layers, ids_of, peft_model, run
from peft import LoraConfig
from tiny import tiny_model

import liftcore
from liftcore.drop_in import peft_lora as patch_lora
from liftcore.drop_in.loss_output import LossOutput
from liftcore.layers import groups


def test_switching_disabling_and_adding_adapters_after_acceleration(rng, monkeypatch):
    model = peft_model(changes={"num_hidden_layers": 1})
    for name, extra in (
        ("other", {}),
        ("wet", {"lora_dropout": 0.5}),
        ("dora", {"use_dora": True}),
    ):
        config = LoraConfig(
            r=2, lora_alpha=8, target_modules=["q_proj"], init_lora_weights=False, **extra
        )
        model.add_adapter(name, config)
    theirs, ids = copy.deepcopy(model), ids_of(rng, 1, 9)
    report = liftcore.accelerate(model)
    assert len(report.replaced) == 7
    seen = count_layers(monkeypatch)
    # With the default one: a q/k/v of 3, a gate/up of 2, o and down.
    for name, layers in (("default", 7), ("other", 1), ("dora", 0), ("default", 7)):
        model.set_adapter(name)
        theirs.set_adapter(name)
        seen.clear()
        torch.testing.assert_close(model(ids).logits, theirs(ids).logits)
        assert len(seen) == layers, name
    with model.disable_adapter(), theirs.disable_adapter():
        seen.clear()
        assert torch.equal(model(ids).logits, theirs(ids).logits) and not seen
    model.set_adapter("wet")
    theirs.set_adapter("wet")
    for mode, layers in ((True, 0), (False, 1)):
        seen.clear()
        torch.manual_seed(0)
        got = model.train(mode)(ids).logits
        torch.manual_seed(0)
        torch.testing.assert_close(got, theirs.train(mode)(ids).logits)
        assert len(seen) == layers, "dropout in training is PEFT's own business"


def test_a_layer_is_taken_when_one_of_its_adapters_fits(rng, monkeypatch):
    model = peft_model(lora_dropout=0.5, changes={"num_hidden_layers": 1})
    dry = LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
    model.add_adapter("dry", dry)
    report = liftcore.accelerate(model)
    assert [path.rpartition(".")[2] for path in report.replaced] == ["q_proj"]
    seen = count_layers(monkeypatch)
    for name, layers in (("default", 0), ("dry", 1)):
        model.set_adapter(name)
        model(ids_of(rng, 1, 9))
        assert len(seen) == layers


@pytest.mark.parametrize("how", ["merge_and_unload", "unload", "merge_adapter"])
def test_merging_after_acceleration(rng, how):
    model = peft_model()
    ids = ids_of(rng, 1, 9)
    other = copy.deepcopy(model)
    right = (getattr(other, how)() or other)(ids).logits
    liftcore.accelerate(model)
    model(ids)
    merged = getattr(model, how)() or model
    torch.testing.assert_close(merged(ids).logits, right, rtol=1e-4, atol=1e-5)
    liftcore.restore(merged)
    torch.testing.assert_close(merged(ids).logits, right, rtol=1e-4, atol=1e-5)


def test_unloaded_layers_are_freed_without_restore():
    model = peft_model()
    liftcore.accelerate(model)
    layers = [weakref.ref(m) for m in model.modules() if patch_lora.is_lora(m)]
    plain = model.merge_and_unload()
    del model
    gc.collect()
    assert len(layers) == 14 and not any(layer() for layer in layers)
    liftcore.restore(plain)
    assert not any(groups.observed(m) or "forward" in vars(m) for m in plain.modules())


@pytest.mark.parametrize("family", ["llama", "phi3"])
def test_restore_leaves_nothing_behind(family, rng):
    model = peft_model(family)

    def state():
        return {
            name: {k: dict(v) if isinstance(v, dict) else v for k, v in vars(module).items()}
            for name, module in model.named_modules()
        }

    before = state()
    assert liftcore.accelerate(model).loss and state() != before
    run(model, ids_of(rng, 1, 9))
    liftcore.restore(model)
    assert state() == before


def test_saved_and_loaded_by_peft(rng, tmp_path):
    from peft import PeftModel

    model = peft_model()
    names = set(model.state_dict())
    liftcore.accelerate(model)
    assert set(model.state_dict()) == names
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(tiny_model(), tmp_path).eval()
    ids = ids_of(rng, 1, 9)
    right = model.eval()(ids).logits
    torch.testing.assert_close(loaded(ids).logits, right)
    assert len(liftcore.accelerate(loaded).replaced) == 14
    torch.testing.assert_close(loaded(ids).logits, right)


def test_generate_and_deep_copies(rng):
    model = peft_model().eval()
    ids = ids_of(rng, 2, 7)
    settings = dict(max_new_tokens=6, do_sample=False, pad_token_id=0, eos_token_id=None)
    right = model.generate(input_ids=ids, **settings)
    liftcore.accelerate(model)
    other = copy.deepcopy(model)
    assert torch.equal(model.generate(input_ids=ids, **settings), right)
    for p in model.parameters():
        p.data.zero_()
    assert torch.equal(other.generate(input_ids=ids, **settings), right)
    liftcore.restore(other)
    assert not any(groups.observed(m) or "forward" in vars(m) for m in other.modules())


def test_a_pickled_model_is_accelerated_and_can_be_restored(rng, monkeypatch):
    model, ids = peft_model(changes={"num_hidden_layers": 1}), ids_of(rng, 1, 9)
    plain = run(model, ids)
    liftcore.accelerate(model)
    right, file = run(model, ids), io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=False)
    for p in model.parameters():
        p.data.zero_()
    seen = count_layers(monkeypatch)
    ours = loaded(input_ids=ids, labels=ids)
    assert seen.count("lora_qkv") == 3 and seen.count("lora_gate_up") == 2 and len(seen) == 7
    assert isinstance(ours, LossOutput)
    assert all(torch.equal(a, right[name]) for name, a in run(loaded, ids).items())
    liftcore.restore(loaded)
    assert not any(groups.observed(m) or "forward" in vars(m) for m in loaded.modules())
    assert all(torch.equal(a, plain[name]) for name, a in run(loaded, ids).items())


def test_a_forward_wrapped_by_others_survives_restore(rng, monkeypatch):
    """Somebody kept our forward: after restore() it must act as the model's own."""
    model = peft_model()
    ids = ids_of(rng, 1, 9)
    right = model(input_ids=ids, labels=ids)
    liftcore.accelerate(model)
    causal = model.get_base_model()
    kept = causal.forward
    causal.forward = lambda *a, **k: kept(*a, **k)
    layer = causal.model.layers[0].mlp.down_proj
    inner = layer.forward
    layer.forward = lambda x: inner(x)
    assert model(input_ids=ids, labels=ids).loss.item() == pytest.approx(right.loss.item())
    liftcore.restore(model)
    seen = count_layers(monkeypatch)
    after = model(input_ids=ids, labels=ids)
    assert not seen
    assert torch.equal(after.loss, right.loss) and torch.equal(after.logits, right.logits)


@pytest.mark.parametrize("reentrant", [True, False])
def test_gradient_checkpointing_with_autocast(rng, reentrant):
    model = peft_model()
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    model.enable_input_require_grads()
    ids = ids_of(rng, 2, 9)
    with torch.autocast("cpu", torch.bfloat16):
        plain = run(model, ids)
        assert liftcore.accelerate(model).loss
        ours = run(model, ids)
    truth = run(copy.deepcopy(model).double(), ids)
    # torch 2.7 loses gradients of plain PEFT here; a larger slack alone bounds ours then.
    slack = 0.05 if set(plain) == set(truth) else 0.15
    assert_as_near(ours, {**truth, **plain}, truth, slack)
    assert all(ours[n].dtype == plain[n].dtype for n in plain)


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compiled_is_equal(backend, rng):
    model = peft_model(changes={"num_hidden_layers": 1})
    liftcore.accelerate(model)
    ids = ids_of(rng, 1, 9)
    right = run(model, ids)
    ours = run(torch.compile(model, backend=backend), ids)
    for name, value in right.items():
        assert rel(ours[name.replace("base_model", "_orig_mod.base_model", 1)], value) < 1e-5, name
