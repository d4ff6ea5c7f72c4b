"""Steps on mixed samples: the loss, memory, streams in a run, and going on bit for bit."""

import os
import signal
import time
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from errors_and_seeds import rel
from interrupts import stop_after
from streams import Fixed, Stream, sample
from tiny import OLD_TRANSFORMERS, tiny_model

from liftcore.config import LiftConfig
from liftcore.errors import LiftError
from liftcore.layers.last_layer import LastLayer
from liftcore.layers.lora import Adapter
from liftcore.model import head
from liftcore.objectives.sample import Sample, SoftTargets
from liftcore.objectives.segments import Segments
from liftcore.output import STATE
from liftcore.training import checkpoint
from liftcore.training import runner as training_runner
from liftcore.training.batch import batch_loss, make, shape_of
from liftcore.training.loop import train
from liftcore.training.memory_plan import MemoryPlan
from liftcore.training.runner import Runner
from liftcore.training.source import StepSource
from liftcore.training.step import learning_rate

# A large eps: Adam would turn rounding in a gradient near 0 into a whole step.
CONFIG = LiftConfig(segment_length=24, epochs=3, batch_size=4, rank=4, learning_rate=5e-3, eps=1e-2)


def random_samples(rng, count, soft=False):
    samples = []
    for _ in range(count):
        n = int(rng.integers(4, 30))
        weights = np.where(rng.random(n) < 0.5, rng.random(n), 0).astype(np.float32)
        weights[0], weights[-1] = 0, 1
        targets = None
        if soft:
            probs = rng.random((n, 3)).astype(np.float16) / 4
            targets = SoftTargets(rng.integers(3, 200, (n, 3)).astype(np.int32), probs)
        samples.append(Sample(rng.integers(3, 200, n).astype(np.int32), weights, targets, "x"))
    return samples


def plain_loss(model, samples):
    """Σ weight · loss, sample by sample from the model's own logits."""
    total = 0.0
    for s in samples:
        ids = torch.from_numpy(s.ids.astype(np.int64))
        logs = model(input_ids=ids[None]).logits[0].float().log_softmax(-1)
        for t in np.flatnonzero(s.weights):
            if s.soft is None:
                loss = -logs[t - 1, ids[t]]
            else:
                probs = torch.from_numpy(s.soft.probs[t].astype(np.float32))
                loss = -(probs * logs[t - 1, torch.from_numpy(s.soft.ids[t].astype(np.int64))])
            total = total + float(s.weights[t]) * loss.sum()
    return total


@pytest.mark.parametrize("kinds", ["hard", "soft", "both"])
@pytest.mark.parametrize("chosen", [False, True])
@pytest.mark.parametrize("room", [False, True])
def test_the_loss_is_that_of_each_sample_alone(rng, kinds, chosen, room):
    if chosen and OLD_TRANSFORMERS:
        pytest.skip("layers that return tuples are computed in full")
    samples = random_samples(rng, 4, soft=kinds == "soft")
    if kinds == "both":
        samples += random_samples(rng, 3, soft=True)
    model = tiny_model(initializer_range=0.2)
    adapter = Adapter(model, 4, 8.0)
    adapter.values.add_(
        torch.randn(adapter.values.shape, generator=torch.Generator().manual_seed(1)) * 0.1
    )
    adapter.install()
    last = LastLayer(model, 32)
    assert last.works is not OLD_TRANSFORMERS
    shape = shape_of(samples, 2.0 if chosen else 0.0)
    if room:
        shape = replace(
            shape,
            rows=shape.rows + 2,
            length=shape.length + 5,
            chosen=shape.chosen and shape.chosen + 1,
            hard=shape.hard and shape.hard + 9,
            soft=shape.soft and shape.soft + 3,
        )
    batch = make(samples, shape)
    assert (batch.chosen is not None) == chosen and len(batch.hard_rows) == shape.hard
    ours = batch_loss(model, head(model), batch, 3.0, last if last.works else None)
    ours.backward()
    grads, right = adapter.grads.clone(), plain_loss(model, samples) / 3.0
    adapter.grads.zero_()
    right.backward()
    assert rel(ours, right) < 1e-5 and rel(grads, adapter.grads) < 1e-4
    scored = sum(np.count_nonzero(s.weights) for s in samples)
    assert int((batch.weights != 0).sum()) == scored
    rows = torch.cat([batch.hard_rows, batch.soft_rows])
    assert int((batch.weights[rows] != 0).sum()) == scored
    if not room:
        assert len(rows) == scored, "only scored rows"


def mix_of(tokens, extra=(), config=CONFIG, weights=None):
    objectives = [Segments(tokens, config, [1]), *extra]
    return StepSource(objectives, config, 200, weights=weights, prefix=1)


def fresh_adapter(config=CONFIG, dtype=torch.float32):
    model = tiny_model(dtype=dtype, initializer_range=0.2)
    adapter = Adapter(model, config.rank, config.lora_alpha, config.seed)
    adapter.install()
    return adapter


def runner_of(source, kind=Runner):
    return kind(fresh_adapter(source.config), source)


def trained(source, dtype=torch.float32, plan=None, **options):
    """(adapter values, result) of a whole run on a fresh tiny model."""
    adapter = fresh_adapter(source.config, dtype)
    with pytest.MonkeyPatch.context() as patch:
        if plan is not None:
            patch.setattr(training_runner, "choose", lambda *a: plan)
        result = train(adapter, source, **options)
    return adapter.values.detach().clone(), result


@pytest.fixture
def tokens(rng):
    return rng.integers(3, 200, size=150)


def answers(count=7, **options):
    return Fixed([sample(12, 4, "qa", first=3 + i) for i in range(count)], "qa")


def test_training_lowers_the_loss_of_every_objective(rng):
    few, losses = rng.integers(3, 20, size=150), []
    config = CONFIG.replace(epochs=16, eps=1e-8)
    mix = mix_of(few, [answers()], config)
    trained(mix, on_step=lambda p: losses.append(p.loss))
    assert np.mean(losses[-8:]) < 0.7 * np.mean(losses[:8])


@pytest.mark.parametrize("micro", [1, 2])
def test_a_step_in_smaller_passes_is_the_same_step(tokens, micro):
    whole, _ = trained(mix_of(tokens, [answers()]))
    small, result = trained(mix_of(tokens, [answers()]), plan=MemoryPlan(micro, 4 // micro, 1))
    assert rel(small, whole) < 1e-4 and "every layer" in result.how


def test_out_of_memory_halves_the_pass_and_goes_on(tokens, monkeypatch):
    whole, _ = trained(mix_of(tokens, [answers()]))
    rows, real = [], training_runner.batch_loss

    def full(model, lm_head, batch, *rest):
        loss = real(model, lm_head, batch, *rest)
        rows.append(batch.input_ids.numel())
        if rows[-1] > 30:
            loss.backward(retain_graph=True)
            raise torch.OutOfMemoryError("CUDA is full")
        return loss

    monkeypatch.setattr(training_runner, "batch_loss", full)
    small, result = trained(mix_of(tokens, [answers()]))
    assert rel(small, whole) < 1e-4 and "1 segment at once" in result.how and min(rows) <= 30


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_interrupted_mix_goes_on_bit_for_bit(rng, tokens, tmp_path, dtype):
    fresh = partial(mix_of, tokens, [answers()], weights=[1.0, 0.5])
    right, expected = trained(fresh(), dtype=dtype)
    file, run = tmp_path / STATE, {"document": "x"}
    for stop in sorted(rng.choice(np.arange(1, expected.steps), size=2, replace=False)):
        with pytest.raises(KeyboardInterrupt):
            trained(fresh(), dtype=dtype, state_file=file, run=run, on_step=stop_after(int(stop)))
    resumed, result = trained(fresh(), dtype=dtype, state_file=file, run=run)
    assert torch.equal(resumed, right)
    assert (result.steps, result.loss) == (expected.steps, expected.loss)
    assert result.token_passes == expected.token_passes


class Late(Stream):
    """Six samples that come at a poll far behind the first."""

    def __init__(self, polls):
        samples = [sample(12, 4, "qa", first=3 + i) for i in range(6)]
        super().__init__([*[None] * polls, samples])
        self.begun, self.ended = time.perf_counter(), None

    def poll(self):
        new = super().poll()
        self.ended = self.ended or (time.perf_counter() if new else None)
        return new

    @property
    def seconds(self):
        return (self.ended or time.perf_counter()) - self.begun


def test_a_run_waits_at_its_end_for_what_is_still_being_made(tokens):
    seen, config = [], CONFIG.replace(epochs=1)
    mix = mix_of(tokens, [Late(20)], config)
    _, result = trained(mix, on_step=lambda p: seen.append(time.perf_counter()))
    rows = [*mix.objectives[1].known, *mix.objectives[0].samples(0)]
    assert mix.finished and result.token_passes == sum(map(len, rows))
    assert seen[-1] > mix.objectives[1].ended, "the last step is of what came last"
    assert result.making == mix.objectives[1].seconds and result.waited > 0
    before = result.making - result.waited - result.hidden
    assert result.hidden >= 0 and before >= -0.01
    assert result.hidden == 0 or seen[0] - mix.objectives[1].begun >= before


def test_questions_first_waits_at_the_start(tokens):
    config = CONFIG.replace(qa_first=True)
    mix, known = mix_of(tokens, [Late(9)], config), []
    _, result = trained(mix, on_step=lambda p: known.append(len(mix.objectives[1].known)))
    assert set(known) == {6} and result.waited > 0 and mix.running.arrivals == []


class Never(Stream):
    """Nothing comes, and somebody loses patience."""

    def __init__(self, patience):
        super().__init__([None] * 10**6, expected=9)
        self.patience = patience

    def poll(self):
        self.patience -= 1
        if self.patience == 0:
            os.kill(os.getpid(), signal.SIGINT)
        return super().poll()


def test_an_interrupt_ends_the_wait_and_the_run_goes_on(tokens, tmp_path):
    """The samples never come; what was trained is saved, and trained on when they do."""
    file, steps = tmp_path / "state", []
    config = CONFIG.replace(epochs=1)
    mix = mix_of(tokens, [Never(12)], config)
    with pytest.raises(KeyboardInterrupt):
        trained(mix, state_file=file, on_step=lambda p: steps.append(p.step))
    again = mix_of(tokens, [Late(0)], config)
    _, result = trained(again, state_file=file)
    assert result.steps == steps[-1] + 1, "the answers fill one step"


def test_an_interrupt_before_anything_came(tmp_path):
    """Questions alone, of which none is there yet."""
    config, file = CONFIG.replace(epochs=1), tmp_path / "state"
    never = StepSource([Never(5)], config, 200)
    with pytest.raises(KeyboardInterrupt):
        trained(never, state_file=file)
    assert checkpoint.read(file, {})[1].step == 0
    mix = StepSource([Stream([None, [sample(12, 4)]])], config, 200)
    assert trained(mix, state_file=file)[1].steps == 1
    nothing = StepSource([Stream([None, None])], config, 200)
    with pytest.raises(LiftError, match="nothing to learn"):
        trained(nothing)


def test_samples_may_be_made_with_the_model_between_two_steps():
    """Caches and sampling work then, although the steps attend in a way that knows neither."""

    class Generates(Stream):
        def poll(self):
            ids = torch.tensor([[3, 4, 5]])
            seen.append(model.generate(ids, max_new_tokens=3, do_sample=False, pad_token_id=0))
            return super().poll()

    seen, losses, model = [], [], tiny_model(dtype=torch.bfloat16)
    adapter = Adapter(model, 4, 8.0)
    adapter.install()
    config = CONFIG.replace(epochs=1)
    mix = StepSource([Generates([None, [sample(12, 4)], None])], config, 200)
    before = model.config._attn_implementation
    train(adapter, mix, on_step=lambda p: losses.append(p.loss))
    assert model.config._attn_implementation == before
    assert len(seen) >= 3 and len(losses) == 1 and np.isfinite(losses[0])


def test_each_step_is_taken_at_its_rate(tokens):
    source, rates = mix_of(tokens, [answers()]), []
    runner = runner_of(source)
    update = runner.optimizer.step
    runner.optimizer.step = lambda rate: rates.append(rate) or update(rate)
    expected, before = [], 0.0
    for step in source.steps():
        expected.append(learning_rate(CONFIG, before, step.done))
        before = step.done
        assert runner.run(step) == pytest.approx(float(runner.losses[step.number]))
    assert rates == expected and rates[-1] < 0.1 * CONFIG.learning_rate < max(rates)
