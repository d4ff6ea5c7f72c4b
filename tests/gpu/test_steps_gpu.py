"""Whole training steps on a GPU: CUDA graphs against eager steps, and what is read back."""

import numpy as np
import pytest
import torch
from errors_and_seeds import rel
from steps import Run, mixed
from tiny import tiny_model

from liftcore.config import LiftConfig
from liftcore.layers.attention import fast_attention
from liftcore.layers.lora import Adapter
from liftcore.training import runner
from liftcore.training.graph import GraphRunner
from liftcore.training.loop import train
from liftcore.training.memory_plan import MemoryPlan
from liftcore.training.source import segments_alone

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU")
CONFIG = LiftConfig(segment_length=64, epochs=6, batch_size=4, rank=8, learning_rate=5e-3, eps=1e-2)


def made(source, dtype=torch.float32, eager=False):
    run = Run(GraphRunner, source, dtype=dtype, device="cuda")
    if eager:
        run.runner.why = "asked for"
    return run


def taken(run):
    with fast_attention(run.model, 65):
        run.take()
    torch.cuda.synchronize()
    return run


@pytest.fixture
def tokens(rng):
    return rng.integers(3, 200, size=1500)


def assert_same(one, other, bound):
    torch.testing.assert_close(one.losses, other.losses, rtol=bound, atol=bound)
    assert rel(one.adapter.values, other.adapter.values) < 10 * bound


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("overlap_loss", ["all", "new", "mean"])
def test_graphs_give_the_losses_of_eager_steps(tokens, dtype, overlap_loss):
    config = CONFIG.replace(schedule="overlap", overlap_loss=overlap_loss)
    graph, eager = (
        taken(made(segments_alone(tokens, config, [1]), dtype, eager)) for eager in (False, True)
    )
    assert not graph.runner.why and any(graph.runner.graphs.values()), graph.runner.why
    assert_same(graph, eager, 1e-4 if dtype == torch.float32 else 3e-2)


def test_questions_and_distillation_go_through_graphs_too(rng, tokens):
    seed, config = int(rng.integers(1 << 30)), CONFIG.replace(segment_length=24)
    graph, eager = (
        taken(made(mixed(np.random.default_rng(seed), tokens, config), eager=eager))
        for eager in (False, True)
    )
    assert not graph.runner.why and sum(map(bool, graph.runner.graphs.values())) > 1
    assert_same(graph, eager, 1e-4)


@pytest.mark.parametrize(("micro", "recompute"), [(2, 0), (1, 2)])
def test_smaller_passes_are_captured_too(tokens, micro, recompute):
    whole, small = (made(segments_alone(tokens, CONFIG, [1])) for _ in range(2))
    small.runner.use(MemoryPlan(micro, 4 // micro, recompute))
    taken(whole), taken(small)
    assert not small.runner.why and any(small.runner.graphs.values())
    torch.testing.assert_close(small.losses, whole.losses, rtol=1e-3, atol=1e-3)


def absorb(tokens, config=CONFIG, dtype=torch.float32, **options):
    model = tiny_model(dtype=dtype, initializer_range=0.2).cuda()
    adapter = Adapter(model, config.rank, config.lora_alpha, config.seed)
    adapter.install()
    return adapter, train(adapter, segments_alone(tokens, config, [1]), **options)


def test_a_run_repeats_itself_bit_for_bit(rng):
    """Through the training loop, with heads and segments that make attention split its work."""
    tokens, config = rng.integers(3, 200, size=6000), CONFIG.replace(segment_length=1024)
    values = []
    for _ in range(2):
        adapter, result = absorb(tokens, config, torch.bfloat16)
        values.append(adapter.values)
        assert "not bit for bit" not in result.how
    assert torch.equal(*values)


def test_the_training_loop_runs_on_graphs_and_goes_on_after_an_interrupt(tokens, tmp_path):
    from interrupts import stop_after

    right, result = absorb(tokens)
    assert "CUDA graphs of" in result.how
    with pytest.raises(KeyboardInterrupt):
        absorb(tokens, state_file=tmp_path / "state", on_step=stop_after(7))
    again, resumed = absorb(tokens, state_file=tmp_path / "state")
    assert resumed.loss == pytest.approx(result.loss, rel=1e-4)
    assert rel(again.values, right.values) < 1e-3


def test_a_failed_capture_goes_on_eagerly_and_says_why(tokens, monkeypatch):
    real = runner.batch_loss
    monkeypatch.setattr(
        runner, "batch_loss", lambda *a: (loss := real(*a), loss.detach().sum().item())[0]
    )
    run = taken(made(segments_alone(tokens, CONFIG, [1])))
    assert "the capture failed" in run.runner.how and torch.isfinite(run.losses).all()
    # The allocator is sound: memory can be given back, and another run be captured.
    monkeypatch.undo()
    torch.cuda.empty_cache()
    assert not taken(made(segments_alone(tokens, CONFIG, [1]))).runner.why


def test_the_real_model_learns_on_graphs(embedded, rng):
    model = embedded[0].cuda()
    try:
        config = LiftConfig(epochs=4)
        adapter = Adapter(model, config.rank, config.lora_alpha)
        adapter.install()
        tokens = rng.integers(0, 40_000, size=1000)
        result = train(adapter, segments_alone(tokens, config, []))
        assert "CUDA graphs of" in result.how and result.loss < 9
    finally:
        adapter.remove()
        model.cpu()
