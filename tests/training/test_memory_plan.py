"""The memory plan: what it counts, what it chooses, and that recomputing changes nothing."""

import gc
import weakref

import pytest
import torch
from tiny import tiny_model

from liftcore.layers.lora import Adapter
from liftcore.layers.recompute import decoder_layers, recomputed
from liftcore.model import body
from liftcore.training import memory_plan
from liftcore.training.memory_plan import (
    HEAD_BYTES,
    SHARE,
    Activations,
    MemoryPlan,
    choose,
    measure,
)


def with_adapter(**options):
    model = tiny_model(num_hidden_layers=8, **options)
    adapter = Adapter(model, 4, 8.0)
    adapter.install()
    return model, adapter


def bytes_of_a_backward(model, rows, size, every):
    """Bytes that the graph of a forward holds, counted from outside by its saved tensors."""
    seen = {p.untyped_storage().data_ptr() for p in (*model.parameters(), *model.buffers())}
    sizes = []

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in seen:
            seen.add(storage.data_ptr())
            sizes.append(storage.nbytes())
        return tensor

    ids = torch.zeros(rows, size, dtype=torch.int64)
    with recomputed(model, every), torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        out = body(model)(input_ids=ids, use_cache=False).last_hidden_state
    assert out.requires_grad
    return sum(sizes)


@pytest.mark.parametrize("every", [0, 1, 2, 4])
def test_the_count_of_one_segment_tells_that_of_many(every):
    model, _ = with_adapter()
    used = measure(model, 48)
    assert len(used.layers) == 8 and min(used.layers) > 0.9 * max(used.layers) > 0
    kept = used.peak(3, every) - 3 * max(used.layers)  # without the backward's own
    if every:
        kept -= 3 * max(used.layers)  # without what a recomputed layer holds for a while
    # Tables that all segments share (positions, rotations) are counted once for each.
    assert bytes_of_a_backward(model, 3, 48, every) == pytest.approx(kept, rel=0.15)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_was_measured_is_let_go_of(dtype):
    """The forward's memory, and the model's behind it."""
    model, adapter = with_adapter(dtype=dtype)
    weights = [weakref.ref(layer.base.weight) for layer in adapter.layers.values()]
    hidden = []
    hook = body(model).register_forward_hook(
        lambda module, args, out: hidden.append(weakref.ref(out.last_hidden_state))
    )
    measure(model, 48)
    hook.remove()
    del model, adapter
    gc.collect()
    assert hidden and not any(ref() is not None for ref in (*hidden, *weights))


@pytest.mark.parametrize("every", [1, 3])
def test_recomputing_changes_nothing_but_the_work(rng, every):
    model, adapter = with_adapter()
    adapter.values.normal_(std=0.1)
    ids = torch.from_numpy(rng.integers(3, 200, size=(2, 24)))
    layers, calls = decoder_layers(model), []
    hooks = [m.mlp.register_forward_pre_hook(lambda m, *_: calls.append(m)) for m in layers]

    def gradient(every):
        calls.clear()
        adapter.grads.zero_()
        with recomputed(model, every):
            body(model)(input_ids=ids, use_cache=False).last_hidden_state.square().sum().backward()
        return adapter.grads.clone(), [sum(c is m.mlp for c in calls) for m in layers]

    right, once = gradient(0)
    again, times = gradient(every)
    assert torch.equal(again, right) and once == [1] * 8
    assert times == [2 if i % every == 0 else 1 for i in range(8)]
    assert not any("forward" in vars(layer) for layer in layers)
    for hook in hooks:
        hook.remove()


def planned(monkeypatch, free, segments=8, used=None):
    model, adapter = with_adapter()
    used = used or Activations(layers=[100 * 2**20] * 8, rest=2**20, hidden=2**20)
    monkeypatch.setattr(memory_plan, "measure", lambda *a: used)
    monkeypatch.setattr(memory_plan, "free_bytes", lambda device: free)
    return choose(model, adapter, segments, 1024)


def test_the_plan_gives_up_speed_only_as_memory_ends(monkeypatch):
    plenty = planned(monkeypatch, 1000 * 2**30)
    assert (plenty.micro_batch, plenty.passes, plenty.recompute) == (8, 1, 0)
    assert "nothing recomputed" in str(plenty) and "8 segments at once" in str(plenty)
    peaks = []
    for gib in (20, 10, 6, 4, 3, 2):
        plan = planned(monkeypatch, gib * 2**30)
        assert plan.peak_bytes <= SHARE["cpu"] * gib * 2**30
        assert plan.micro_batch * plan.passes >= 8 > plan.micro_batch * (plan.passes - 1)
        peaks.append(plan.peak_bytes)
    assert peaks == sorted(peaks, reverse=True) and len(set(peaks)) > 3
    nothing = planned(monkeypatch, 1)
    assert (nothing.micro_batch, nothing.recompute) == (1, 1), "the smallest is tried"
    unknown = planned(monkeypatch, None)
    assert (unknown.micro_batch, unknown.recompute) == (8, 0) and "free" not in str(unknown)


def test_layers_are_recomputed_when_one_segment_alone_is_too_large(monkeypatch):
    used = Activations(layers=[2**30] * 8, rest=0, hidden=2**20)
    free = (HEAD_BYTES + 6.5 * 2**30) / SHARE["cpu"]
    plan = planned(monkeypatch, int(free), segments=1, used=used)
    assert plan.micro_batch == 1 and plan.recompute == 2
    assert "every 2nd layer recomputed" in str(plan)


def test_passes_of_few_tokens_are_not_worth_it(monkeypatch):
    """Recomputing beats passes of a few tokens each, and the other way round for long segments."""
    used = Activations(layers=[2**30] * 8, rest=0, hidden=2**20)
    plan = planned(monkeypatch, int(2**30 * 30 / SHARE["cpu"]), used=used)
    assert plan.passes > 1 and plan.recompute == 0


def test_a_segment_that_does_not_fit_is_told_from_a_shorter_one(monkeypatch):
    model, _ = with_adapter()
    right, real, tried = measure(model, 64), memory_plan._measure, []

    def full(model, size):
        tried.append(size)
        if size > 20:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(model, size)

    monkeypatch.setattr(memory_plan, "_measure", full)
    measured = measure(model, 64)
    assert tried == [64, 32, 16]
    assert sum(measured.layers) == pytest.approx(sum(right.layers), rel=0.1)
    assert measured.hidden == right.hidden
    with pytest.raises(torch.OutOfMemoryError):
        monkeypatch.setattr(memory_plan, "_measure", lambda *a: full(model, 99))
        measure(model, 64)


def test_smaller_plans_end_with_every_layer_recomputed():
    plan, seen = MemoryPlan(5, 1), []
    while plan:
        seen.append((plan.micro_batch, plan.passes, plan.recompute))
        plan = plan.smaller(5)
    assert seen == [(5, 1, 0), (3, 2, 0), (2, 3, 0), (1, 5, 0), (1, 5, 1)]
