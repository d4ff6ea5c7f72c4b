"""The last layer for scored rows only: equal to the full computation in values and gradients."""

import pytest
import torch
import transformers
from errors_and_seeds import fresh_seed, rel
from tiny import FAMILIES, OLD_TRANSFORMERS, TINY, tiny_model
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from liftcore.layers.attention import fast_attention
from liftcore.layers.last_layer import LastLayer
from liftcore.layers.lora import Adapter
from liftcore.model import body

pytestmark = pytest.mark.skipif(
    OLD_TRANSFORMERS, reason="layers that return tuples are computed in full"
)
# gemma2 caps its attention and is refused, see below.
CASES = {family: {} for family in FAMILIES if family != "gemma2"}
CASES["granite"] = {"residual_multiplier": 0.3, "attention_multiplier": 0.4}


def model_and_adapter(family, g, dtype=torch.float32, **changes):
    """A tiny model whose attention is far from uniform, and an adapter that does something."""
    changes = {**CASES[family], "initializer_range": 0.3, **changes}
    model = tiny_model(family, int(torch.randint(1 << 30, (), generator=g)), dtype, **changes)
    adapter = Adapter(model, rank=4, alpha=8)
    with torch.no_grad():
        adapter.values.normal_(0, 0.2, generator=g)
    adapter.install()
    return model, adapter


def inputs(g, size=23, count=9):
    ids = torch.randint(3, 211, (2, size), generator=g)
    weights = torch.rand(2, size, generator=g)
    weights[weights < weights.sort(dim=-1, descending=True).values[:, count - 3, None]] = 0
    return ids, torch.argsort((weights == 0).int(), dim=-1, stable=True)[:, :count]


def run(model, adapter, ids, up, index=None, last=None):
    """(the chosen rows of the last hidden state, the adapter's gradients)."""
    adapter.grads.zero_()
    if last is None:
        full = body(model)(input_ids=ids, use_cache=False).last_hidden_state
        hidden = torch.gather(full, 1, index[..., None].expand(-1, -1, full.shape[-1]))
    else:
        with last.rows(index):
            hidden = body(model)(input_ids=ids, use_cache=False).last_hidden_state
    # The backward runs after the context: a checkpointed layer must not need it.
    hidden.backward(up.to(hidden.dtype))
    return hidden.detach(), adapter.grads.clone()


@pytest.mark.parametrize("family", CASES)
def test_values_and_gradients_equal_the_full_computation(family):
    g = fresh_seed()
    model, adapter = model_and_adapter(family, g)
    last = LastLayer(model)
    assert last.works, last.why
    ids, index = inputs(g)
    up = torch.randn(*index.shape, 48, generator=g)
    right, grads = run(model, adapter, ids, up, index)
    hidden, ours = run(model, adapter, ids, up, index, last)
    assert hidden.shape == (*index.shape, 48)
    assert rel(hidden, right) < 1e-5 and rel(ours, grads) < 1e-4
    for path, layer in adapter.layers.items():
        start = (layer.lora_a.data_ptr() - adapter.values.data_ptr()) // 4
        part = slice(start, start + layer.lora_a.numel() + layer.lora_b.numel())
        assert rel(ours[part], grads[part]) < 1e-3, path
        assert grads[part].abs().max() > 0, path


@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_bf16_is_as_good_as_the_full_computation(family):
    g = fresh_seed()
    model, adapter = model_and_adapter(family, g, torch.bfloat16)
    ids, index = inputs(g)
    up = torch.randn(*index.shape, 48, generator=g)
    last = LastLayer(model)
    assert last.works, last.why
    with fast_attention(model, 64):
        plain = run(model, adapter, ids, up, index)
        ours = run(model, adapter, ids, up, index, last)
    exact, exact_adapter = model_and_adapter(family, g)
    exact.load_state_dict({k: v.float() for k, v in model.state_dict().items()})
    truth = run(exact, exact_adapter, ids, up.bfloat16(), index)
    for right, theirs, got in zip(truth, plain, ours, strict=True):
        assert rel(got, right) <= 2 * rel(theirs, right) + 1e-3


@pytest.mark.parametrize("how", ["transformers", "a wrapper"])
def test_gradients_are_right_under_checkpointing(how):
    g = fresh_seed()
    model, adapter = model_and_adapter("llama", g)
    ids, index = inputs(g)
    up = torch.randn(*index.shape, 48, generator=g)
    right, grads = run(model, adapter, ids, up, index)
    last = LastLayer(model)
    if how == "transformers":
        model.train()
        model.gradient_checkpointing_enable({"use_reentrant": False})
        hidden, ours = run(model, adapter, ids, up, index, last)
    else:
        adapter.grads.zero_()
        with last.rows(index):
            inner = last.layer.forward
            last.layer.forward = lambda x, **kw: checkpoint(inner, x, use_reentrant=False, **kw)
            hidden = body(model)(input_ids=ids, use_cache=False).last_hidden_state
            last.layer.forward = inner
        hidden.backward(up)
        ours = adapter.grads
    assert rel(hidden, right) < 1e-5 and rel(ours, grads) < 1e-4


def test_the_model_is_left_as_it_was():
    g = fresh_seed()
    model, _ = model_and_adapter("qwen3", g)
    ids, index = inputs(g)
    layer = model.model.layers[-1]
    layer.forward = layer.forward  # somebody's forward on this instance must come back too
    modules = list(model.modules())
    before = [dict(vars(m)) for m in modules]
    last = LastLayer(model)
    with pytest.raises(ZeroDivisionError), last.rows(index):
        body(model)(input_ids=ids, use_cache=False)
        raise ZeroDivisionError
    assert [dict(vars(m)) for m in modules] == before
    assert model.config._attn_implementation == "sdpa"


def test_a_window_shorter_than_the_segment_is_computed_in_full():
    """The window is met at run time only: the layer was looked at with shorter segments."""
    g = fresh_seed()
    model, adapter = model_and_adapter("mistral", g, sliding_window=16)
    last = LastLayer(model, length=10)
    assert last.works, last.why
    ids, index = inputs(g, size=40)
    up = torch.randn(*index.shape, 48, generator=g)
    right, grads = run(model, adapter, ids, up, index)
    hidden, ours = run(model, adapter, ids, up, index, last)
    assert rel(hidden, right) < 1e-5 and rel(ours, grads) < 1e-4
    refused = LastLayer(model, length=40)
    assert not refused.works and "window" in refused.why
    with pytest.raises(ValueError, match="window"), refused.rows(index):
        pass


def test_dropout_is_not_left_out():
    g = fresh_seed()
    model, adapter = model_and_adapter("llama", g, attention_dropout=0.5)
    last = LastLayer(model)
    model.train()
    ids, index = inputs(g)
    up = torch.randn(*index.shape, 48, generator=g)
    seed, results = torch.initial_seed(), []
    for layer in (None, last):
        torch.manual_seed(seed)
        results.append(run(model, adapter, ids, up, index, layer))
    (right, grads), (hidden, ours) = results
    assert rel(hidden, right) < 1e-5 and rel(ours, grads) < 1e-4


@pytest.mark.parametrize("kind", ["soft cap", "eager", "fused qkv", "no layers", "mixes", "scaled"])
def test_a_layer_that_does_not_fit_is_refused(kind, monkeypatch):
    if kind == "soft cap":
        model = tiny_model("gemma2")
    elif kind == "fused qkv":
        config = transformers.Phi3Config(**TINY)
        model = transformers.AutoModelForCausalLM.from_config(config).eval()
    elif kind == "no layers":
        config = transformers.GPT2Config(vocab_size=211, n_embd=48, n_layer=2, n_head=4)
        model = transformers.AutoModelForCausalLM.from_config(config).eval()
    else:
        model = tiny_model("llama")
    if kind == "eager":
        model.set_attn_implementation("eager")
    layer = type(model.model.layers[-1]) if hasattr(model, "model") else None
    own = getattr(layer, "forward", None)
    if kind == "mixes":  # positions meet outside of the attention
        monkeypatch.setattr(layer, "forward", lambda m, x, **kw: own(m, x.cumsum(1), **kw))
    if kind == "scaled":  # a factor that depends on the number of rows
        monkeypatch.setattr(layer, "forward", lambda m, x, **kw: own(m, x, **kw) * x.shape[1])
    last = LastLayer(model)
    assert not last.works and last.why


class NoWaiting(TorchDispatchMode):
    """Fails at an op whose result the host must read: it could not be captured in a graph."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        assert name not in ("_local_scalar_dense", "nonzero", "masked_select", "is_nonzero"), name
        return func(*args, **(kwargs or {}))


def test_nothing_waits_for_the_device():
    g = fresh_seed()
    model, adapter = model_and_adapter("llama", g, torch.bfloat16)
    ids, index = inputs(g)
    last = LastLayer(model)
    up = torch.randn(*index.shape, 48, generator=g)
    with fast_attention(model), NoWaiting():
        run(model, adapter, ids, up, index, last)
