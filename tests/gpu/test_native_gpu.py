"""The CUDA library on a GPU: ops against their twins, in CUDA graphs, and off the first stream."""

import pytest
import torch
from native_checks import (
    OFFSETS,
    SIZES,
    OnDevice,
    around,
    assert_close,
    assert_is,
    fill_grad,
    poison,
    random_adapter,
    random_run,
    twin_of,
)

from liftcore.config import LiftConfig
from liftcore.kernels import adamw, native, reference

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU")
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
SHADOW_TOLERANCE = {torch.float32: 4e-6, torch.bfloat16: 8e-3, torch.float16: 1e-3}
SETTINGS = adamw.Settings(max_norm=1.0, weight_decay=0.1)


@pytest.fixture(params=["library", "twin"])
def path(request, monkeypatch):
    """The ops through the library, and through their twins on the GPU."""
    if request.param == "twin":
        monkeypatch.setattr(native, "live", lambda x: False)
    elif not native.status()[0]:
        pytest.skip(native.status()[1])
    return request.param


def captured(step):
    """A CUDA graph of step(), which must not have run before; nothing runs in the capture."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph


def test_the_library_is_live():
    ok, why = native.status()
    if not ok and not native.file().is_file():
        pytest.skip(why)
    assert ok, why


def test_every_batch_of_random_runs(rng, path):
    for _ in range(20):
        tokens, config, prefix = random_run(rng)
        run = OnDevice(tokens, config, prefix, "cuda")
        for samples in run.samples:
            poison(run.buffers)
            assert_is(run.next(), samples, len(prefix) + run.size)


@pytest.mark.parametrize("schedule", ["jitter", "overlap", "trivial"])
def test_one_graph_replays_a_whole_run(rng, path, schedule):
    config = LiftConfig(
        segment_length=700, schedule=schedule, overlap_loss="new", batch_size=5, epochs=3
    )
    tokens = rng.integers(0, 50_000, size=20_011)
    warm = OnDevice(tokens, config, [1], "cuda")
    warm.next()
    torch.cuda.synchronize()
    run = OnDevice(tokens, config, [1], "cuda")
    graph = captured(run.next)
    for samples in run.samples:
        poison(run.buffers)
        graph.replay()
        assert_is(run.buffers, samples, 701)
    graph.replay()
    assert not run.buffers.count.any()
    assert run.counter.tolist() == [len(run.samples), 0]


@pytest.mark.parametrize("grad_dtype", [None, torch.float32], ids=["own grad", "fp32 grad"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", range(len(SIZES)))
def test_lora_adamw_against_its_twin(rng, path, dtype, grad_dtype, case):
    where = dict(size=SIZES[case], offsets=OFFSETS[case])
    shadow, grad = random_adapter(rng, dtype, grad_dtype, device="cuda", **where)
    generator = torch.Generator().manual_seed(int(rng.integers(2**31)))
    state = adamw.state(shadow, grad, torch.tensor([1e-2, 3e-3, 1e-3], device="cuda"))
    for size in (1.0, 1e-4, 30.0, 1.0):
        fill_grad(state.grad, generator, size)
        right = twin_of(state)
        reference.lora_adamw(*right[:9], *SETTINGS)
        adamw.lora_adamw(state, SETTINGS)
        assert_close(state, right, SHADOW_TOLERANCE[dtype])
    assert all(around(t).isnan().all() for t in (shadow, grad)), "it wrote beside a tensor"


def bf16_state(generator):
    """A State of several chunks and a tail."""
    shadow = torch.randn(1_000_003, generator=generator).to("cuda", torch.bfloat16)
    rates = torch.linspace(1e-2, 1e-3, 8, device="cuda")
    return adamw.state(shadow, torch.zeros_like(shadow), rates)


def test_a_graph_of_updates_gives_the_same_bits(rng, path):
    """Clip, rate and count come from the device; twice the same run gives the same bits."""
    seed = int(rng.integers(2**31))
    results = []
    for in_graph in (False, True, True):
        generator = torch.Generator().manual_seed(seed)
        state = bf16_state(generator)
        run = captured(lambda s=state: adamw.lora_adamw(s, SETTINGS)).replay if in_graph else None
        for _ in range(6):
            fill_grad(state.grad, generator, 1.0)
            if run is None:
                adamw.lora_adamw(state, SETTINGS)
            else:
                run()
        assert int(state.step) == 6
        results.append([state.master, state.norm, state.shadow])
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_gradient_that_is_no_number_changes_no_parameter(rng, path, bad):
    generator = torch.Generator().manual_seed(int(rng.integers(2**31)))
    state = bf16_state(generator)
    before = twin_of(state)
    fill_grad(state.grad, generator, 1.0)
    state.grad[77] = bad
    adamw.lora_adamw(state, SETTINGS)
    assert state.status.tolist() == [1, 1] and int(state.step) == 0
    assert torch.equal(state.master.cpu(), before.master)
    assert torch.equal(state.shadow.cpu(), before.shadow) and not state.grad.any()


def test_a_large_adapter(rng, path):
    """Tens of millions of elements."""
    count = 40_000_003
    values = torch.randn(count, device="cuda").bfloat16()
    grads = torch.randn(count, device="cuda").bfloat16()
    state = adamw.state(values, grads, torch.tensor([1e-3], device="cuda"))
    right = twin_of(state)
    reference.lora_adamw(*right[:9], *SETTINGS)
    adamw.lora_adamw(state, SETTINGS)
    assert_close(state, right, SHADOW_TOLERANCE[torch.bfloat16])


def test_on_another_stream_the_ops_wait_for_it(rng, path):
    generator = torch.Generator().manual_seed(int(rng.integers(2**31)))
    state = bf16_state(generator)
    later = torch.randn(len(state.grad), generator=generator).to("cuda", torch.bfloat16)
    right = twin_of(state)
    right.grad.copy_(later)
    reference.lora_adamw(*right[:9], *SETTINGS)
    torch.cuda.synchronize()
    with torch.cuda.stream(torch.cuda.Stream()):
        torch.cuda._sleep(100_000_000)
        state.grad.copy_(later)
        adamw.lora_adamw(state, SETTINGS)
    torch.cuda.synchronize()
    assert_close(state, right, SHADOW_TOLERANCE[torch.bfloat16])
