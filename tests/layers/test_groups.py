"""q/k/v and gate/up in an adapter: found by structure, equal to single layers, nothing kept."""

import copy
import gc
import weakref

import pytest
import torch
from errors_and_seeds import rel
from tiny import FAMILIES, tiny_model

from liftcore import model as models
from liftcore.config import LiftConfig
from liftcore.kernels.lora_plain import stack
from liftcore.layers import groups
from liftcore.layers.lora import Adapter, without_adapter
from liftcore.objectives.segments import Segments
from liftcore.training.batch import batch_loss, make


def an_adapter(model, grouped=True):
    adapter = Adapter(model, rank=4, alpha=8)
    with torch.no_grad():
        adapter.values.normal_(0, 0.1, generator=torch.Generator().manual_seed(5))
    if not grouped:
        adapter.groups = []
    adapter.install()
    return adapter


def ids_of(rng, *shape):
    return torch.from_numpy(rng.integers(3, 200, size=shape))


@pytest.fixture
def calls(monkeypatch):
    """The names of the grouped ops that ran."""
    seen = []
    for name in ("lora_qkv", "lora_gate_up"):
        real = getattr(groups, name)
        monkeypatch.setattr(
            groups, name, lambda *a, _n=name, _r=real, **k: seen.append(_n) or _r(*a, **k)
        )
    return seen


@pytest.mark.parametrize("family", FAMILIES)
def test_groups_of_every_family(family, rng, calls):
    # fp64: in fp32 some random models magnify the rounding of one op beyond any narrow bound.
    model = tiny_model(family, seed=int(rng.integers(1 << 30)), dtype=torch.float64)
    adapter = an_adapter(model)
    for i in range(2):
        layer = f"model.layers.{i}"
        qkv, mlp = adapter.groups[2 * i : 2 * i + 2]
        assert qkv.members == tuple(f"{layer}.self_attn.{n}_proj" for n in "qkv")
        assert mlp.members == (f"{layer}.mlp.gate_proj", f"{layer}.mlp.up_proj")
        assert mlp.down == f"{layer}.mlp.down_proj" and qkv.down is None
        assert mlp.activation == ("gelu_tanh" if "gemma" in family else "silu")
    tokens = rng.integers(3, 200, size=30)
    config = LiftConfig(segment_length=16, stride=6, schedule="overlap")
    step = make(Segments(tokens, config, []).samples(0))
    found = []
    for grouped in (True, False):
        adapter.remove()
        adapter = an_adapter(model, grouped)
        logits = model(input_ids=step.input_ids).logits
        loss = batch_loss(model, models.head(model), step, step.weights.sum())
        loss.backward()
        gradients = [p.grad for m in adapter.layers.values() for p in (m.lora_a, m.lora_b)]
        found.append([logits, loss, *gradients])
        assert bool(calls) is grouped
        calls.clear()
    assert max(rel(a, b) for a, b in zip(*found, strict=True)) < 1e-5


def test_the_a_of_a_group_lie_together_with_their_gradients():
    adapter = an_adapter(tiny_model())
    for group in adapter.groups:
        members = [adapter.layers[path] for path in group.members]
        for flat, tensors in (
            (adapter.values, [m.lora_a for m in members]),
            (adapter.grads, [m.lora_a.grad for m in members]),
        ):
            together = stack(tensors)
            assert together.untyped_storage().data_ptr() == flat.untyped_storage().data_ptr()
            assert torch.equal(together, torch.cat([t.detach() for t in tensors]))
    adapter.values.copy_(torch.arange(adapter.values.numel()))
    parameters = [p for m in adapter.layers.values() for p in (m.lora_a, m.lora_b)]
    everything = torch.cat([p.detach().flatten() for p in parameters]).sort().values
    assert torch.equal(everything, adapter.values), "no two tensors share a place"


@pytest.mark.parametrize("grad", [True, False])
def test_nothing_is_kept_after_the_forward(rng, grad):
    model = tiny_model()
    adapter = an_adapter(model)
    outputs = []
    for layer in (model.model.layers[0].self_attn, model.model.layers[0].mlp):
        layer.register_forward_pre_hook(
            lambda m, a, k: outputs.append(weakref.ref(a[0] if a else k["hidden_states"])),
            with_kwargs=True,
        )
    with torch.set_grad_enabled(grad):
        model(input_ids=ids_of(rng, 1, 6))
    gc.collect()
    assert len(outputs) == 2 and not any(o() is not None for o in outputs)
    assert all(g.x is None and not g.ready and not g.open for g in adapter._working)


def test_a_forward_that_breaks_keeps_nothing_and_the_next_is_right(rng):
    model = tiny_model()
    adapter = an_adapter(model)
    ids = ids_of(rng, 1, 6)
    right = model(ids).logits
    handle = model.model.layers[0].self_attn.k_proj.register_forward_pre_hook(lambda *a: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        model(ids)
    handle.remove()
    assert all(g.x is None and not g.ready and not g.open for g in adapter._working)
    assert torch.equal(model(ids).logits, right)


def test_another_input_is_computed_anew(rng, calls):
    """Members called with what only looks like the first one's x, or outside of the parent."""
    model = tiny_model()
    an_adapter(model)
    attention = model.model.layers[0].self_attn
    x = torch.randn(3, 48)
    group = attention.q_proj.group
    group._enter()
    attention.q_proj(x)
    other = attention.k_proj(x + 1)
    second = attention.v_proj(x.clone())
    once, twice = attention.v_proj(x), attention.v_proj(x)
    assert once is not twice and torch.allclose(once, twice, atol=1e-6)
    group._leave()
    assert calls == ["lora_qkv"]
    assert torch.equal(attention.k_proj(x + 1), other)
    assert torch.allclose(attention.v_proj(x), second, atol=1e-6)
    attention.q_proj(x)
    assert calls == ["lora_qkv"], "outside of the parent's forward every layer is by itself"


def test_a_layer_somebody_watches_runs_by_itself(rng, calls):
    model = tiny_model()
    an_adapter(model)
    ids = ids_of(rng, 1, 6)
    right, seen = model(ids).logits, []
    before = calls.count("lora_gate_up")
    mlp = model.model.layers[1].mlp
    mlp.up_proj.register_forward_hook(lambda *a: seen.append(1))
    calls.clear()
    torch.testing.assert_close(model(ids).logits, right)
    assert seen == [1] and calls.count("lora_gate_up") == before - 1


def test_gradient_checkpointing_is_equal(rng):
    model = tiny_model()
    adapter = an_adapter(model)
    ids = ids_of(rng, 2, 9)
    found = []
    for kwargs in (None, {"use_reentrant": False}, {"use_reentrant": True}):
        adapter.grads.zero_()
        if kwargs is not None:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=kwargs)
            model.enable_input_require_grads()
            model.train()
        model(input_ids=ids, labels=ids).loss.backward()
        found.append(adapter.grads.clone())
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])
    assert all(g.x is None and not g.ready for g in adapter._working)


def test_generate_disabled_and_removed(rng):
    model = tiny_model()
    plain, ids = copy.deepcopy(model), ids_of(rng, 2, 7)
    settings = dict(max_new_tokens=6, do_sample=False, pad_token_id=0, eos_token_id=None)
    without = model.generate(ids, **settings)
    before = plain(ids).logits
    adapter = an_adapter(model, grouped=False)
    single = model.generate(ids, **settings)
    adapter.remove()
    adapter = an_adapter(model)
    assert torch.equal(model.generate(ids, **settings), single)
    with without_adapter(model):
        assert torch.equal(model.generate(ids, **settings), without)
    adapter.remove()
    assert torch.equal(model(ids).logits, before)
    for module in model.modules():
        assert "forward" not in vars(module) and not groups.observed(module)


def test_a_deep_copy_has_groups_of_its_own(rng, calls):
    model = tiny_model()
    adapter = an_adapter(model)
    other, ids = copy.deepcopy(model), ids_of(rng, 1, 6)
    right = model(ids).logits
    adapter.values.zero_()
    calls.clear()
    assert torch.equal(other(ids).logits, right), "the copy computes with its own values"
    assert calls.count("lora_qkv") == 2 and calls.count("lora_gate_up") == 2


def test_compiled_is_equal(rng):
    model = tiny_model(num_hidden_layers=1)
    adapter = an_adapter(model)
    ids = ids_of(rng, 1, 6)
    found = []
    for forward in (model, torch.compile(model, backend="aot_eager")):
        adapter.grads.zero_()
        loss = forward(input_ids=ids, labels=ids).loss
        loss.backward()
        found.append([loss, adapter.grads.clone()])
    assert max(rel(a, b) for a, b in zip(*found, strict=True)) < 1e-5


class Odd(torch.nn.Module):
    """Looks like a gated MLP and is none, in one way or another."""

    def __init__(self, kind):
        super().__init__()
        self.gate, self.up = (torch.nn.Linear(8, 12) for _ in range(2))
        self.down = torch.nn.Linear(12, 8)
        self.drop = torch.nn.Dropout(0.5)
        self.kind = kind

    def forward(self, x):
        g, u = self.gate(x), self.up(x)
        h = {
            "swapped": lambda: g * torch.nn.functional.silu(u),
            "relu": lambda: torch.relu(g) * u,
            "exact gelu": lambda: torch.nn.functional.gelu(g) * u,
            "half": lambda: 0.5 * torch.nn.functional.silu(g) * u,
            "dropout": lambda: self.drop(torch.nn.functional.silu(g) * u),
        }[self.kind]()
        return self.down(h)


class Around(torch.nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.embed, self.mlp = torch.nn.Embedding(9, 8), Odd(kind)

    def get_input_embeddings(self):
        return self.embed

    def forward(self, input_ids, use_cache):
        return self.mlp(self.embed(input_ids))


@pytest.mark.parametrize("kind", ["swapped", "relu", "exact gelu", "half", "dropout"])
def test_only_what_is_a_gated_mlp_by_numbers_is_taken_as_one(kind):
    model = Around(kind).train()
    if kind != "dropout":
        model.mlp.drop.p = 0.0
    state = torch.get_rng_state()
    (found,) = groups.find(model, model, ["mlp.gate", "mlp.up", "mlp.down"])
    assert torch.equal(torch.get_rng_state(), state), "no random number of the user's is drawn"
    assert model.training and model.mlp.training
    if kind == "swapped":
        assert (found.members, found.activation) == (("mlp.up", "mlp.gate"), "silu")
    else:
        assert found.members == ("mlp.gate", "mlp.up") and found.activation is None


class Cut(torch.nn.Module):
    """down(act(gate(x)) · up(x)) with something that only some inputs, or only training, show."""

    def __init__(self, kind, limit=10.0):
        super().__init__()
        self.gate, self.up = (torch.nn.Linear(16, 24, bias=False) for _ in range(2))
        self.down, self.kind, self.limit = torch.nn.Linear(24, 16, bias=False), kind, limit

    def forward(self, x):
        gate, up = self.gate(x), self.up(x)
        if self.kind == "gate":
            gate = gate.clamp(max=self.limit)
        elif self.kind == "up":
            up = up.clamp(-self.limit, self.limit)
        elif self.kind == "noise" and self.training:
            gate = gate + torch.randn_like(gate)
        elif self.kind == "dropout":
            gate = torch.nn.functional.dropout(gate, 0.3, self.training)
        elif self.kind == "bottom":
            gate = gate.clamp(min=-2.0)
        elif self.kind == "small":
            gate = torch.where(gate.abs() < self.limit / 1000, 0, gate)
        return self.down(torch.nn.functional.silu(gate) * up)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ["plain", "gate", "up", "noise", "dropout", "small", "bottom"])
def test_a_gated_product_is_fused_only_where_no_input_shows_a_difference(kind, dtype):
    for limit in (7.0, 30.0, 100.0):
        owner = Cut(kind, limit).to(dtype).eval()
        model = torch.nn.ModuleDict({"mlp": owner})
        x = torch.randn(1, 4, 16).to(dtype)
        group = groups._gated(model, "mlp", ("mlp.gate", "mlp.up"), "mlp.down", x[..., :1])
        assert (group.down is not None) is (kind == "plain")
        assert not owner.training and not owner.gate.training
