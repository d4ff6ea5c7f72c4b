"""Several adapters in one model: each row of a batch runs with its own."""

from contextlib import nullcontext

import torch
from errors_and_seeds import rel
from tiny import tiny_model

from liftcore.config import LiftConfig
from liftcore.layers.last_layer import LastLayer
from liftcore.layers.lora import Adapter, only_adapter_trains
from liftcore.model import body

CONFIG = LiftConfig(rank=4)


def _alone(model, values, ids, up):
    """(hidden states, gradient) of each adapter alone on its row."""
    found = []
    for own, row, dy in zip(values, ids, up, strict=True):
        adapter = Adapter.of(model, CONFIG)
        adapter.values.copy_(own)
        adapter.install()
        with only_adapter_trains(adapter):
            hidden = body(model)(input_ids=row[None], use_cache=False).last_hidden_state
            hidden.backward(dy[None])
        adapter.remove()
        found.append((hidden.detach(), adapter.grads))
    return found


def test_each_row_has_the_adapter_of_its_slot(rng):
    model = tiny_model("qwen2", initializer_range=0.2)
    together = Adapter.of(model, CONFIG, slots=4)
    generator = torch.Generator().manual_seed(int(rng.integers(2**31)))
    together.values.copy_(torch.randn(together.values.shape, generator=generator) * 0.2)
    slots = torch.tensor([0, 2, 3], dtype=torch.int32)
    ids = torch.randint(211, (3, 9), generator=generator)
    up = torch.randn(3, 9, 48, generator=generator)
    right = _alone(model, together.values[slots.long()], ids, up)
    together.install()
    with only_adapter_trains(together), together.owners.rows(slots):
        for how in (nullcontext, together.ungrouped):
            together.grads.zero_()
            with how():
                together.remove()
                together.install()  # what is grouped stays so
                assert [group.enabled for group in together._working] == [how is nullcontext] * 4
                hidden = body(model)(input_ids=ids, use_cache=False).last_hidden_state
                hidden.backward(up)
            for row, (own, grad) in enumerate(right):
                assert rel(hidden[row], own[0]) < 1e-5
                assert rel(together.grads[int(slots[row])], grad) < 1e-5
            assert not together.grads[1].any()
    together.remove()


def test_the_last_layer_alone_for_some_rows_keeps_them_apart(rng):
    model = tiny_model(initializer_range=0.2)
    together = Adapter.of(model, CONFIG, slots=2)
    generator = torch.Generator().manual_seed(int(rng.integers(2**31)))
    together.values.copy_(torch.randn(together.values.shape, generator=generator) * 0.2)
    together.install()
    slots = torch.tensor([0, 1, 1], dtype=torch.int32)
    ids, index = torch.randint(211, (3, 9), generator=generator), torch.tensor([[1, 8]] * 3)
    last = LastLayer(model, 9)
    assert last.works, last.why
    with torch.no_grad(), together.owners.rows(slots):
        whole = body(model)(input_ids=ids, use_cache=False).last_hidden_state
        with last.rows(index):
            some = body(model)(input_ids=ids, use_cache=False).last_hidden_state
    assert rel(some, whole[:, [1, 8]]) < 1e-5
    together.remove()


def test_one_slot_begins_as_an_adapter_does():
    model = tiny_model()
    one, many = Adapter.of(model, CONFIG), Adapter.of(model, CONFIG, slots=3)
    assert torch.equal(many.values, one.values.expand(3, -1))
    fixed = CONFIG.replace(train_a=False)
    one, many = Adapter.of(model, fixed), Adapter.of(model, fixed, slots=2)
    assert torch.equal(many.frozen, one.frozen.expand(2, -1))
    assert torch.equal(many.values, one.values.expand(2, -1))
