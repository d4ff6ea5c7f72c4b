"""The loss of an accelerated model: equal for every way to ask, and no logits unless asked for."""

import inspect

import pytest
import torch
import transformers
from errors_and_seeds import rel
from peft import LoraConfig, get_peft_model
from tiny import tiny_model
from torch.utils._python_dispatch import TorchDispatchMode

import liftcore
from liftcore.drop_in.loss_output import LossOutput
from liftcore.kernels import head_loss_plain

VOCABULARY = 211


def ids_of(rng, *shape):
    return torch.from_numpy(rng.integers(3, 200, size=shape))


def accelerated(family="llama", **options):
    model = tiny_model(family, num_hidden_layers=1).train()
    model.get_input_embeddings().weight.requires_grad_(True)
    with pytest.warns(UserWarning):
        assert liftcore.accelerate(model, **options).loss
    return model


class Widest(TorchDispatchMode):
    """The most rows of a tensor [*, V] that an op made."""

    rows = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        if isinstance(out, torch.Tensor) and out.ndim and out.shape[-1] == VOCABULARY:
            self.rows = max(self.rows, out.numel() // VOCABULARY)
        return out


def test_no_logits_are_formed_until_they_are_read(rng, monkeypatch):
    monkeypatch.setattr(head_loss_plain, "CHUNK_BYTES", 4 * VOCABULARY * 3)  # 3 rows
    model, ids = accelerated(), ids_of(rng, 2, 60)
    with Widest() as widest:
        out = model(input_ids=ids, labels=ids)
        out.loss.backward()
    # The head's own weight, transposed, has 48 rows.
    assert widest.rows == 48 and "logits" not in set(out)
    assert "logits" in out
    with widest:
        assert out.logits.shape == (2, 60, VOCABULARY)
    assert widest.rows == 120
    assert out.get("logits") is out.logits and out.get("nothing", 3) == 3
    assert torch.equal(out.logits, out["logits"]) and torch.equal(out.logits, out[1])
    assert out[0] is out.loss and out["loss"] is out.loss and out.to_tuple()[0] is out.loss
    with pytest.raises(AttributeError):
        assert out.nothing


@pytest.mark.parametrize(
    "extra",
    [
        {},
        {"num_items_in_batch": 7},
        {"num_items_in_batch": torch.tensor(7)},
        {"ignore_index": 5},
        {"shift_labels": True},
        {"output_hidden_states": True, "output_attentions": True},
        {"use_cache": True},
        {"logits_to_keep": 3},
        {"return_dict": False},
    ],
    ids=lambda extra: "-".join(extra) or "plain",
)
def test_every_way_to_ask_gives_the_models_own_loss(extra, rng):
    model = tiny_model("granite").train()
    model.get_input_embeddings().weight.requires_grad_(True)
    ids = ids_of(rng, 2, 9)
    labels = ids.clone()
    labels[0, :4] = extra.get("ignore_index", -100)
    if "shift_labels" in extra:
        extra = {"shift_labels": labels.roll(2, 1)}
    if "logits_to_keep" in extra:
        labels = labels[:, -3:]
    found = []
    for liftcores in (False, True):
        if liftcores:
            with pytest.warns(UserWarning):
                assert liftcore.accelerate(model).loss
        model.zero_grad()
        out = model(input_ids=ids, labels=labels, **extra)
        out[0].backward()
        found.append((out, model.get_input_embeddings().weight.grad.clone()))
    (theirs, right), (ours, gradient) = found
    assert rel(ours[0], theirs[0]) < 1e-5 and rel(gradient, right) < 1e-5
    if "return_dict" in extra:
        return
    assert type(ours) is (type(theirs) if "logits_to_keep" in extra else LossOutput)
    assert rel(ours.logits, theirs.logits) < 1e-5
    for key in ("hidden_states", "attentions", "past_key_values"):
        assert (ours.get(key) is None) == (theirs.get(key) is None)
    if ours.hidden_states is not None:
        assert all(
            torch.equal(a, b) for a, b in zip(ours.hidden_states, theirs.hidden_states, strict=True)
        )


def test_a_gradient_flows_through_the_logits(rng):
    model, ids = accelerated("gemma2"), ids_of(rng, 1, 8)
    weight = model.get_input_embeddings().weight
    ours = torch.autograd.grad(model(input_ids=ids, labels=ids).logits.square().sum(), weight)
    theirs = torch.autograd.grad(model(input_ids=ids).logits.square().sum(), weight)
    assert rel(ours[0], theirs[0]) < 1e-5


def test_evaluation_gives_logits_unless_told_otherwise(rng):
    ids = ids_of(rng, 2, 8)
    model = accelerated().eval()
    full = model(input_ids=ids, labels=ids)
    assert full.keys() >= {"loss", "logits"} and not isinstance(full, LossOutput)
    model = accelerated(eval_logits=False).eval()
    with torch.no_grad():
        lean = model(input_ids=ids, labels=ids)
    assert isinstance(lean, LossOutput) and rel(lean.loss, full.loss) < 1e-5
    assert rel(lean.logits, full.logits) < 1e-5 and type(lean.logits) is torch.Tensor
    assert lean.get("logits") is lean["logits"] is lean.logits and "logits" in lean
    assert list(lean) == list(full) and torch.equal(lean.to_tuple()[1], lean.logits)
    with torch.no_grad():
        value = dict(model(input_ids=ids, labels=ids).items())["logits"]
        assert torch.equal(value.float().detach(), lean.logits)
    assert torch.equal(torch.cat([value, value]), torch.cat([lean.logits] * 2))
    assert model(input_ids=ids).logits.shape == (2, 8, VOCABULARY)


def test_a_trained_head_gets_its_gradient(rng):
    model, ids = tiny_model().train(), ids_of(rng, 2, 9)
    model.lm_head.weight.requires_grad_(True)
    model(input_ids=ids, labels=ids).loss.backward()
    right = model.lm_head.weight.grad.clone()
    with pytest.warns(UserWarning):
        liftcore.accelerate(model)
    model.zero_grad()
    out = model(input_ids=ids, labels=ids)
    out.loss.backward()
    assert isinstance(out, LossOutput) and rel(model.lm_head.weight.grad, right) < 1e-5


@pytest.mark.parametrize("trained", [False, True])
def test_a_head_with_a_bias_is_taken(trained, rng):
    model, ids = tiny_model("granite").train(), ids_of(rng, 2, 9)
    model.lm_head.bias = torch.nn.Parameter(torch.randn(VOCABULARY) * 3)
    wanted = [model.get_input_embeddings().weight.requires_grad_(True)]
    if trained:
        wanted += [model.lm_head.weight.requires_grad_(True), model.lm_head.bias]
    found = []
    for accelerate in (False, True):
        if accelerate:
            with pytest.warns(UserWarning):
                assert liftcore.accelerate(model).loss
        out = model(input_ids=ids, labels=ids)
        found.append([out.loss, out.logits, *torch.autograd.grad(out.loss, wanted)])
    assert isinstance(out, LossOutput)
    assert all(rel(ours, right) < 1e-5 for right, ours in zip(*found, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("family", ["bart", "pegasus", "marian", "blenderbot", "llama"])
def test_a_loss_that_is_not_shifted_is_told_from_one_that_is(family, dtype):
    """Random models say nearly the same everywhere: chance must not decide."""
    if family == "llama":
        model = tiny_model(dtype=dtype)
    else:
        sizes = dict(vocab_size=VOCABULARY, d_model=16, pad_token_id=0, decoder_layers=1)
        sizes |= dict(decoder_attention_heads=2, decoder_ffn_dim=16, max_position_embeddings=64)
        config = transformers.CONFIG_MAPPING[family](**sizes, is_decoder=True)
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=dtype).eval()
    ids = torch.arange(5, 13)[None]
    right = model(input_ids=ids, labels=ids).loss.float()
    with pytest.warns(UserWarning):
        report = liftcore.accelerate(model)
    assert report.loss is (family == "llama") and (report.loss or report.left["loss"])
    ours = model(input_ids=ids, labels=ids).loss.float()
    torch.testing.assert_close(ours, right, rtol=2e-3, atol=1e-3)


@pytest.mark.parametrize("count", [0, torch.tensor(0), torch.tensor(0.0), None])
def test_no_scored_token_is_a_loss_of_zero(count, rng):
    model, ids = accelerated(), ids_of(rng, 1, 6)
    extra = {} if count is None else {"num_items_in_batch": count}
    loss = model(input_ids=ids, labels=torch.full_like(ids, -100), **extra).loss
    loss.backward()
    assert loss.item() == 0 and model.get_input_embeddings().weight.grad.abs().max() == 0


@pytest.mark.parametrize("case", ["loss function", "head", "class", "lora on the head"])
def test_what_is_no_plain_causal_loss_is_left_and_named(case, rng):
    model, ids = tiny_model().train(), ids_of(rng, 2, 8)
    if case == "loss function":
        model.loss_function = lambda logits, labels, **k: logits.square().mean()
    elif case == "head":
        model.lm_head.register_forward_hook(lambda m, a, out: out**3)
    elif case == "lora on the head":
        config = LoraConfig(r=2, target_modules=["lm_head"], init_lora_weights=False)
        model = get_peft_model(model, config)
    else:

        class Weighted(type(model)):
            def forward(self, input_ids=None, labels=None, logits_to_keep=0, **kwargs):
                call = dict(input_ids=input_ids, logits_to_keep=logits_to_keep, **kwargs)
                out = super().forward(labels=labels, **call)
                out.loss = None if out.loss is None else 2 * out.loss
                return out

        model.__class__ = Weighted
    right = model(input_ids=ids, labels=ids).loss
    if case == "lora on the head":
        report = liftcore.accelerate(model)
    else:
        with pytest.warns(UserWarning):
            report = liftcore.accelerate(model)
    assert not report.loss and report.left["loss"]
    torch.testing.assert_close(model(input_ids=ids, labels=ids).loss, right)


def test_a_loss_function_or_a_hook_of_later_is_respected(rng):
    model, ids = accelerated(), ids_of(rng, 1, 8)
    handle = model.lm_head.register_forward_hook(lambda m, a, out: out * 0)
    assert model(input_ids=ids, labels=ids).loss.item() == pytest.approx(5.3519, abs=1e-3)
    handle.remove()
    model.loss_function = lambda logits, labels, **k: logits.sum() * 0 + 9
    assert model(input_ids=ids, labels=ids).loss.item() == 9


@pytest.mark.parametrize("kind", ["forward", "full_backward"])
def test_a_hook_on_the_body_is_respected(kind, rng):
    """One of before runs before ours; with one of later the model's own path is taken."""
    model, ids, seen = tiny_model(num_hidden_layers=1).train(), ids_of(rng, 1, 8), []
    model.get_input_embeddings().weight.requires_grad_(True)

    def double(body, args, output):
        output.last_hidden_state = output.last_hidden_state * 2

    def note(body, *gradients):
        seen.append(1)

    def run():
        out = model(input_ids=ids, labels=ids)
        out.loss.backward()
        return out.loss, out.logits, seen.copy()

    model.model.register_forward_hook(double)
    with pytest.warns(UserWarning):
        assert liftcore.accelerate(model).loss
    before = run()
    handle = getattr(model.model, f"register_{kind}_hook")(double if kind == "forward" else note)
    after = run()
    assert isinstance(model(input_ids=ids, labels=ids), LossOutput) is False
    liftcore.restore(model)
    seen.clear()
    for ours, theirs in zip(after, run(), strict=True):
        torch.testing.assert_close(ours, theirs)
    handle.remove()
    for ours, theirs in zip(before[:2], run()[:2], strict=True):
        torch.testing.assert_close(ours, theirs)


def test_the_signature_stays():
    """Trainer reads it, to know the columns of a data set and whether the loss takes counts."""
    model = tiny_model()
    right = inspect.signature(model.forward)
    with pytest.warns(UserWarning):
        liftcore.accelerate(model)
    assert inspect.signature(model.forward) == right


def test_a_model_that_changed_its_class_is_restored_and_taken_again(rng):
    """FSDP2 gives a module a class of its own."""
    model, ids = accelerated(), ids_of(rng, 1, 8)
    model.__class__ = type("Sharded", (type(model),), {})
    liftcore.restore(model)
    assert "forward" not in vars(model)
    with pytest.warns(UserWarning):
        assert liftcore.accelerate(model).loss
    assert isinstance(model(input_ids=ids, labels=ids), LossOutput)


def test_mixture_of_experts_keep_their_own_loss(rng):
    config = transformers.MixtralConfig(
        vocab_size=VOCABULARY, hidden_size=16, intermediate_size=24, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=1, num_local_experts=3,
    )  # fmt: skip
    model = transformers.MixtralForCausalLM(config).train()
    ids = ids_of(rng, 2, 8)
    with pytest.warns(UserWarning):
        liftcore.accelerate(model)
    found = []
    for _ in range(2):
        call = [
            model(input_ids=ids, labels=ids, output_router_logits=r).loss for r in (True, False)
        ]
        found.append(call)
        liftcore.restore(model)
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs)
