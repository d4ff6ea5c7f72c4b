"""Attention of segments: equal to SDPA, without a mask tensor, on the right models, and undone."""

import pytest
import torch
import transformers
from errors_and_seeds import fresh_seed
from tiny import FAMILIES, OLD_TRANSFORMERS, tiny_model

from liftcore.layers import attention
from liftcore.layers.attention import NAME, attend_rows, causal_attention, fast_attention
from liftcore.model import body


def run(attend, base, up, dtype):
    """(output, gradients) of attend(query, key, value) in a dtype, from bf16 numbers."""
    leaves = [t.to(torch.bfloat16).to(dtype).requires_grad_() for t in base]
    out = attend(*leaves)
    out.backward(up.to(torch.bfloat16).to(dtype))
    return [out.detach(), *(t.grad for t in leaves)]


def ours(q, k, v):
    return causal_attention(torch.nn.Module(), q, k, v, None)[0].transpose(1, 2)


def sdpa(q, k, v, mask=None):
    return torch.nn.functional.scaled_dot_product_attention(
        q, k, v, mask, is_causal=mask is None, enable_gqa=True
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("some_rows", [False, True])
def test_attention_is_as_good_as_sdpa(dtype, some_rows):
    """Against SDPA in fp64: the error is at most twice that of SDPA in the same dtype."""
    g = fresh_seed()
    heads, groups, width = 6, 2, 16
    size = int(torch.randint(2, 70, (), generator=g))
    index = torch.stack([torch.randperm(size, generator=g)[: size // 2 + 1] for _ in range(2)])
    mask = (torch.arange(size) <= index[..., None])[:, None]
    rows = index.shape[1] if some_rows else size
    shapes = [(2, heads, rows, width), (2, groups, size, width), (2, groups, size, width)]
    base = [torch.randn(s, generator=g) for s in shapes]
    up = torch.randn(2, heads, rows, width, generator=g)
    right_way, way = sdpa, ours
    if some_rows:
        right_way = lambda q, k, v: sdpa(q, k, v, mask)  # noqa: E731
        way = lambda q, k, v: attend_rows(q, k, v, index, width**-0.5)  # noqa: E731
    truth = run(right_way, base, up, torch.float64)
    plain, got = run(right_way, base, up, dtype), run(way, base, up, dtype)
    for right, theirs, mine in zip(truth, plain, got, strict=True):
        allowed = 2 * (theirs.double() - right).norm()
        allowed += (1e-3 if dtype == torch.bfloat16 else 1e-6) * right.norm()
        assert (mine.double() - right).norm() <= allowed


@pytest.mark.parametrize("family", [f for f in FAMILIES if f != "gemma2"])
@pytest.mark.parametrize("fast", [False, True])
def test_no_mask_tensor_reaches_the_attention(monkeypatch, family, fast):
    """Also with a sliding window that is longer than the segment."""
    if OLD_TRANSFORMERS and not fast:
        pytest.skip("its SDPA always gets a mask")
    model = tiny_model(family, dtype=torch.bfloat16)
    if getattr(model.config, "sliding_window", None):
        model.config.sliding_window = 64
        model = type(model)(model.config).bfloat16().eval()
    seen = []

    def spy(module, query, key, value, attention_mask, **kwargs):
        seen.append(attention_mask)
        return query.transpose(1, 2), None

    table = transformers.AttentionInterface._global_mapping
    monkeypatch.setitem(table, "sdpa", spy)
    monkeypatch.setattr(attention, "causal_attention", spy)
    ids = torch.randint(3, 200, (2, 40))
    if fast:
        with fast_attention(model, 40):
            assert model.config._attn_implementation == NAME
            seen.clear()  # of the trial
            body(model)(input_ids=ids, use_cache=False)
    else:
        body(model)(input_ids=ids, use_cache=False)
    assert len(seen) == 2 and all(mask is None for mask in seen)


@pytest.mark.parametrize(
    ("family", "length", "dtype", "changes", "taken"),
    [
        ("llama", None, torch.bfloat16, {}, True),
        ("llama", None, torch.float32, {}, False),
        ("gemma2", 40, torch.bfloat16, {}, False),  # eager, and soft-capped
        ("mistral", 16, torch.bfloat16, {"sliding_window": 16}, True),
        ("mistral", 17, torch.bfloat16, {"sliding_window": 16}, False),
        ("mistral", None, torch.bfloat16, {"sliding_window": 16}, False),
        ("gemma3", 9, torch.bfloat16, {"use_bidirectional_attention": True}, False),
    ],
)
def test_fast_attention_takes_the_right_models_and_is_undone(family, length, dtype, changes, taken):
    model = tiny_model(family, dtype=dtype, **changes)
    before = model.config._attn_implementation
    with pytest.raises(ZeroDivisionError), fast_attention(model, length):
        assert model.config._attn_implementation == (NAME if taken else before)
        raise ZeroDivisionError
    assert model.config._attn_implementation == before


def test_what_would_be_wrong_is_refused():
    q = torch.randn(1, 2, 6, 4)
    for arguments in (
        {"attention_mask": torch.ones(1, 1, 6, 6).bool()},
        {"key": torch.randn(1, 2, 9, 4), "value": torch.randn(1, 2, 9, 4)},
        {"sliding_window": 5},
        {"softcap": 30.0},
        {"dropout": 0.1},
    ):
        given = {"key": q, "value": q, "attention_mask": None, **arguments}
        with pytest.raises(ValueError):
            causal_attention(torch.nn.Module(), q, **given)


@pytest.mark.parametrize("name", ["position_bias", "sinks", "s_aux", "block_indices", "novelty"])
def test_an_argument_that_is_not_known_is_refused(name):
    q = torch.randn(1, 2, 6, 4)
    with pytest.raises(ValueError, match=name):
        causal_attention(torch.nn.Module(), q, q, q, None, **{name: torch.ones(2)})
    causal_attention(torch.nn.Module(), q, q, q, None, **{name: None}, position_ids=torch.ones(6))


@pytest.mark.parametrize("way", ["argument", "module"])
def test_attention_that_is_not_causal_is_refused(way):
    q, module = torch.randn(1, 2, 6, 4), torch.nn.Module()
    module.is_causal = way == "argument"
    with pytest.raises(ValueError, match="causal"):
        causal_attention(module, q, q, q, None, is_causal=False if way == "argument" else None)


@pytest.mark.parametrize("family", ["falcon", "doge", "inkling_text", "deepseek_v32", "afmoe"])
def test_a_model_that_needs_more_than_causal_attention_keeps_its_own(family):
    """An alibi bias, a mask of its own, a position bias, a view of the result."""
    from bench.families import models as family_models

    changes = {"falcon": {"alibi": True}}.get(family, {})
    config = family_models.small_config(family)
    for name, value in changes.items():
        setattr(config, name, value)
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).eval()
    ids = torch.randint(3, 200, (2, 24))
    right = body(model)(input_ids=ids, use_cache=False).last_hidden_state.float()
    with fast_attention(model, 24):
        got = body(model)(input_ids=ids, use_cache=False).last_hidden_state.float()
    assert (got - right).norm() < 0.05 * right.norm()
