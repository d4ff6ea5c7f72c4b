"""accelerate() and restore(): equal numbers on every family, and what is left alone."""

import copy
import functools
import gc
import io
import weakref

import pytest
import torch
from errors_and_seeds import rel
from peft import LoraConfig, get_peft_model
from tiny import FAMILIES, MORE_FAMILIES, tiny_model
from torch._subclasses.fake_tensor import FakeTensorMode

import liftcore
from liftcore import groups, loss_output, patch_lora
from liftcore.errors import LiftError
from liftcore.lora import Adapter


def peft_model(family="llama", changes=None, **settings):
    settings = {"target_modules": "all-linear", "init_lora_weights": False, **settings}
    model = tiny_model(family, **(changes or {}))
    return get_peft_model(model, LoraConfig(r=4, lora_alpha=8, **settings)).train()


def ids_of(rng, *shape):
    return torch.from_numpy(rng.integers(3, 200, size=shape))


def run(model, ids, **inputs):
    """Loss, logits and gradients by name."""
    labels = ids.clone()
    labels[0, :5] = -100
    for p in model.parameters():
        if p.grad is not None:
            p.grad.zero_()
    out = model(input_ids=ids, labels=labels, **inputs)
    out.loss.backward()
    gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    return {"loss": out.loss.detach(), "logits": out.logits.detach(), **gradients}


def assert_as_near(ours, plain, truth, slack):
    """All of ours together are at most twice as far from the truth as theirs, with a slack.

    A single tensor of a model as small as these depends on the luck of a few roundings in bf16:
    there the slack is five times as large, and still far below what a wrong formula gives.
    """

    def whole(values):
        return torch.cat([values[n].double().flatten() / truth[n].norm() for n in truth])

    right = whole(truth)
    assert rel(whole(ours), right) <= 2 * rel(whole(plain), right) + slack
    for name, right in truth.items():
        assert rel(ours[name], right) <= 2 * rel(plain[name], right) + 5 * slack, name


def count_layers(monkeypatch):
    """A list that gets an entry for each LoRA linear that an op computes."""
    seen = []

    def watch(module, name, layers):
        real = getattr(module, name)

        def counting(x, weights, *rest, **kwargs):
            seen.extend([name] * (layers or len(weights)))
            return real(x, weights, *rest, **kwargs)

        monkeypatch.setattr(module, name, counting)

    watch(patch_lora, "lora_linear", 1)
    watch(patch_lora, "add_lora", 1)
    watch(groups, "lora_qkv", None)
    watch(groups, "lora_gate_up", None)
    return seen


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
        own = functools.partial(patch_lora._arguments, layer, "default")
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
    assert isinstance(ours, loss_output.LossOutput)
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
    assert_as_near(ours, plain, truth, 0.05)
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
