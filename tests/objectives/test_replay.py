"""Replay: its targets and weights, its share of an epoch, and a run that goes on in the middle."""

from collections import Counter

import numpy as np
import pytest
from distill_checks import assert_taught, lively
from streams import Fixed, Stream, sample

from liftcore.config import LiftConfig
from liftcore.errors import UsageError
from liftcore.objectives.replay import BLOCK, Replay
from liftcore.questions.own_words import OwnWords
from liftcore.training.source import StepSource

CONFIG = LiftConfig(
    segment_length=20, batch_size=2, epochs=4, rank=4, replay_share=0.3, replay_targets="hard"
)


def own_rows(rng, count=30):
    rows = []
    for _ in range(count):
        n = int(rng.integers(6, 14))
        rows.append(OwnWords(rng.integers(3, 200, n), int(rng.integers(1, n - 1))))
    return rows


def source_of(rows, *objectives, config=CONFIG, model=None):
    replay = Replay(model, rows, config)
    long = [sample(20, 20, "segments", first=3 + i) for i in range(11)]
    return StepSource([Fixed(long), *objectives, replay], config, 100)


def questions(count, first=0):
    return [sample(12, 4, "qa", first=3 + first + i) for i in range(count)]


def drain(source):
    steps = []
    while (step := source.draw()) is not None:
        steps.append(step)
    return steps


def rows_of(step):
    return sorted((s.source, tuple(s.ids), tuple(s.weights)) for s in step.samples)


def test_the_reply_alone_is_scored_with_the_base_models_targets(rng):
    model, rows = lively(), own_rows(rng)
    replay = Replay(model, rows, CONFIG.replace(replay_targets="soft"), k=6)
    order = replay.order(0)
    for number, made in zip(order[3:6], replay.drawn(0, 3, 6), strict=True):
        row = rows[number]
        assert np.array_equal(made.ids, row.tokens)
        assert made.weights.tolist() == [t >= row.reply_start for t in range(len(row.tokens))]
        for t in range(row.reply_start, len(row.tokens)):
            assert_taught(made.soft.ids[t], made.soft.probs[t], model, row.tokens[:t])
    assert replay.teacher.computed <= 2 * BLOCK, "only what is drawn is taught"


def test_targets_are_the_same_whatever_was_drawn_before(rng):
    model, rows = lively(), own_rows(rng)
    config = CONFIG.replace(replay_targets="soft")
    one, two = Replay(model, rows, config), Replay(model, rows, config)
    one.drawn(0, 0, 30)
    for a, b in zip(one.drawn(3, 0, 9), two.drawn(3, 0, 9), strict=True):
        assert np.array_equal(a.soft.ids, b.soft.ids)
        assert np.array_equal(a.soft.probs, b.soft.probs)


def test_each_epoch_and_seed_has_its_own_order(rng):
    rows = own_rows(rng)
    replay, other = Replay(None, rows, CONFIG), Replay(None, rows, CONFIG.replace(seed=1))
    orders = [replay.order(e) for e in range(3)] + [other.order(0)]
    assert all(sorted(order) == list(range(30)) for order in orders)
    assert len({tuple(order) for order in orders}) == 4
    assert orders[1] == Replay(None, rows, CONFIG).order(1)
    twice = [tuple(s.ids) for s in replay.drawn(0, 0, 60)]
    assert twice[:30] == twice[30:], "behind the last row the first comes again"


@pytest.mark.parametrize("share", [0.0, 0.3, 0.8])
def test_it_takes_its_share_of_the_tokens(rng, share):
    config = CONFIG.replace(replay_share=share)
    stream = Stream([None, questions(5), None, questions(9, 5), None], expected=14)
    drawn = drain(source_of(own_rows(rng), stream, config=config))
    for epoch in range(config.epochs):
        tokens: Counter[str] = Counter()
        for step in drawn:
            if step.epoch == epoch:
                for each in step.samples:
                    tokens[each.source] += len(each)
        wanted = share / (1 - share) * (tokens["segments"] + tokens["qa"])
        assert tokens["qa"] and wanted <= tokens["replay"] < wanted + 14


def test_a_share_that_grows_is_filled_within_the_epoch(rng):
    source = source_of(own_rows(rng))
    steps = [source.draw() for _ in range(3)]
    source.objectives[-1].share = 0.6
    steps += drain(source)
    first = [s for step in steps if step.epoch == 0 for s in step.samples]
    replayed = sum(len(s) for s in first if s.source == "replay")
    assert 0.6 <= replayed / sum(map(len, first)) < 0.65


@pytest.mark.parametrize("at", [4, 9, 14])
def test_a_run_that_goes_on_draws_the_same_rows(rng, at):
    """Beside questions that arrive, and with a share that has changed."""
    rows, arriving = own_rows(rng), [None, None, questions(4), None, questions(12, 4)[:5]]
    whole = source_of(rows, Stream(arriving))
    for _ in range(at):
        whole.draw()
    whole.objectives[-1].share = 0.5
    whole.draw()
    state = whole.state()
    right = drain(whole)

    again = source_of(rows, Stream(arriving, cached=len(arriving)))
    again.objectives[-1].share = 0.5
    again.restore(state)
    after = drain(again)
    assert [rows_of(s) for s in after] == [rows_of(s) for s in right]
    assert [s.rate for s in after] == [s.rate for s in right]
    assert any(source == "replay" for s in after for source, *_ in rows_of(s))


def test_settings():
    for wrong in (dict(replay_share=1.0), dict(replay_share=-0.1), dict(replay_rows=0)):
        with pytest.raises(UsageError, match="replay_"):
            LiftConfig(**wrong)
    for wrong in (0.0, -1.0):
        with pytest.raises(UsageError, match="keep must be above 0"):
            LiftConfig(keep=wrong)
