"""accelerate() and restore(): equal numbers on every family, and what is left alone."""

import copy
import functools

import pytest
import torch
from errors_and_seeds import rel
from patch_checks import assert_as_near, count_layers, ids_of, peft_model, run
from peft import LoraConfig, get_peft_model
from tiny import FAMILIES, MORE_FAMILIES, tiny_model
from torch._subclasses.fake_tensor import FakeTensorMode

import liftcore
from liftcore.drop_in import peft_lora as patch_lora
from liftcore.errors import LiftError
from liftcore.layers import groups
from liftcore.layers.lora import Adapter


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", FAMILIES | MORE_FAMILIES)
def test_loss_logits_and_gradients_by_the_error_rule(family, dtype, rng, monkeypatch):
    """Ours is at most twice as far from fp64 as PEFT in the same dtype."""
    changes = {"num_hidden_layers": 1, "seed": int(rng.integers(1 << 30))}
    model = peft_model(family, changes).to(dtype)
    ids = ids_of(rng, 2, 17)
    truth = run(copy.deepcopy(model).double(), ids)
    plain = run(model, ids)
    seen = count_layers(monkeypatch)
    report = liftcore.accelerate(model)
    fused = family == "phi3"
    assert len(report.replaced) == (4 if fused else 7) and report.loss and not report.left
    assert [len(g) for g in report.groups] == ([] if fused else [3, 2])
    seen.clear()
    ours = run(model, ids)
    assert len(seen) == len(report.replaced), "every layer runs in an op, once"
    assert ours.keys() == plain.keys() == truth.keys()
    assert_as_near(ours, plain, truth, 1e-4 if dtype == torch.float32 else 0.05)
    liftcore.restore(model)
    again = run(model, ids)
    assert all(torch.equal(again[name], plain[name]) for name in plain)
    for module in model.modules():
        assert "forward" not in vars(module) and not groups.observed(module)


@pytest.mark.parametrize("case", ["two layers", "fp32 adapters on bf16"])
def test_the_error_rule_in_depth_and_with_masters(case, rng):
    """Masters take their gradients in fp32."""
    model = peft_model(changes={"seed": int(rng.integers(1 << 30))})
    if case != "two layers":
        model.to(torch.bfloat16)
        for p in model.parameters():
            p.data = p.data.float() if p.requires_grad else p.data
    ids = ids_of(rng, 2, 17)
    truth, plain = run(copy.deepcopy(model).double(), ids), run(model, ids)
    report = liftcore.accelerate(model)
    assert len(report.replaced) == 14 and len(report.groups) == 4 and not report.left
    ours = run(model, ids)
    assert {n: t.dtype for n, t in ours.items()} == {n: t.dtype for n, t in plain.items()}
    assert_as_near(ours, plain, truth, 1e-4 if case == "two layers" else 0.05)


def test_nothing_global_is_patched(rng):
    """Only the instance changes: no class, no other model of the same classes."""
    model, other = peft_model(), peft_model()
    kinds = {kind for m in model.modules() for kind in type(m).__mro__} - {object}
    before = {kind: dict(vars(kind)) for kind in kinds}
    untouched = [(m, dict(vars(m))) for m in other.modules()]
    ids = ids_of(rng, 1, 9)
    right = run(other, ids)
    assert liftcore.accelerate(model).loss
    run(model, ids)
    assert all(dict(vars(kind)) == state for kind, state in before.items())
    assert all(dict(vars(m)) == state and not groups.observed(m) for m, state in untouched)
    again = run(other, ids)
    assert all(torch.equal(again[name], value) for name, value in right.items())


@pytest.mark.parametrize("family", FAMILIES | MORE_FAMILIES)
def test_twenty_steps_with_equal_losses(family, rng):
    theirs = peft_model(family, {"num_hidden_layers": 1})
    ours = copy.deepcopy(theirs)
    assert liftcore.accelerate(ours).loss
    ids, losses = ids_of(rng, 2, 12), []
    for model in (theirs, ours):
        trained = [p for p in model.parameters() if p.requires_grad]
        # A larger rate or a smaller eps blows roundings up, PEFT's own as much as ours.
        optimizer = torch.optim.AdamW(trained, 1e-3, eps=1e-4)
        losses.append([])
        for _ in range(20):
            loss = model(input_ids=ids, labels=ids).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses[-1].append(loss.item())
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
    assert losses[1][-1] < losses[1][0] - 0.02, "it learns"


@pytest.mark.parametrize(
    ("settings", "why"), [({"lora_dropout": 0.1}, "dropout"), ({"use_dora": True}, "DoRA")]
)
def test_what_it_cannot_take_is_left_and_named(settings, why, rng):
    model = peft_model(**settings)
    with pytest.warns(UserWarning, match="replaced no LoRA linear"):
        report = liftcore.accelerate(model)
    assert not report.replaced and set(report.left.values()) == {why} and len(report.left) == 14
    assert why in str(report)


def test_a_trained_bias_and_modules_to_save_stay_with_peft(rng):
    settings = dict(target_modules=["q_proj", "o_proj"], bias="lora_only")
    model = peft_model("qwen2", modules_to_save=["lm_head"], **settings)
    report = liftcore.accelerate(model)
    assert {p.rpartition(".")[2] for p in report.replaced} == {"o_proj"}
    left = {path.rpartition(".")[2]: why for path, why in report.left.items()}
    assert left.keys() == {"q_proj", "lm_head", "loss"} and not report.loss
    assert left["q_proj"] == "its base weight or bias is trained"
    assert left["lm_head"] == "modules_to_save"


def test_a_second_call_starts_anew_and_an_embedding_is_left(rng):
    model = peft_model(target_modules=["q_proj", "k_proj", "embed_tokens"])
    ids = ids_of(rng, 1, 9)
    first, right = liftcore.accelerate(model), run(model, ids)
    assert {w for p, w in first.left.items() if "embed" in p} == {"its base is Embedding"}
    assert liftcore.accelerate(model) == first
    assert all(torch.equal(a, right[name]) for name, a in run(model, ids).items())
    liftcore.restore(model)
    liftcore.restore(model)
    assert not any(groups.observed(m) or "forward" in vars(m) for m in model.modules())


def test_an_input_on_another_gpu_is_an_error_that_says_why():
    """As a replica of nn.DataParallel calls the first GPU's model."""
    model = peft_model()
    liftcore.accelerate(model)
    causal = model.get_base_model()
    layer = causal.model.layers[0].mlp.down_proj
    with FakeTensorMode():
        weight = torch.nn.Parameter(torch.empty(211, 48, device="cuda:0"), requires_grad=False)
        causal.model.embed_tokens.weight = layer.base_layer.weight = weight
        ids = torch.empty(1, 4, dtype=torch.long, device="cuda:1")
        own = functools.partial(patch_lora._parts, layer, "default")
        for call in (causal, lambda x: causal(input_ids=x), own):
            with pytest.raises(LiftError, match="DataParallel"):
                call(ids)


def test_several_active_adapters_are_left():
    model = peft_model()
    model.add_adapter("other", LoraConfig(r=4, target_modules=["q_proj"]))
    model.base_model.set_adapter(["default", "other"])
    left = liftcore.accelerate(model).left
    assert set(left.values()) == {"several active adapters"}
    assert {path.rpartition(".")[2] for path in left} == {"q_proj"}


def test_a_patched_or_hooked_base_is_left():
    model = peft_model()
    layers = model.base_model.model.model.layers
    one = layers[0].mlp.up_proj
    one.forward = lambda x: type(one).forward(one, x)
    layers[1].mlp.up_proj.base_layer.register_forward_hook(lambda *a: None)
    left = liftcore.accelerate(model).left
    assert set(left.values()) == {"its forward is patched already", "its base is hooked"}
    liftcore.restore(model)
    assert "forward" in vars(one), "somebody else's patch stays"


@pytest.mark.parametrize("how", ["replaced", "hooked", "patched", "watched before"])
def test_the_activation_of_a_fused_mlp_is_the_models_own(how, rng, monkeypatch):
    """The fused product leaves act_fn out, so it must be the one that was there."""
    model, seen = peft_model(changes={"num_hidden_layers": 1}), []
    mlp, ids = model.base_model.model.model.layers[0].mlp, ids_of(rng, 1, 9)
    own = model(ids).logits
    if how == "watched before":
        mlp.act_fn.register_forward_hook(lambda *a: seen.append(1))
    liftcore.accelerate(model)
    calls = count_layers(monkeypatch)
    if how == "replaced":
        mlp.act_fn = torch.nn.ReLU()
    elif how == "hooked":
        mlp.act_fn.register_forward_hook(lambda m, args, out: out * 2)
    elif how == "patched":
        mlp.act_fn.forward = torch.relu
    seen.clear()
    ours = model(ids).logits
    assert "lora_gate_up" not in calls and calls.count("lora_qkv") == 5, "still a group"
    assert seen == ([1] if how == "watched before" else [])
    liftcore.restore(model)
    torch.testing.assert_close(ours, model(ids).logits)
    assert (rel(ours, own) < 1e-5) is (how == "watched before")


def test_a_model_without_lora_gets_a_warning_and_the_loss(rng):
    model = tiny_model().train()
    ids = ids_of(rng, 1, 9)
    right = model(ids, labels=ids).loss
    with pytest.warns(UserWarning, match="replaced no LoRA linear"):
        report = liftcore.accelerate(model)
    assert report.loss and not report.replaced
    wrapped = get_peft_model(model, LoraConfig(r=4, target_modules=["q_proj", "v_proj"]))
    torch.testing.assert_close(wrapped(input_ids=ids, labels=ids).loss, right)
    report = liftcore.accelerate(wrapped)
    assert len(report.replaced) == 4 and [len(g) for g in report.groups] == [2, 2]
    torch.testing.assert_close(wrapped(input_ids=ids, labels=ids).loss, right)


def test_liftcores_own_adapter(rng, recwarn):
    model = tiny_model().train()
    adapter = Adapter(model, rank=4, alpha=8)
    torch.nn.init.normal_(adapter.values, 0, 0.1)
    adapter.install()
    ids = ids_of(rng, 2, 9)
    plain, before = run(model, ids), adapter.grads.clone()
    report = liftcore.accelerate(model)
    assert report.loss and len(report.left) == 14 and not recwarn.list
    ours = run(model, ids)
    torch.testing.assert_close(ours["loss"], plain["loss"])
    torch.testing.assert_close(adapter.grads, before, rtol=1e-4, atol=1e-6)


def test_groups_that_change_the_result_are_left(rng, monkeypatch):
    model = peft_model().eval()
    ids = ids_of(rng, 1, 9)
    right = model(input_ids=ids).logits
    real = groups.lora_qkv
    monkeypatch.setattr(groups, "lora_qkv", lambda *a: tuple(1.1 * y for y in real(*a)))
    report = liftcore.accelerate(model)
    assert not report.groups and "computes something else" in report.left["groups"]
    torch.testing.assert_close(model(input_ids=ids).logits, right)
    liftcore.restore(model)
    monkeypatch.undo()
    assert liftcore.accelerate(model).groups
