"""A step on the device against the step from the host, and steps cut to fit into memory."""

import numpy as np
import pytest
import torch
from errors_and_seeds import rel
from interrupts import stop_after
from native_checks import random_run
from steps import CONFIG, Run, mixed
from tiny import OLD_TRANSFORMERS, tiny_model
from torch.utils._python_dispatch import TorchDispatchMode

from liftcore.errors import LiftError
from liftcore.layers.attention import fast_attention
from liftcore.layers.lora import Adapter
from liftcore.training import batch, runner
from liftcore.training.graph import GraphRunner, rounded, waiting_positions
from liftcore.training.loop import train
from liftcore.training.memory_plan import MemoryPlan
from liftcore.training.runner import Runner
from liftcore.training.source import segments_alone

BOTH = pytest.mark.parametrize("kind", [Runner, GraphRunner])


def made(kind, tokens, config=CONFIG, prefix=(1,), **options):
    return Run(kind, segments_alone(tokens, config, list(prefix)), **options)


def assert_same(one, other, bound=1e-4):
    assert one.taken == other.taken and torch.isfinite(one.losses).all()
    torch.testing.assert_close(one.losses, other.losses, rtol=bound, atol=bound)
    assert rel(one.adapter.values, other.adapter.values) < bound


@pytest.fixture
def tokens(rng):
    return rng.integers(3, 200, size=170)


def test_steps_on_the_device_are_those_of_the_host(rng):
    """All schedules, losses and prefixes."""
    for _ in range(3):
        tokens, config, prefix = random_run(rng)
        tokens = np.asarray(tokens) % 200
        config = config.replace(epochs=2, rank=4, learning_rate=2e-3, eps=1e-2)
        host = made(Runner, tokens, config, prefix).take()
        assert_same(made(GraphRunner, tokens, config, prefix).take(), host)


def test_mixed_steps_on_the_device_are_those_of_the_host(rng, tokens):
    seed = int(rng.integers(1 << 30))
    host, device = (
        Run(kind, mixed(np.random.default_rng(seed), tokens)).take()
        for kind in (Runner, GraphRunner)
    )
    assert_same(device, host)
    assert len(device.runner.buffers) <= 12, "few shapes"


def test_sizes_are_rounded_to_few():
    for most in (1, 7, 48, 128, 1000):
        sizes = [rounded(n, most) for n in range(1, most + 1)]
        assert all(n <= size <= most for n, size in zip(range(1, most + 1), sizes, strict=True))
        assert sizes == sorted(sizes) and len(set(sizes)) <= 2 * np.log2(most) + 2
        assert all(size % 16 == 0 or size == most for size in sizes)
    assert rounded(130, 128) == 144, "longer than was thought: still a multiple"


@BOTH
@pytest.mark.parametrize(("micro", "recompute"), [(1, 0), (3, 0), (2, 1), (4, 2)])
def test_a_step_in_smaller_passes_is_the_same_step(tokens, kind, micro, recompute):
    config = CONFIG.replace(schedule="overlap", stride=9, overlap_loss="mean")
    whole = made(Runner, tokens, config).take()
    small = made(kind, tokens, config)
    small.runner.use(MemoryPlan(micro, -(-4 // micro), recompute))
    assert_same(small.take(), whole)


class NoWaiting(TorchDispatchMode):
    """Fails at an op that would make the host wait for a device."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = str(function)
        assert "_local_scalar_dense" not in name and "nonzero" not in name, name
        if "aten.index." in name:
            assert all(i is None or i.dtype != torch.bool for i in args[1]), "a boolean index"
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("kind", ["default", "linear", "dynamic", "longrope"])
def test_rotary_positions_that_read_the_device_are_not_captured(kind):
    """ "dynamic" and, in some versions of transformers, "longrope" look at the longest position."""
    scaling = {"rope_type": kind, "rope_theta": 1e4, "factor": 2.0}
    if kind == "longrope":
        factors = {name: [1.0] * 6 for name in ("short_factor", "long_factor")}
        scaling |= {**factors, "original_max_position_embeddings": 64}
    model = tiny_model(dtype=torch.bfloat16, rope_scaling=None if kind == "default" else scaling)

    def waits():
        with torch.no_grad(), fast_attention(model, 8), NoWaiting():
            try:
                model.model(input_ids=torch.ones(1, 8, dtype=torch.int64), use_cache=False)
            except AssertionError as error:
                return "_local_scalar_dense" in str(error)
        return False

    why = waiting_positions(model)
    assert bool(why) == waits() and (not why or repr(kind) in why)
    assert bool(why) == (kind == "dynamic") or kind == "longrope"


def fixed_rows_loss(hidden, weight, labels, *, token_weights, row_index, **options):
    """The head's loss without its CPU path, which looks at the rows on the host."""
    logits, labels = hidden[row_index] @ weight.T, labels[row_index].clamp_min(0)
    nll = torch.nn.functional.cross_entropy(logits, labels, reduction="none")
    return (nll * token_weights[row_index]).sum()


@pytest.mark.parametrize("overlap_loss", ["all", "new"])
def test_a_step_on_the_device_never_makes_the_host_wait(tokens, monkeypatch, overlap_loss):
    """What a CUDA graph needs, shown without a GPU."""
    monkeypatch.setattr(batch, "linear_cross_entropy", fixed_rows_loss)
    config = CONFIG.replace(schedule="overlap", overlap_loss=overlap_loss, segment_length=128)
    run = made(GraphRunner, np.tile(tokens, 6), config, dtype=torch.bfloat16)
    run.runner.use(MemoryPlan(2, 2))
    assert (run.runner.last is not None) == (overlap_loss == "new" and not OLD_TRANSFORMERS)
    # What is read back now and then is read by copies.
    monkeypatch.setattr(run.runner, "_latest", lambda step: 0.0)
    with fast_attention(run.model, 129):
        run.take(1)
        with NoWaiting():
            run.take(1)
    assert torch.isfinite(run.losses).all() and run.taken == 2


@pytest.mark.skipif(OLD_TRANSFORMERS, reason="layers that return tuples are computed in full")
@BOTH
def test_few_scored_rows_leave_the_last_layer_less_to_do(tokens, monkeypatch, kind):
    config = CONFIG.replace(schedule="overlap", overlap_loss="new", segment_length=128, epochs=2)
    tokens = np.tile(tokens, 6)
    with monkeypatch.context() as patch:
        patch.setattr(
            runner, "LastLayer", lambda *a: type("No", (), {"works": False, "why": "not asked"})
        )
        full = made(Runner, tokens, config)
    assert full.runner.last is None
    run, seen = made(kind, tokens, config), []
    hook = run.model.model.layers[-1].mlp.register_forward_hook(
        lambda module, args, out: seen.append(out.shape[1])
    )
    with hook:
        assert_same(run.take(), full.take())
    assert min(seen) <= 64 and max(seen) >= 128, "only the first segment scores all of its rows"
    assert made(kind, tokens, config.replace(overlap_loss="all")).runner.last is None


plain_loss = runner.batch_loss


class Full:
    """batch_loss on a device that holds only so many segments at once, some of the time."""

    def __init__(self, most, message=""):
        self.most, self.seen = most, []
        self.error = RuntimeError(message) if message else torch.OutOfMemoryError("CUDA is full")

    def __call__(self, model, lm_head, step, *rest):
        loss = plain_loss(model, lm_head, step, *rest)
        self.seen.append(len(step.input_ids))
        if self.seen[-1] > self.most:
            # What the failing pass computed until then must not count.
            loss.backward(retain_graph=True)
            raise self.error
        return loss


@BOTH
@pytest.mark.parametrize("message", ["", "DefaultCPUAllocator: can't allocate memory: 12 bytes"])
def test_out_of_memory_halves_the_pass_and_goes_on(tokens, monkeypatch, kind, message):
    config = CONFIG.replace(schedule="overlap", stride=24)
    whole = made(Runner, tokens, config).take()
    run, full = made(kind, tokens, config), Full(99, message)
    monkeypatch.setattr(runner, "batch_loss", full)
    run.take(3)
    full.most = 1
    run.take()
    plan = run.runner.plan
    assert plan.micro_batch == 1 and plan.passes == 4 and plan.recompute == 0
    assert set(full.seen[:2]) == {4} and {1, 2, 4} == set(full.seen)
    assert_same(run, whole)


def test_out_of_memory_with_one_segment_recomputes_and_then_says_so(tokens, monkeypatch):
    run, full = made(Runner, tokens, CONFIG.replace(batch_size=1)), Full(0)
    monkeypatch.setattr(runner, "batch_loss", full)
    with pytest.raises(LiftError, match="smaller segment_length"):
        run.take(1)
    assert run.runner.plan.recompute == 1 and len(full.seen) == 2
    assert not run.adapter.grads.any()


def test_an_op_without_a_deterministic_form_is_run_all_the_same(tokens, monkeypatch):
    run, whole, calls = made(Runner, tokens), made(Runner, tokens).take(), []

    def refuses(*args):
        loss = plain_loss(*args)
        calls.append(torch.is_deterministic_algorithms_warn_only_enabled())
        if not calls[-1]:
            loss.backward(retain_graph=True)
            raise RuntimeError("put_ does not have a deterministic implementation, but you set")
        return loss

    monkeypatch.setattr(runner, "batch_loss", refuses)
    try:
        run.take()
    finally:
        torch.use_deterministic_algorithms(False)
    assert calls[:2] == [False, True] and all(calls[1:])
    assert "not bit for bit repeatable: put_" in run.runner.how
    assert_same(run, whole)


def test_another_error_is_not_taken_for_a_lack_of_memory(tokens, monkeypatch):
    monkeypatch.setattr(runner, "batch_loss", Full(0, "shapes do not fit"))
    with pytest.raises(RuntimeError, match="shapes"):
        made(Runner, tokens).take(1)


@BOTH
@pytest.mark.parametrize("spoil", [lambda x: x * float("inf"), lambda x: x + float("inf")])
def test_a_step_that_is_no_number_leaves_the_adapter_as_it_was(tokens, monkeypatch, kind, spoil):
    run = made(kind, tokens).take(2)
    before = run.adapter.values.clone()
    monkeypatch.setattr(runner, "batch_loss", lambda *a: spoil(plain_loss(*a)))
    assert np.isnan(run.runner.run(next(run.steps)))
    assert torch.isnan(run.runner.losses[2]) and torch.equal(run.adapter.values, before)
    assert not run.adapter.grads.any()
    monkeypatch.undo()
    assert np.isfinite(run.runner.run(next(run.steps))), "the next step is a good one"


def test_a_run_may_change_between_host_and_device(tokens):
    """The state is one and the same: what one kind saved, the other goes on with."""
    whole, run = made(Runner, tokens).take(), made(Runner, tokens).take(2)
    for kind in (GraphRunner, Runner):
        state = {k: v.clone() for k, v in run.runner.state().items()}
        other = made(kind, tokens)
        other.runner.load_state(state, run.losses.clone())
        other.source.restore(run.source.state())
        other.taken = run.taken
        run = other.take(1)
    assert_same(run.take(), whole)


def test_losses_find_room_in_a_long_run(tokens, monkeypatch):
    whole = made(Runner, tokens, CONFIG.replace(epochs=5)).take()
    monkeypatch.setattr(runner, "ROOM", 4)
    assert_same(made(Runner, tokens, CONFIG.replace(epochs=5)).take(), whole)


def test_an_interrupted_run_keeps_the_cut_of_its_steps(tokens, tmp_path):
    """Bit for bit even when the memory that is free would now give another plan."""

    def absorb(plan, **options):
        model = tiny_model(initializer_range=0.2)
        adapter = Adapter(model, 4, 8.0)
        adapter.install()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(runner, "choose", lambda *a: plan)
            result = train(adapter, segments_alone(tokens, CONFIG, [1]), **options)
        return adapter.values, result

    right, _ = absorb(MemoryPlan(3, 2))
    file = tmp_path / "state"
    with pytest.raises(KeyboardInterrupt):
        absorb(MemoryPlan(3, 2), state_file=file, on_step=stop_after(4))
    again, result = absorb(MemoryPlan(4, 1), state_file=file)
    assert torch.equal(again, right) and "3 segments at once" in result.how
