"""Whole training steps on a GPU: a CUDA graph against eager steps, and what it reads back."""

import numpy as np
import pytest
import torch
from errors_and_seeds import rel
from tiny import tiny_model

from liftcore import train
from liftcore.attention import fast_attention
from liftcore.config import LiftConfig
from liftcore.graph import DeviceSteps
from liftcore.lora import Adapter
from liftcore.memory_plan import MemoryPlan

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU")
CONFIG = LiftConfig(segment_length=64, epochs=6, batch_size=4, rank=8, learning_rate=5e-3, eps=1e-2)


def steps_of(tokens, config=CONFIG, dtype=torch.float32):
    model = tiny_model(dtype=dtype, initializer_range=0.2).cuda()
    adapter = Adapter(model, config.rank, config.lora_alpha, config.seed)
    adapter.install()
    return DeviceSteps(model, adapter, tokens, config, [1])


def run(found, eager=False):
    if eager:
        found.why = "asked for"
    with fast_attention(found.model, 65):
        for n in range(len(found.order)):
            found.run(n)
            assert np.isfinite(found.latest(n))
    torch.cuda.synchronize()
    return found


@pytest.fixture
def tokens(rng):
    return rng.integers(3, 200, size=1500)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("overlap_loss", ["all", "new", "mean"])
def test_the_graph_gives_the_losses_of_eager_steps(tokens, dtype, overlap_loss):
    config = CONFIG.replace(schedule="overlap", overlap_loss=overlap_loss)
    graph, eager = run(steps_of(tokens, config, dtype)), run(steps_of(tokens, config, dtype), True)
    assert not graph.why and graph.graphs and all(graph.graphs.values()), graph.why
    bound = 1e-4 if dtype == torch.float32 else 3e-2
    torch.testing.assert_close(graph.losses, eager.losses, rtol=bound, atol=bound)
    assert rel(graph.adapter.values, eager.adapter.values) < 10 * bound


@pytest.mark.parametrize(("micro", "recompute"), [(2, 0), (1, 2)])
def test_smaller_passes_are_captured_too(tokens, micro, recompute):
    whole, small = steps_of(tokens), steps_of(tokens)
    small.use(MemoryPlan(micro, 4 // micro, recompute))
    run(whole), run(small)
    assert not small.why and small.graphs
    torch.testing.assert_close(small.losses, whole.losses, rtol=1e-3, atol=1e-3)


def test_a_run_repeats_itself_bit_for_bit(rng):
    """Through the training loop, with heads and segments that make attention split its work."""
    tokens, config = rng.integers(3, 200, size=6000), CONFIG.replace(segment_length=1024)
    found = []
    for _ in range(2):
        steps = steps_of(tokens, config, torch.bfloat16)
        result = train.train(steps.model, steps.adapter, tokens, config, prefix=[1])
        found.append(steps.adapter.values)
        assert "not bit for bit" not in result.how
    assert torch.equal(*found)


def test_the_training_loop_runs_on_the_graph_and_goes_on_after_an_interrupt(tokens, tmp_path):
    from test_training import stop_after

    def absorb(**options):
        found = steps_of(tokens)
        model, adapter = found.model, found.adapter
        return adapter, train.train(model, adapter, tokens, CONFIG, prefix=[1], **options)

    right, result = absorb()
    assert "one CUDA graph a step" in result.how
    with pytest.raises(KeyboardInterrupt):
        absorb(state_file=tmp_path / "state", on_step=stop_after(7))
    again, resumed = absorb(state_file=tmp_path / "state")
    assert resumed.loss == pytest.approx(result.loss, rel=1e-4)
    assert rel(again.values, right.values) < 1e-3


def test_a_failed_capture_goes_on_eagerly_and_says_why(tokens, monkeypatch):
    from liftcore import graph

    real = graph.batch_loss
    monkeypatch.setattr(
        graph, "batch_loss", lambda *a: (loss := real(*a), loss.detach().sum().item())[0]
    )
    found = run(steps_of(tokens))
    assert "the capture failed" in found.how and torch.isfinite(found.losses).all()
    # The allocator is sound: memory can be given back, and another run be captured.
    monkeypatch.undo()
    torch.cuda.empty_cache()
    assert not run(steps_of(tokens)).why


def test_the_real_model_learns_on_the_graph(embedded, rng):
    model = embedded[0].cuda()
    try:
        config = LiftConfig(epochs=4)
        adapter = Adapter(model, config.rank, config.lora_alpha)
        adapter.install()
        tokens = rng.integers(0, 40_000, size=1000)
        result = train.train(model, adapter, tokens, config, prefix=[])
        assert "one CUDA graph a step" in result.how and result.loss < 9
    finally:
        adapter.remove()
        model.cpu()
