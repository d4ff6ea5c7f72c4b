"""Several processes train one adapter as one process does."""

import os

import numpy as np
import pytest
import torch
from bees import PAIRS, TEXT
from ranks import on_ranks
from steps import CONFIG, mixed
from tiny import tiny_model

import liftcore
from liftcore import LiftConfig, prepare
from liftcore.errors import ElsewhereError, LiftError, LostError, UsageError
from liftcore.layers import sharded
from liftcore.layers.lora import Adapter
from liftcore.training import loop, parallel
from liftcore.training.loop import train

DIFFERS = 2e-5  # of fp32 sums in another order, over a whole run


def run(seed, tokens, *, shard=False, state_file=None, on_step=None, lr=None, dtype=torch.float32):
    """(the adapter's values, Result) of a run in the process group there is."""
    model = tiny_model(initializer_range=0.2, dtype=dtype)
    if shard:
        sharded.shard(model, torch.device("cpu"))
    config = CONFIG if lr is None else CONFIG.replace(learning_rate=lr)
    adapter = Adapter.of(model, config)
    adapter.install()
    ranks = parallel.current(model)
    assert ranks.sharded == shard
    # Others begin elsewhere: rank 0's adapter is what counts.
    adapter.values.add_(ranks.rank)
    source = mixed(np.random.default_rng(seed), tokens, config) if ranks.first else None
    more = {} if on_step is None else dict(on_step=on_step)
    result = train(adapter, source, ranks=ranks, state_file=state_file, run={"of": "it"}, **more)
    return adapter.values.clone(), result


@pytest.fixture
def job(rng):
    return int(rng.integers(2**31)), rng.integers(3, 200, 250)


def off(ours, right):
    return float((ours - right).norm() / right.norm())


@pytest.mark.parametrize(("size", "shard"), [(2, False), (3, False), (2, True), (3, True)])
def test_ranks_give_the_adapter_of_one_process(job, size, shard):
    right, alone = run(*job)
    outcomes = on_ranks(size, lambda rank: run(*job, shard=shard))
    first = outcomes[0][0]
    for values, result in outcomes:
        assert torch.equal(values, first)
        assert off(values, right) < DIFFERS
        assert result.steps == alone.steps and result.token_passes == alone.token_passes
        assert result.loss == pytest.approx(alone.loss, rel=1e-4)
    assert off(right, tiny_start()) > 100 * DIFFERS


def tiny_start():
    return Adapter.of(tiny_model(initializer_range=0.2), CONFIG).values


def stop_at(step):
    def on_step(at):
        if at.step == step:
            os.kill(os.getpid(), 15)

    return on_step


def interrupted(job, file, step):
    def work(rank):
        with pytest.raises(KeyboardInterrupt):
            run(*job, state_file=file if rank == 0 else None, on_step=stop_at(step))

    return work


def test_a_run_goes_on_with_another_number_of_ranks(job, tmp_path):
    file = tmp_path / "state"
    right, alone = run(*job)
    on_ranks(2, interrupted(job, file, 5))
    on_ranks(3, interrupted(job, file, 9))
    values, result = run(*job, state_file=file)
    assert off(values, right) < DIFFERS and result.steps == alone.steps
    # With as many as before it goes on bit for bit.
    file.unlink()
    (whole, _), _ = on_ranks(2, lambda rank: run(*job))
    on_ranks(2, interrupted(job, file, 7))
    (values, _), _ = on_ranks(2, lambda r: run(*job, state_file=file if r == 0 else None))
    assert torch.equal(values, whole)


@pytest.mark.parametrize("victim", [0, 1])
def test_the_others_notice_a_rank_that_is_killed(job, tmp_path, victim, monkeypatch):
    monkeypatch.setenv("LIFTCORE_SAVE_SECONDS", "0" if victim == 0 else "1000")
    file, right = tmp_path / "state", run(*job)[0]
    real = loop.Runner.run

    def dying(self, step):
        if step.number == 6 and self.ranks.rank == victim:
            os.kill(os.getpid(), 9)
        return real(self, step)

    def work(rank):
        loop.Runner.run = dying
        with pytest.raises(LostError, match="another process of this run has ended"):
            run(*job, state_file=file if rank == 0 else None)

    on_ranks(3, work, lost=[victim])
    done = []
    values, _ = run(*job, state_file=file, on_step=lambda at: done.append(at.step))
    assert done[0] == 7 and off(values, right) < DIFFERS


def test_what_fails_on_one_rank_fails_on_all(job):
    def work(rank):
        ranks, met = parallel.current(), []
        # Who does not ask for the group is alone.
        assert ranks.size == 2 and parallel.Ranks().size == parallel.ALONE.size == 1
        with pytest.raises(LiftError, match="no such file") as caught, ranks.together():
            if rank == 1:
                raise LiftError("no such file")
        met.append(type(caught.value))
        # A loss that is no number ends it everywhere, and the group goes on to be of use.
        with pytest.raises(LiftError, match="the loss is no longer a number") as caught:
            run(*job, lr=1e30)
        met.append(type(caught.value))
        with pytest.raises(LiftError, match="absorb different things: another document"):
            ranks.same({"document": str(rank)})
        return met, run(*job)[1].steps

    (one, steps), (two, others) = on_ranks(2, work)
    assert one == [ElsewhereError, LiftError] and two == [LiftError, ElsewhereError]
    assert steps == others


def test_bf16_ranks_end_with_the_same_bits(job):
    one, two = on_ranks(2, lambda rank: run(*job, dtype=torch.bfloat16)[0])
    assert torch.equal(one, two) and one.isfinite().all()


def test_absorb_in_a_group_is_absorb_alone(loaded, tmp_path, capsys):
    """Rank 0 makes the beginning, the questions and the model's own words for all."""
    config = LiftConfig(
        **dict(objectives=("segments", "qa", "replay"), epochs=2, rank=4, segment_length=24),
        **dict(batch_size=4, replay_rows=8, eps=1e-2, adapter_init="document", train_a=False),
    )

    def absorbed(rank=0):
        made = []
        real = prepare.beginning.begin
        prepare.beginning.begin = lambda *a, **k: made.append(1) or real(*a, **k)
        here = tmp_path / f"{parallel.current().size} {rank}"
        memory = liftcore.absorb(
            *loaded, TEXT, title="Bees", config=config, qa=PAIRS, resume=here, progress=False
        )
        folder = memory.save(tmp_path / f"out {parallel.current().size} {rank}")
        adapter = memory.adapter
        values = torch.cat([adapter.values, adapter.frozen]).clone()
        return values, memory.report, memory.training.questions, len(made), folder.exists()

    outcomes = on_ranks(2, absorbed)
    right, report, questions, *_ = on_ranks(1, absorbed)[0]
    assert (tmp_path / "2 0").exists() and not (tmp_path / "2 1").exists()
    for rank, (values, measured, asked, made, saved) in enumerate(outcomes):
        assert off(values, right) < DIFFERS
        assert measured.recall == pytest.approx(report.recall, abs=0.01)
        assert asked[0]["pairs"] == questions[0]["pairs"] == len(PAIRS)
        assert made == saved == (rank == 0)


def test_a_sharded_base_refuses_what_needs_the_whole_of_it():
    sharded.check_settings(LiftConfig.preset("plain"))
    for changes in (
        dict(adapter_init="document"),
        dict(keep=0.5),
        dict(base_dtype="fp8"),
        dict(objectives=("segments", "distill")),
        dict(objectives=("segments", "qa"), qa_kinds=("quiz", "summary")),
    ):
        with pytest.raises(UsageError, match="a sharded base trains on"):
            sharded.check_settings(LiftConfig(**changes))
