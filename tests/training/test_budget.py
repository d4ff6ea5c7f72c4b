"""The forgetting budget: it holds, replay grows, a run goes on with the same bits, and what is
held out is never trained on."""

import numpy as np
import pytest
import torch
from distill_checks import Letters, lively
from interrupts import stop_after
from tiny import tiny_model

import liftcore
from liftcore.config import LiftConfig
from liftcore.layers.lora import Adapter
from liftcore.objectives.forgetting import Forgetting, own_loss
from liftcore.objectives.replay import Replay
from liftcore.objectives.segments import Segments
from liftcore.questions import own_words
from liftcore.questions.own_words import OwnWords
from liftcore.training import runner
from liftcore.training.budget import CHECKS, Budget
from liftcore.training.loop import train
from liftcore.training.source import StepSource

CONFIG = LiftConfig(
    segment_length=24, epochs=6, rank=4, learning_rate=2e-2, replay_share=0.2, keep=0.1
)


class Run:
    """A run on a fresh tiny model whose budget is how far its adapter goes from its beginning."""

    def __init__(self, tokens, rows, keep, **changes):
        config = CONFIG.replace(**changes)
        self.model = tiny_model(initializer_range=0.2)
        self.adapter = Adapter(self.model, config.rank, config.lora_alpha, config.seed)
        self.adapter.install()
        self.start = self.adapter.values.clone()
        self.replay = Replay(self.model, rows, config)
        self.budget = Budget(self.adapter, keep, self.rise, [self.replay])
        objectives = [Segments(tokens, config, [1]), self.replay]
        self.source = StepSource(objectives, config, 200, weights=[1, 2], prefix=1)
        self.checks, self.shares = [], []

    def distance(self):
        return float((self.adapter.values - self.start).norm())

    def rise(self):
        self.checks.append(self.distance())
        self.shares.append(self.replay.share)
        return self.checks[-1]

    def train(self, **options):
        self.result = train(self.adapter, self.source, budget=self.budget, **options)
        return self


@pytest.fixture
def tokens(rng):
    return rng.integers(3, 60, size=150)


@pytest.fixture
def rows(rng):
    return [OwnWords(rng.integers(100, 200, 12), 4) for _ in range(20)]


def test_forgetting_is_the_mean_rise_over_the_replies(rng, rows):
    model = lively()
    rows = [OwnWords(np.concatenate([np.arange(3, 14), r.tokens]), 13) for r in rows]

    @torch.no_grad()
    def mean_loss():
        losses = []
        for row in rows:
            logits = model(torch.from_numpy(row.tokens)[None]).logits[0, 12:-1]
            own = torch.from_numpy(row.tokens[13:])
            losses += torch.nn.functional.cross_entropy(logits, own, reduction="none").tolist()
        return np.mean(losses)

    before = mean_loss()
    assert own_loss(model, rows) == pytest.approx(before, rel=1e-4)
    forgetting = Forgetting(model, rows)
    adapter = Adapter(model, 4, 8.0)
    adapter.install()
    assert forgetting.rise() == pytest.approx(0, abs=1e-5)
    adapter.values.normal_(0, 0.3, generator=torch.Generator().manual_seed(0))
    assert mean_loss() != pytest.approx(before, rel=1e-5), "the adapter does something"
    assert forgetting.rise() == pytest.approx(mean_loss() - before, abs=1e-3)
    assert Forgetting(model, rows).before == pytest.approx(forgetting.before)


def test_a_run_ends_with_its_last_adapter_within_the_budget(tokens, rows):
    free = Run(tokens, rows, 1e9).train()
    assert free.result.limit == "epochs" and free.result.kept == 1.0
    assert len(free.checks) == CHECKS and set(free.shares) == {0.2}
    keep = free.checks[1]
    assert keep < free.checks[-1]
    run = Run(tokens, rows, keep).train()
    assert run.checks[:2] == free.checks[:2] and run.shares[:3] == [0.2] * 3
    assert run.shares[3] > 0.2, "replay grows while too much is forgotten"
    within = [n for n, rise in enumerate(run.checks, 1) if rise <= keep]
    assert run.result.limit == "keep" and run.distance() == run.checks[max(within) - 1] <= keep
    assert run.result.kept == pytest.approx(max(within) / CHECKS, abs=0.1)


def test_a_budget_that_nothing_fits_leaves_the_beginning(tokens, rows):
    run = Run(tokens, rows, -1.0).train()
    assert run.result.limit == "keep" and run.result.kept == 0
    assert torch.equal(run.adapter.values, run.start) and run.replay.share == 0.5


@pytest.mark.parametrize("steps", [8, 17])
def test_a_run_that_goes_on_ends_with_the_same_bits(tokens, rows, steps, tmp_path):
    keep = Run(tokens, rows, 1e9).train().checks[0]
    whole = Run(tokens, rows, keep).train()
    file = tmp_path / "state.safetensors"
    with pytest.raises(KeyboardInterrupt):
        Run(tokens, rows, keep).train(state_file=file, on_step=stop_after(steps))
    again = Run(tokens, rows, keep).train(state_file=file)
    assert len(again.checks) < len(whole.checks), "earlier checks are not made again"
    assert torch.equal(again.adapter.values, whole.adapter.values)
    assert (again.result.limit, again.result.kept) == (whole.result.limit, whole.result.kept)
    assert again.replay.share == whole.replay.share


def test_what_is_held_out_is_never_trained_on(monkeypatch, tmp_path, rng):
    monkeypatch.setenv("LIFTCORE_CACHE", str(tmp_path))
    for name, value in dict(CHUNK=16, HELD_OUT=5, QUESTION=6, REPLY=5).items():
        monkeypatch.setattr(own_words, name, value)
    trained, real = set(), runner.Runner.run

    def run(self, step):
        trained.update((s.source, tuple(s.ids)) for s in step.samples)
        return real(self, step)

    monkeypatch.setattr(runner.Runner, "run", run)
    model, tokenizer = lively(), Letters()
    config = LiftConfig(
        segment_length=24, epochs=3, rank=4, replay_rows=9, replay_share=0.7, keep=0.05
    )
    text = "".join(rng.choice(list("abcdefg "), 160))
    memory = liftcore.absorb(model, tokenizer, text, config=config, progress=False)
    replayed = {ids for source, ids in trained if source == "replay"}
    own = own_words.collect(model, tokenizer, 9)
    assert replayed == {tuple(row.tokens) for row in own.rows}
    assert not replayed & {tuple(row.tokens) for row in own.held_out}
    report, training = memory.report, memory.training
    assert memory.config.objectives == ("segments", "replay") and memory.config.mix == (1.0, 2.0)
    assert training.own_words > 0 and report.forgotten <= 0.05 and "forgotten" in report.text()
    memory.save(tmp_path / "memory")
    back = liftcore.load_memory(tmp_path / "memory", (model, tokenizer))
    assert back.report.forgotten == report.forgotten and back.training.limit == training.limit
    # A run without replay uses what is known.
    plain = liftcore.absorb(
        model, tokenizer, text, config=LiftConfig(segment_length=24, epochs=1), progress=False
    )
    assert plain.report.forgotten is not None and plain.training.own_words == 0
    # What nobody asked for begins with little.
    few = LiftConfig(segment_length=24, epochs=1, replay_rows=9, keep=9.0)
    memory = liftcore.absorb(model, tokenizer, text, config=few, progress=False)
    assert memory.config.replay_share == 0.05 and memory.training.limit == "epochs"


def test_without_own_words_nothing_is_said_of_forgetting(monkeypatch, tmp_path):
    monkeypatch.setenv("LIFTCORE_CACHE", str(tmp_path))
    memory = liftcore.absorb(
        lively(), Letters(), "a" * 60, config=CONFIG.replace(keep=None, epochs=1), progress=False
    )
    assert memory.report.forgotten is None and "forgotten" not in memory.report.text()
    assert not list(tmp_path.iterdir()), "nothing is made for it"
