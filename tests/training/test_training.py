"""The loop: it learns, repeats itself, survives an interruption bit for bit, stops at a NaN."""

import os
import signal
import threading

import numpy as np
import pytest
import torch
from interrupts import stop_after
from tiny import tiny_model

from liftcore import files
from liftcore.answer import greedy, keeps_a_cache
from liftcore.config import LiftConfig
from liftcore.errors import LiftError
from liftcore.layers.lora import Adapter
from liftcore.output import STATE
from liftcore.training import checkpoint, loop, runner
from liftcore.training.loop import train
from liftcore.training.optimizer import MasterAdamW
from liftcore.training.source import segments_alone

CONFIG = LiftConfig(
    segment_length=24, epochs=6, batch_size=2, rank=4, learning_rate=5e-3, lr_schedule="cosine"
)


def absorb(tokens, config=CONFIG, dtype=torch.float32, **options):
    """(adapter values, result) of a run on a fresh tiny model, whose logits can become sharp."""
    model = tiny_model(dtype=dtype, initializer_range=0.2)
    adapter = Adapter(model, config.rank, config.lora_alpha, config.seed)
    adapter.install()
    result = train(adapter, segments_alone(tokens, config, [1]), **options)
    return adapter.values.detach().clone(), result


@pytest.fixture
def tokens(rng):
    return rng.integers(3, 200, size=150)


def test_training_lowers_the_loss(rng):
    losses, few = [], rng.integers(3, 20, size=150)
    config = CONFIG.replace(epochs=30)
    absorb(few, config, on_step=lambda p: losses.append(p.loss))
    assert np.mean(losses[-8:]) < 0.7 * np.mean(losses[:8])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_same_seed_gives_the_same_numbers(tokens, dtype):
    one, first = absorb(tokens, dtype=dtype)
    two, second = absorb(tokens, dtype=dtype)
    assert torch.equal(one, two) and first.loss == second.loss
    other, _ = absorb(tokens, CONFIG.replace(seed=1), dtype=dtype)
    assert not torch.equal(one, other)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_who_listens_to_the_steps_may_generate(tokens, dtype):
    """Recall is measured on the way with a cache, which the attention of training has not."""
    model = tiny_model(dtype=dtype, initializer_range=0.2)
    adapter = Adapter(model, CONFIG.rank, CONFIG.lora_alpha, CONFIG.seed)
    adapter.install()
    prompts, on_the_way = torch.from_numpy(tokens[None, :8]), []

    def listen(progress):
        on_the_way.append(greedy(model, prompts, 6))

    train(adapter, segments_alone(tokens, CONFIG, [1]), on_step=listen)
    assert torch.equal(on_the_way[-1], greedy(model, prompts, 6))
    assert keeps_a_cache(model), "its own attention was there when it was first asked"
    assert torch.equal(adapter.values, absorb(tokens, dtype=dtype)[0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_interrupted_run_goes_on_bit_for_bit(rng, tokens, tmp_path, dtype):
    right, expected = absorb(tokens, dtype=dtype)
    file, run = tmp_path / STATE, {"document": "x"}
    total = expected.steps
    stops = sorted(int(s) for s in rng.choice(np.arange(1, total), size=2, replace=False))
    for stop in stops:
        with pytest.raises(KeyboardInterrupt):
            absorb(tokens, dtype=dtype, state_file=file, run=run, on_step=stop_after(stop))
        assert checkpoint.read(file, run)[1].step == stop
    resumed, result = absorb(tokens, dtype=dtype, state_file=file, run=run)
    assert torch.equal(resumed, right) and result.steps == total


def test_the_state_is_saved_on_the_way(tokens, tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "SAVE_SECONDS", 0.0)
    file, seen = tmp_path / STATE, []

    def on_step(at):
        if at.step > 1:
            seen.append(at.step - checkpoint.read(file, {})[1].step)

    absorb(tokens, state_file=file, on_step=on_step)
    assert seen and max(seen) == 1, "the file is never more than one save behind"


def test_resume_refuses_another_run(tokens, tmp_path):
    file = tmp_path / STATE
    with pytest.raises(KeyboardInterrupt):
        absorb(tokens, state_file=file, run={"document": "a"}, on_step=stop_after(2))
    with pytest.raises(LiftError, match="another document"):
        absorb(tokens, state_file=file, run={"document": "b"})


def test_the_state_of_another_version_is_refused(tokens, tmp_path, monkeypatch):
    file = tmp_path / STATE
    with pytest.raises(KeyboardInterrupt):
        absorb(tokens, state_file=file, on_step=stop_after(2))
    monkeypatch.setattr(checkpoint, "FORMAT", "3")
    with pytest.raises(LiftError, match="another version of liftcore"):
        absorb(tokens, state_file=file)
    # The first versions did not say which they were.
    save = checkpoint.save_file
    monkeypatch.setattr(
        checkpoint,
        "save_file",
        lambda t, f, metadata: save(t, f, {k: v for k, v in metadata.items() if k != "format"}),
    )
    file.unlink()
    with pytest.raises(KeyboardInterrupt):
        absorb(tokens, state_file=file, on_step=stop_after(2))
    with pytest.raises(LiftError, match="another version of liftcore"):
        absorb(tokens, state_file=file)


@pytest.mark.parametrize(
    "damage", [lambda b: b[: len(b) // 2], lambda b: b"", lambda b: b"{}" * 99]
)
def test_a_damaged_state_is_refused(tokens, tmp_path, damage):
    file = tmp_path / STATE
    with pytest.raises(KeyboardInterrupt):
        absorb(tokens, state_file=file, on_step=stop_after(2))
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(LiftError, match="damaged"):
        absorb(tokens, state_file=file)


def test_a_nan_stops_with_advice_and_keeps_the_saved_state(tokens, tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "SAVE_SECONDS", 0.0)
    file, real = tmp_path / STATE, runner.batch_loss
    calls = []

    def breaks(*args):
        calls.append(1)
        loss = real(*args)
        return loss * float("nan") if len(calls) == 5 else loss

    monkeypatch.setattr(runner, "batch_loss", breaks)
    with pytest.raises(LiftError, match="learning rate") as error:
        absorb(tokens, state_file=file)
    assert str(file) in str(error.value) and "step 5" in str(error.value)
    state, at = checkpoint.read(file, {})
    assert at.step == 4, "the steps before the one that failed"
    assert torch.isfinite(state["master"]).all() and torch.isfinite(state["losses"][:4]).all()


def test_training_works_outside_the_main_thread(tokens):
    done = []
    thread = threading.Thread(target=lambda: done.append(absorb(tokens)))
    thread.start()
    thread.join()
    assert done


def test_optimizer_is_adamw_with_clipping_on_fp32_masters(rng):
    """Against torch's AdamW on separate fp32 tensors fed the same gradients."""
    config = CONFIG.replace(weight_decay=0.1, max_grad_norm=0.5)
    model = tiny_model(dtype=torch.bfloat16)
    adapter = Adapter(model, 4, 8.0)
    ours = MasterAdamW(adapter, config)
    g = torch.Generator().manual_seed(int(rng.integers(1 << 30)))
    layers = [p for m in adapter.layers.values() for p in (m.lora_a, m.lora_b)]
    layers.sort(key=lambda p: p.storage_offset())
    theirs = [p.detach().float().requires_grad_() for p in layers]
    adamw = torch.optim.AdamW(theirs, lr=1.0, weight_decay=0.1)
    for step in range(4):
        adapter.grads.normal_(generator=g)
        for mine, other in zip(layers, theirs, strict=True):
            other.grad = mine.grad.float()
        torch.nn.utils.clip_grad_norm_(theirs, 0.5)
        adamw.param_groups[0]["lr"] = 1e-2 / (step + 1)
        adamw.step()
        ours.clip()
        ours.step(1e-2 / (step + 1))
        assert adapter.grads.abs().max() == 0
    flat = torch.cat([t.detach().flatten() for t in theirs])
    torch.testing.assert_close(ours.master, flat, rtol=2e-5, atol=1e-6)
    assert torch.equal(adapter.values, ours.master.to(torch.bfloat16))


@pytest.mark.parametrize("overlap_loss", ["all", "new", "mean"])
def test_one_normaliser_an_epoch_keeps_the_weights(tokens, monkeypatch, overlap_loss):
    """Σ over an epoch's steps of loss · normaliser is the weighted sum of equation 2."""
    seen, real = [], runner.batch_loss

    def spy(model, head, batch, normaliser, last):
        seen.append((normaliser, float(batch.weights.sum())))
        return real(model, head, batch, normaliser, last)

    monkeypatch.setattr(runner, "batch_loss", spy)
    config = CONFIG.replace(schedule="overlap", stride=9, overlap_loss=overlap_loss, epochs=1)
    absorb(tokens, config)
    assert len({n for n, _ in seen}) == 1 and len({w for _, w in seen}) > 1
    assert seen[0][0] == pytest.approx(sum(w for _, w in seen) / len(seen))
    if overlap_loss != "all":
        assert sum(w for _, w in seen) == pytest.approx(len(tokens)), "each token weighs 1"


def test_a_full_disk_does_not_end_the_run(tokens, tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "SAVE_SECONDS", 0.0)

    def full(path, *rest):
        raise LiftError("cannot write: no space left")

    monkeypatch.setattr(checkpoint, "save", full)
    right = absorb(tokens)[0]
    with pytest.warns(UserWarning, match="no space") as said:
        values, _ = absorb(tokens, state_file=tmp_path / "state")
    assert torch.equal(values, right)
    assert len(said) == 1, "once a run, not once a save"


@pytest.mark.parametrize("obstacle", ["folder", "file"])
def test_a_state_that_cannot_be_written_is_refused_before_the_first_step(
    tokens, tmp_path, obstacle
):
    file, seen = tmp_path / "run" / STATE, []
    if obstacle == "folder":
        file.mkdir(parents=True)
    else:
        file.parent.write_text("mine")
    with pytest.raises(LiftError, match="cannot write"):
        absorb(tokens, state_file=file, on_step=seen.append)
    assert not seen


class Lagging(runner.Runner):
    """Knows the loss of the step before, as a GPU's runner does."""

    known = 0.0

    def run(self, step):
        known, self.known = self.known, super().run(step)
        return known


@pytest.mark.parametrize("seconds", [0.0, 1e-3, 1e9])
def test_losses_may_be_known_late(tokens, tmp_path, monkeypatch, seconds):
    right, expected = absorb(tokens)
    monkeypatch.setattr(loop, "SAVE_SECONDS", seconds)
    monkeypatch.setattr(loop, "make_runner", Lagging)
    values, result = absorb(tokens, state_file=tmp_path / STATE)
    assert torch.equal(values, right) and result.loss == expected.loss


def test_a_run_is_the_same_whatever_mode_the_model_was_in(tokens):
    """Dropout would draw random numbers that no state holds, and checkpointing recompute twice."""

    def run(prepare):
        model = tiny_model(initializer_range=0.2, attention_dropout=0.5)
        prepare(model)
        modes = [m.training for m in model.modules()]
        adapter = Adapter(model, CONFIG.rank, CONFIG.lora_alpha, CONFIG.seed)
        adapter.install()
        train(adapter, segments_alone(tokens, CONFIG, [1]))
        adapter.remove()
        assert [m.training for m in model.modules()] == modes
        return adapter.values

    def training(model):
        model.train()
        model.gradient_checkpointing_enable()

    assert torch.equal(run(lambda model: None), run(training))


def test_a_kill_while_writing_leaves_the_old_state(tokens, tmp_path, monkeypatch):
    file = tmp_path / STATE
    with pytest.raises(KeyboardInterrupt):
        absorb(tokens, state_file=file, on_step=stop_after(2))
    before = file.read_bytes()

    def half(path):
        path.write_bytes(b"half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        files.write_atomically(file, half)
    assert file.read_bytes() == before


def test_resumed_loss_is_that_of_the_whole_run(tokens, tmp_path):
    _, right = absorb(tokens)
    file = tmp_path / STATE
    with pytest.raises(KeyboardInterrupt):
        absorb(tokens, state_file=file, on_step=stop_after(right.steps - 1))
    assert absorb(tokens, state_file=file)[1].loss == right.loss
    with pytest.raises(KeyboardInterrupt):
        absorb(tokens, state_file=file, on_step=stop_after(right.steps))
    assert absorb(tokens, state_file=file)[1].loss == right.loss


def test_an_epoch_that_scores_nothing_is_no_failure(rng):
    """Two tokens without a prefix: where jitter cuts between them, nothing is left to predict."""
    config = CONFIG.replace(segment_length=2, epochs=24)
    two = rng.integers(3, 200, size=2)
    model = tiny_model()
    adapter = Adapter(model, 4, 8.0)
    adapter.install()
    result = train(adapter, segments_alone(two, config, []))
    assert 0 < result.steps < 24 and np.isfinite(result.loss)


def test_small_updates_are_not_lost_in_bf16():
    """A rate far below bf16's resolution must add up in the fp32 master."""
    model = tiny_model(dtype=torch.bfloat16)
    adapter = Adapter(model, 4, 8.0)
    adapter.values.fill_(1.0)
    optimizer = MasterAdamW(adapter, CONFIG)
    for _ in range(100):
        adapter.grads.fill_(1.0)
        optimizer.clip()
        optimizer.step(2e-4)
    assert adapter.values.float().mean().item() == pytest.approx(0.98, abs=0.004)


@pytest.mark.parametrize("text", ["abc", "-1", "nan", ""])
def test_seconds_between_saves_that_are_no_number(tokens, monkeypatch, text):
    monkeypatch.setenv("LIFTCORE_SAVE_SECONDS", text)
    with pytest.raises(LiftError, match="LIFTCORE_SAVE_SECONDS must be a number"):
        absorb(tokens)


def test_an_interrupt_ends_what_comes_before_the_first_step_at_once(tokens, tmp_path, monkeypatch):
    """A teacher's reading and the memory plan may take minutes. The state of a run that goes on
    stays as it was."""
    right, _ = absorb(tokens)
    file, through, real = tmp_path / "state", [], runner.choose
    with pytest.raises(KeyboardInterrupt):
        absorb(tokens, state_file=file, on_step=stop_after(2))
    kept = file.read_bytes()

    def slow(*given):
        os.kill(os.getpid(), signal.SIGINT)
        through.append(given)
        return real(*given)

    for place in (file, tmp_path / "another"):
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(runner, "choose", slow)
            absorb(tokens, state_file=place)
    assert not through and file.read_bytes() == kept and not (tmp_path / "another").exists()
    again, _ = absorb(tokens, state_file=file)
    assert torch.equal(again, right)
