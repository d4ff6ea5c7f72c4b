"""lora_adamw through its twin and through the kernels run on the CPU, against the training loop."""

import pytest
import torch
from native_checks import (
    OFFSETS,
    SIZES,
    OnDevice,
    around,
    assert_close,
    fill_grad,
    random_adapter,
    twin_of,
)

from liftcore.config import LiftConfig
from liftcore.kernels import adamw, reference
from liftcore.kernels import segment_batch as segmenting
from liftcore.training.optimizer import MasterAdamW

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
SHADOW_TOLERANCE = {torch.float32: 4e-6, torch.bfloat16: 8e-3, torch.float16: 1e-3}


@pytest.mark.parametrize("grad_dtype", [None, torch.float32], ids=["own grad", "fp32 grad"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", range(len(SIZES)))
def test_lora_adamw_is_its_twin(rng, path, dtype, grad_dtype, case):
    """By way of the twin itself this checks the zeroing and what lies beside the tensors."""
    where = dict(size=SIZES[case], offsets=OFFSETS[case])
    shadow, grad = random_adapter(rng, dtype, grad_dtype, **where)
    generator = torch.Generator().manual_seed(int(rng.integers(2**31)))
    state = adamw.state(shadow, grad, torch.tensor([1e-2, 3e-3, 1e-3]))
    settings = adamw.Settings(max_norm=1.0, weight_decay=0.1)
    for size in (1.0, 1e-4, 30.0, 1.0):
        fill_grad(state.grad, generator, size)
        right = twin_of(state)
        reference.lora_adamw(*right[:9], *settings)
        norm = adamw.lora_adamw(state, settings)
        assert norm.data_ptr() == state.norm.data_ptr()
        assert_close(state, right, SHADOW_TOLERANCE[dtype])
    assert shadow.data_ptr() == state.shadow.data_ptr() and grad.data_ptr() == state.grad.data_ptr()
    assert all(around(t).isnan().all() for t in (shadow, grad)), "it wrote beside a tensor"
    assert int(state.step) == 4


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_lora_adamw_gives_the_numbers_of_the_training_loop(rng, path, dtype, weight_decay):
    generator = torch.Generator().manual_seed(int(rng.integers(2**31)))

    class Adapter:
        values = torch.randn(9001, generator=generator).to(dtype)
        grads = torch.zeros(9001, dtype=dtype)

    config = LiftConfig(weight_decay=weight_decay, max_grad_norm=0.7)
    shadow, grad = Adapter.values.clone(), torch.zeros_like(Adapter.grads)
    loop = MasterAdamW(Adapter, config)
    rates = torch.rand(6, generator=generator) * 1e-2
    state = adamw.state(shadow, grad, rates)
    settings = adamw.Settings(
        config.max_grad_norm, config.beta1, config.beta2, config.eps, config.weight_decay
    )
    for n in range(6):
        fill_grad(grad, generator, 1.0 if n % 2 else 1e-3)
        Adapter.grads.copy_(grad)
        right, ours = loop.clip(), adamw.lora_adamw(state, settings)
        loop.step(float(rates[n]))
        # The loop adds up in fp32, one element after another.
        torch.testing.assert_close(ours[0], right, rtol=1e-5, atol=0)
        saved = loop.state()
        for name in ("master", "exp_avg", "exp_avg_sq"):
            top = float(saved[name].abs().max())
            mine = getattr(state, name)
            torch.testing.assert_close(mine, saved[name], rtol=2e-5, atol=1e-6 * top)
        assert not grad.any() and int(state.step) == int(saved["step"])
    torch.testing.assert_close(shadow, Adapter.values, rtol=SHADOW_TOLERANCE[dtype], atol=1e-6)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_a_gradient_that_is_no_number_changes_no_parameter(rng, path, bad):
    generator = torch.Generator().manual_seed(int(rng.integers(2**31)))
    state = adamw.state(*random_adapter(rng, torch.bfloat16), torch.tensor([1e-2]))
    settings = adamw.Settings()
    fill_grad(state.grad, generator, 1.0)
    adamw.lora_adamw(state, settings)
    before = twin_of(state)
    fill_grad(state.grad, generator, 1.0)
    state.grad[int(rng.integers(len(state.grad)))] = bad
    norm = adamw.lora_adamw(state, settings)
    assert not norm.isfinite() and state.status.tolist() == [1, 1] and int(state.step) == 1
    for name in ("master", "exp_avg", "exp_avg_sq", "shadow"):
        assert torch.equal(getattr(state, name), getattr(before, name))
    assert not state.grad.any()
    fill_grad(state.grad, generator, 1.0)
    adamw.lora_adamw(state, settings)
    assert state.status.tolist() == [0, 1] and int(state.step) == 2


def test_the_rate_is_that_of_the_update_and_the_last_one_holds_on(rng, path):
    """Without gradient only the decay is left: p falls by rate · decay an update."""
    state = adamw.state(torch.ones(100), torch.zeros(100), torch.tensor([0.1, 0.2]))
    right = 1.0
    for rate in (0.1, 0.2, 0.2):
        adamw.lora_adamw(state, adamw.Settings(weight_decay=0.5))
        right *= 1 - rate * 0.5
        torch.testing.assert_close(state.master, torch.full((100,), right))
    assert torch.equal(state.shadow, state.master)


def one(*shape, dtype=torch.bfloat16, device="cpu"):
    return torch.zeros(shape or 8, dtype=dtype, device=device)


@pytest.mark.parametrize(
    ("shadow", "grad", "message"),
    [
        (one(), one(9), "not .8. as the shadow"),
        (one(4, 2), one(4, 2), "is not .P."),
        (one(0), one(0), "is not .P."),
        (one(dtype=torch.float64), one(), "shadow is"),
        (one(), one(dtype=torch.float16), "grad is"),
        (one(16)[::2], one(), "not contiguous"),
        (one(), one(16)[::2], "not contiguous"),
        (one(device="meta"), one(device="meta"), "not on cpu"),
    ],
)
def test_lora_adamw_refuses_what_does_not_fit(shadow, grad, message):
    with pytest.raises(ValueError, match=message):
        adamw.state(shadow, grad, torch.tensor([1e-3]))


def test_lora_adamw_refuses_settings_that_make_no_sense():
    state = adamw.state(one(), one(), torch.tensor([1e-3]))
    for bad in (dict(max_norm=0.0), dict(beta1=1.0), dict(beta2=-0.1), dict(eps=0.0),
                dict(weight_decay=-1.0)):  # fmt: skip
        with pytest.raises(ValueError, match="lora_adamw"):
            adamw.lora_adamw(state, adamw.Settings(**bad))
    for rates in (torch.tensor(1e-3), torch.empty(0), torch.ones(2, dtype=torch.float64)):
        with pytest.raises(ValueError, match="rates"):
            adamw.state(one(), one(), rates)


def test_both_ops_compile_in_one_graph(rng):
    tokens, settings = rng.integers(0, 99, size=60), adamw.Settings()
    config = LiftConfig(segment_length=16, batch_size=2, epochs=1)
    shadow, grad = random_adapter(rng, torch.float32)

    def fresh():
        state = adamw.state(shadow.clone(), grad.clone(), torch.tensor([1e-2]))
        return state, OnDevice(tokens, config, [1])

    def step(state, tables, counter, buffers):
        segmenting.segment_batch(tables, counter, buffers, size=16, stride=16)
        return adamw.lora_adamw(state, settings) + buffers.weights.sum()

    fill_grad(grad, torch.Generator().manual_seed(0), 1.0)
    results = []
    for f in (step, torch.compile(step, fullgraph=True, backend="aot_eager")):
        state, run = fresh()
        results.append([f(state, run.tables, run.counter, run.buffers), state.master, state.shadow,
                        run.buffers.labels, run.counter])  # fmt: skip
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
