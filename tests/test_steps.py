"""The step on the device against the step from the host, and steps cut to fit into memory."""

import numpy as np
import pytest
import torch
from errors_and_seeds import rel
from native_checks import random_run
from tiny import tiny_model
from torch.utils._python_dispatch import TorchDispatchMode

from liftcore import graph, steps, train
from liftcore.attention import fast_attention
from liftcore.config import LiftConfig
from liftcore.errors import LiftError
from liftcore.graph import DeviceSteps
from liftcore.lora import Adapter
from liftcore.memory_plan import MemoryPlan
from liftcore.steps import EagerSteps

# A large eps: Adam would turn rounding in a gradient near 0 into a whole step.
CONFIG = LiftConfig(segment_length=24, epochs=3, batch_size=4, rank=4, learning_rate=5e-3, eps=1e-2)


def made(kind, tokens, config=CONFIG, prefix=(1,), **options):
    model = tiny_model(initializer_range=0.2, **options)
    adapter = Adapter(model, config.rank, config.lora_alpha, config.seed)
    adapter.install()
    return kind(model, adapter, tokens, config, list(prefix))


def run(found, first=0, last=None):
    for n in range(first, len(found.order) if last is None else last):
        found.run(n)
        assert np.isfinite(found.latest(n))
    return found


def assert_same(one, other, bound=1e-4):
    assert torch.isfinite(one.losses).all()
    torch.testing.assert_close(one.losses, other.losses, rtol=bound, atol=bound)
    assert rel(one.adapter.values, other.adapter.values) < bound


@pytest.fixture
def tokens(rng):
    return rng.integers(3, 200, size=170)


def test_steps_on_the_device_are_those_of_the_host(rng, path):
    """All schedules, losses and prefixes, through the twins and through the CUDA kernels."""
    for _ in range(3):
        tokens, config, prefix = random_run(rng)
        tokens = np.asarray(tokens) % 200
        config = config.replace(epochs=2, rank=4, learning_rate=2e-3, eps=1e-2)
        host = made(EagerSteps, tokens, config, prefix)
        if len(host.order) == 0:
            continue
        assert_same(run(made(DeviceSteps, tokens, config, prefix)), run(host))


@pytest.mark.parametrize("kind", [EagerSteps, DeviceSteps])
@pytest.mark.parametrize(("micro", "recompute"), [(1, 0), (3, 0), (2, 1), (4, 2)])
def test_a_step_in_smaller_passes_is_the_same_step(tokens, kind, micro, recompute):
    config = CONFIG.replace(schedule="overlap", stride=9, overlap_loss="mean")
    whole = run(made(EagerSteps, tokens, config))
    small = made(kind, tokens, config)
    small.use(MemoryPlan(micro, -(-4 // micro), recompute))
    assert_same(run(small), whole)


class NoWaiting(TorchDispatchMode):
    """Fails at an op that would make the host wait for a device."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = str(function)
        assert "_local_scalar_dense" not in name and "nonzero" not in name, name
        if "aten.index." in name:
            assert all(i is None or i.dtype != torch.bool for i in args[1]), "a boolean index"
        return function(*args, **(kwargs or {}))


def fixed_rows_loss(hidden, weight, labels, *, token_weights, row_index, **options):
    """The head's loss without its CPU path, which looks at the rows on the host."""
    logits, labels = hidden[row_index] @ weight.T, labels[row_index].clamp_min(0)
    nll = torch.nn.functional.cross_entropy(logits, labels, reduction="none")
    return (nll * token_weights[row_index]).sum()


@pytest.mark.parametrize("overlap_loss", ["all", "new"])
def test_a_step_on_the_device_never_makes_the_host_wait(tokens, monkeypatch, overlap_loss):
    """What a CUDA graph needs, shown without a GPU."""
    monkeypatch.setattr(steps, "linear_cross_entropy", fixed_rows_loss)
    # The choice of the scored positions checks itself on a CPU.
    monkeypatch.setattr(
        steps, "positions", lambda w, n: torch.argsort(w == 0, dim=-1, stable=True)[:, :n]
    )
    config = CONFIG.replace(schedule="overlap", overlap_loss=overlap_loss, segment_length=128)
    found = made(DeviceSteps, np.tile(tokens, 6), config, dtype=torch.bfloat16)
    found.use(MemoryPlan(2, 2))
    found.most_of[1] = found.most_of.min()
    assert (found.last is not None) == (overlap_loss == "new")
    with fast_attention(found.model, 129):
        found.run(0)
        with NoWaiting():
            found.run(1)
    assert torch.isfinite(found.losses[:2]).all() and torch.isnan(found.losses[2:]).all()


def test_the_head_gets_room_for_every_scored_row(tokens):
    config = CONFIG.replace(schedule="overlap", overlap_loss="new", segment_length=100, epochs=1)
    found = made(DeviceSteps, np.tile(tokens, 12), config)
    assert len(set(found.rows_of)) == 2, "the first segment scores more rows than the others"
    assert (found.rows_of >= found.resident.scored).all()


@pytest.mark.parametrize("kind", [EagerSteps, DeviceSteps])
def test_few_scored_rows_leave_the_last_layer_less_to_do(tokens, monkeypatch, kind):
    config = CONFIG.replace(schedule="overlap", overlap_loss="new", segment_length=128, epochs=2)
    tokens = np.tile(tokens, 6)
    with monkeypatch.context() as patch:
        patch.setattr(steps, "LastLayer", lambda *a: type("No", (), {"works": False}))
        full = made(EagerSteps, tokens, config)
    assert full.last is None
    found, seen = made(kind, tokens, config), []
    hook = found.model.model.layers[-1].mlp.register_forward_hook(
        lambda module, args, out: seen.append(out.shape[1])
    )
    with hook:
        assert_same(run(found), run(full))
    assert min(seen) <= 64 and max(seen) >= 128, "only the first segment scores all of its rows"
    assert made(kind, tokens, config.replace(overlap_loss="all")).last is None


class Full:
    """batch_loss on a device that holds only so many segments at once, some of the time."""

    def __init__(self, most, message=""):
        self.most, self.seen = most, []
        self.error = RuntimeError(message) if message else torch.OutOfMemoryError("CUDA is full")

    def __call__(self, model, lm_head, step, *rest):
        loss = steps_batch_loss(model, lm_head, step, *rest)
        self.seen.append(len(step.input_ids))
        if self.seen[-1] > self.most:
            # What the failing pass computed until then must not count.
            loss.backward(retain_graph=True)
            raise self.error
        return loss


steps_batch_loss = steps.batch_loss


@pytest.mark.parametrize("kind", [EagerSteps, DeviceSteps])
@pytest.mark.parametrize("message", ["", "DefaultCPUAllocator: can't allocate memory: 12 bytes"])
def test_out_of_memory_halves_the_pass_and_goes_on(tokens, monkeypatch, kind, message):
    whole = run(made(EagerSteps, tokens))
    found, full = made(kind, tokens), Full(99, message)
    for module in (steps, graph):
        monkeypatch.setattr(module, "batch_loss", full)
    run(found, 0, 3)
    full.most = 1
    run(found, 3)
    assert found.plan.micro_batch == 1 and found.plan.passes == 4 and found.plan.recompute == 0
    assert set(full.seen[:3]) == {4} and {1, 2, 4} == set(full.seen)
    assert_same(found, whole)


def test_out_of_memory_with_one_segment_recomputes_and_then_says_so(tokens, monkeypatch):
    found, full = made(EagerSteps, tokens, CONFIG.replace(batch_size=1)), Full(0)
    monkeypatch.setattr(steps, "batch_loss", full)
    with pytest.raises(LiftError, match="smaller segment_length"):
        found.run(0)
    assert found.plan.recompute == 1 and len(full.seen) == 2
    assert not found.adapter.grads.any()


def test_an_op_without_a_deterministic_form_is_run_all_the_same(tokens, monkeypatch):
    found, whole, calls = made(EagerSteps, tokens), run(made(EagerSteps, tokens)), []

    def refuses(*args):
        loss = steps_batch_loss(*args)
        calls.append(torch.is_deterministic_algorithms_warn_only_enabled())
        if not calls[-1]:
            loss.backward(retain_graph=True)
            raise RuntimeError("put_ does not have a deterministic implementation, but you set")
        return loss

    monkeypatch.setattr(steps, "batch_loss", refuses)
    try:
        run(found)
    finally:
        torch.use_deterministic_algorithms(False)
    assert calls[:2] == [False, True] and all(calls[1:])
    assert "not bit for bit repeatable: put_" in found.how
    assert_same(found, whole)


def test_another_error_is_not_taken_for_a_lack_of_memory(tokens, monkeypatch):
    monkeypatch.setattr(steps, "batch_loss", Full(0, "shapes do not fit"))
    with pytest.raises(RuntimeError, match="shapes"):
        made(EagerSteps, tokens).run(0)


@pytest.mark.parametrize("kind", [EagerSteps, DeviceSteps])
@pytest.mark.parametrize("spoil", [lambda x: x * float("inf"), lambda x: x + float("inf")])
def test_a_step_that_is_no_number_leaves_the_adapter_as_it_was(tokens, monkeypatch, kind, spoil):
    found = run(made(kind, tokens), 0, 2)
    before = found.adapter.values.clone()
    for module in (steps, graph):
        monkeypatch.setattr(module, "batch_loss", lambda *a: spoil(steps_batch_loss(*a)))
    found.run(2)
    assert np.isnan(found.latest(2)) and torch.equal(found.adapter.values, before)
    assert not found.adapter.grads.any()


def test_a_run_may_change_between_host_and_device(tokens):
    """The state is one and the same: what one kind saved, the other goes on with."""
    whole = run(made(EagerSteps, tokens))
    first = run(made(DeviceSteps, tokens), 0, 2)
    second = made(EagerSteps, tokens)
    second.load_state({k: v.clone() for k, v in first.state().items()}, 2)
    run(second, 2, 4)
    third = made(DeviceSteps, tokens)
    third.load_state({k: v.clone() for k, v in second.state().items()}, 4)
    assert_same(run(third, 4), whole)


def test_an_interrupted_run_keeps_the_cut_of_its_steps(tokens, tmp_path):
    """Bit for bit even when the memory that is free would now give another plan."""
    from test_training import stop_after

    def absorb(plan, **options):
        model = tiny_model(initializer_range=0.2)
        adapter = Adapter(model, 4, 8.0)
        adapter.install()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(steps, "choose", lambda *a: plan)
            result = train.train(model, adapter, tokens, CONFIG, prefix=[1], **options)
        return adapter.values, result

    right, _ = absorb(MemoryPlan(3, 2))
    file = tmp_path / "state"
    with pytest.raises(KeyboardInterrupt):
        absorb(MemoryPlan(3, 2), state_file=file, on_step=stop_after(4))
    again, result = absorb(MemoryPlan(4, 1), state_file=file)
    assert torch.equal(again, right) and "3 segments at once" in result.how
