"""The source of steps: weights, packing, epochs, rates, late streams, going on in the middle."""

from collections import Counter

import numpy as np
import pytest
from streams import Fixed, Stream, sample

from liftcore.config import LiftConfig
from liftcore.objectives.segments import Segments
from liftcore.training.source import StepSource, count, segments_alone
from liftcore.training.step import learning_rate, pack

CONFIG = LiftConfig(segment_length=20, batch_size=2, epochs=3, rank=4)


def mix_of(objectives, weights=None, config=CONFIG, **options):
    return StepSource(objectives, config, 100, weights=weights, **options)


def drain(mix, most=1000):
    """All steps that can be drawn now."""
    steps = []
    while len(steps) < most and (step := mix.draw()) is not None:
        steps.append(step)
    return steps


def ids(step):
    return [tuple(s.ids) for s in step.samples]


def numbered(count, length=10, scored=4, source="qa"):
    return [sample(length, scored, source, first=3 + i) for i in range(count)]


def test_every_epoch_takes_every_sample_once(rng):
    long, short = numbered(7, 20, 20, "segments"), numbered(9, 10)
    mix = mix_of(
        [Fixed(long), Fixed(short, "qa")], config=CONFIG.replace(seed=int(rng.integers(99)))
    )
    steps = drain(mix)
    assert mix.finished
    orders = []
    for epoch in range(3):
        seen = [i for s in steps if s.epoch == epoch for i in ids(s)]
        assert Counter(seen) == Counter(tuple(s.ids) for s in (*long, *short))
        orders.append(seen)
    assert len({tuple(o) for o in orders}) == 3, "each epoch is shuffled anew"


def test_steps_are_packed_to_the_padded_target(rng):
    samples = [sample(int(n), 2) for n in rng.integers(2, 50, size=80)]
    steps = pack(samples, 40, np.random.default_rng(1))
    assert sum(map(len, steps)) == 80
    for step in steps:
        lengths = [len(s) for s in step]
        assert len(step) == 1 or len(step) * max(lengths) <= 40
    alone = [s for s in steps if len(s) == 1 and len(s[0]) <= 20]
    assert len(alone) <= 1, "two that fit share a step"
    mixed = pack([sample(30, 1), sample(4, 1), sample(30, 1), sample(4, 1)], 64, rng)
    assert sorted(sorted(len(s) for s in step) for step in mixed) == [[4, 4], [30, 30]]


def test_a_prefix_takes_no_room_from_the_segments():
    tokens = np.arange(200) % 90 + 3
    config = CONFIG.replace(schedule="trivial", epochs=1)
    mix = mix_of([Segments(tokens, config, [1])], config=config, prefix=1)
    assert [len(s.samples) for s in drain(mix)] == [2] * 5


def test_weights_multiply_the_tokens_of_their_objective():
    objectives = [Fixed([sample(20, 20)]), Fixed([sample(10, 4)], "qa")]
    step = drain(mix_of(objectives, [0.5, 3.0]))[0]
    weights = {len(s): s.weights.tolist() for s in step.samples}
    assert weights == {20: [0.5] * 20, 10: [0.0] * 6 + [3.0] * 4}
    assert step.weight == 0.5 * 20 + 3 * 4
    assert objectives[0].all[0].weights[0] == 1, "the objective's own sample stays as it was"


def test_one_normaliser_an_epoch(rng):
    samples = [sample(int(n), int(n) // 2) for n in rng.integers(4, 30, size=40)]
    steps = drain(mix_of([Fixed(samples)]))
    for epoch in range(3):
        own = [s for s in steps if s.epoch == epoch]
        assert {s.normaliser for s in own} == {sum(s.weight for s in own) / len(own)}


def test_samples_that_do_not_fit_or_have_no_target_are_left_out():
    with pytest.warns(UserWarning, match="101 tokens"):
        steps = drain(mix_of([Fixed([sample(101, 4), sample(10, 0), sample(10, 1)])]))
    assert [[len(s) for s in step.samples] for step in steps] == [[10]] * 3


def test_arrivals_are_trained_in_order_and_in_turns_with_the_segments():
    stream = Stream([None, numbered(12), None], expected=12)
    mix = mix_of([Fixed(numbered(20, 20, 20, "segments")), stream])
    steps = [s for s in drain(mix) if s.epoch == 0]
    kinds = ["".join({s.source[0] for s in step.samples}) for step in steps]
    assert "".join(kinds) == "qsqsqs" + 7 * "s"
    arrived = [i for s in steps if s.samples[0].source == "qa" for i in ids(s)]
    assert arrived == [tuple(s.ids) for s in numbered(12)]


def test_arrivals_wait_until_they_fill_a_step():
    stream = Stream([None, numbered(3), None, numbered(9)[3:], None, None], expected=9)
    mix = mix_of([Fixed(numbered(30, 20, 20, "segments")), stream])
    sizes = [len(s.samples) for s in drain(mix) if s.epoch == 0 and s.samples[0].source == "qa"]
    assert sizes == [4, 4, 1], "the rest comes at the end of the epoch"


def test_a_slow_stream_holds_the_middle_epoch_so_that_its_samples_get_half_of_the_passes():
    stream = Stream([None] * 40 + [numbered(2)], expected=2)
    mix = mix_of([Fixed(numbered(4, 20, 20, "segments")), stream], config=CONFIG.replace(epochs=6))
    steps = drain(mix)
    assert [s.epoch for s in steps] == [0, 0, 1, 1, 2, 2] and not mix.finished
    while not stream.done:
        if (step := mix.draw()) is not None:
            steps.append(step)
    steps += drain(mix)
    passes = Counter(i for s in steps for sample, i in zip(s.samples, ids(s), strict=True)
                     if sample.source == "qa")  # fmt: skip
    assert mix.finished and list(passes.values()) == [4, 4], "in epochs 2 to 5"


def test_what_arrives_is_weighed_as_its_objective():
    stream = Stream([None, numbered(2)], expected=2)
    mix = mix_of([Fixed(numbered(4, 20, 20, "segments")), stream], weights=(1.0, 3.0))
    asked = [s for step in drain(mix) for s in step.samples if s.source == "qa"]
    assert len(asked) == 6 and all(s.weights.max() == 3 for s in asked)


def test_what_arrives_at_the_very_end_is_still_trained():
    stream = Stream([None] * 9 + [numbered(2)], expected=2)
    segments, seen = Fixed(numbered(4, 20, 20, "segments")), []
    mix = mix_of([segments, stream], config=CONFIG.replace(epochs=1))
    for _ in range(60):
        if (step := mix.draw()) is not None:
            seen += [s.source for s in step.samples]
    assert seen.count("qa") == 2 and seen[-2:] == ["qa", "qa"] and mix.finished


def test_a_stream_alone_is_waited_for_in_the_first_epoch():
    stream = Stream([None, None, numbered(4), None, numbered(8)[4:]], expected=8)
    mix, seen = mix_of([stream]), []
    for _ in range(20):
        if (step := mix.draw()) is not None:
            seen.append((step.epoch, len(step.samples)))
    assert seen == [(0, 4), (0, 4), (1, 4), (1, 4), (2, 4), (2, 4)] and mix.finished


def test_a_stream_that_gives_nothing_costs_nothing():
    mix = mix_of([Fixed(numbered(4, 20, 20, "segments")), Stream([None] * 5, expected=100)])
    steps = [s for s in (mix.draw() for _ in range(30)) if s]
    assert len(steps) == 6 and mix.finished and steps[-1].done == 1
    empty = mix_of([Stream([None] * 3, expected=100)])
    assert all(empty.draw() is None for _ in range(9)) and empty.finished


def test_the_share_never_goes_back_and_ends_at_one():
    stream = Stream([None, numbered(4), None, numbered(60)[4:], None], expected=8)
    mix = mix_of([Fixed(numbered(6, 20, 20, "segments")), stream])
    steps = [s for s in (mix.draw() for _ in range(200)) if s]
    shares = [step.done for step in steps]
    assert shares == sorted(shares) and shares[0] > 0 and shares[-1] == 1
    assert mix.finished
    known = drain(mix_of([Fixed(numbered(6, 20, 20)), Fixed(numbered(8), "qa")]))
    done = np.cumsum([s.tokens for s in known]) / sum(s.tokens for s in known)
    assert [s.done for s in known] == pytest.approx(done.tolist()), "exact without streams"


def test_segments_alone_come_first():
    config = CONFIG.replace(segment_epochs=2)
    mix = mix_of([Fixed(numbered(4, 20, 20, "segments")), Fixed(numbered(4), "qa")], config=config)
    steps = drain(mix)
    kinds = [
        {s.source for step in steps if step.epoch == e for s in step.samples} for e in range(3)
    ]
    assert kinds == [{"segments"}, {"segments"}, {"segments", "qa"}]
    done = np.cumsum([s.tokens for s in steps]) / sum(s.tokens for s in steps)
    assert [s.done for s in steps] == pytest.approx(done.tolist())


def test_it_goes_on_in_the_middle(rng):
    """Saved after any step, another mix of the same samples draws the same rest."""
    tokens = rng.integers(3, 200, size=130)

    def fresh():
        fixed = [Segments(tokens, CONFIG, []), Fixed(numbered(9), "qa")]
        return mix_of(fixed, [1.0, 2.0])

    whole = drain(fresh())
    for stop in rng.integers(0, len(whole), size=4):
        first = fresh()
        drain(first, int(stop))
        # A run may be stopped again before its first step.
        between, second = fresh(), fresh()
        between.restore(first.state())
        second.restore(between.state())
        rest = drain(second)
        assert [ids(s) for s in rest] == [ids(s) for s in whole[stop:]]
        for mine, right in zip(rest, whole[stop:], strict=True):
            assert (mine.number, mine.rate, mine.done) == (right.number, right.rate, right.done)
            assert mine.normaliser == right.normaliser and mine.epoch == right.epoch


@pytest.mark.parametrize("cached", [0, 2, 7])
@pytest.mark.parametrize("epochs", [1, 3])
def test_it_goes_on_with_a_stream(rng, cached, epochs):
    """The stream that is there again gives everything at once, or bit by bit."""
    config = CONFIG.replace(epochs=epochs)
    batches = [None, numbered(5), None, numbered(13)[5:], None, None, numbered(15)[13:]]

    def fresh(cached=0):
        segments = Fixed(numbered(8, 20, 20, "segments"))
        return mix_of([segments, Stream(batches, expected=15, cached=cached)], config=config)

    def draw(mix, count):
        drawn = []
        for _ in range(100):
            if len(drawn) < count and (step := mix.draw()) is not None:
                drawn.append(step)
        return drawn

    whole = draw(fresh(), 99)
    for stop in rng.integers(1, len(whole), size=3):
        first = fresh()
        done = draw(first, int(stop))
        second = fresh(cached)
        second.restore(first.state())
        seen = [*done, *draw(second, 99)]
        assert second.finished
        for epoch in range(epochs):
            own = Counter(i for s in seen if s.epoch == epoch for i in ids(s))
            assert max(own.values()) == 1, "none is trained twice in an epoch"
        last = {i for s in seen if s.epoch == epochs - 1 for i in ids(s)}
        assert len(last) == 8 + 15, "and none is lost"
        assert [ids(s) for s in seen[:stop]] == [ids(s) for s in whole[:stop]]


def test_close_closes_the_objectives():
    stream = Stream([None])
    mix_of([stream]).close()
    assert stream.closed


def test_the_rate_follows_the_share_of_the_run():
    config = LiftConfig(learning_rate=1.0, warmup=0.1)
    assert learning_rate(config, 0.0, 0.05) == pytest.approx(0.5)
    assert learning_rate(config, 0.09, 0.2) == 1.0 == learning_rate(config, 0.1, 0.2)
    assert (
        learning_rate(config, 0.55, 0.6) == pytest.approx(0.5)
        and learning_rate(config, 1.0, 1.0) < 1e-9
    )
    constant = config.replace(lr_schedule="constant", warmup=0.0)
    assert learning_rate(constant, 0.0, 0.1) == learning_rate(constant, 0.99, 1.0) == 1.0


def test_warm_up_and_cosine_step_by_step():
    """Steps of equal length: the rates of the usual schedules."""
    config = CONFIG.replace(learning_rate=1.0, warmup=0.1, lr_schedule="cosine", epochs=50)
    rates = [s.rate for s in drain(mix_of([Fixed(numbered(8, 10, 10, "segments"))], config=config))]
    assert len(rates) == 100
    assert rates[:10] == pytest.approx([0.1 * (i + 1) for i in range(10)])
    assert rates[10] == 1.0 and rates[55] == pytest.approx(0.5) and rates[99] < 0.01


def test_a_clock_ends_the_run_and_sets_the_rates():
    """Whatever the number of epochs."""
    ticks = iter(np.linspace(0, 1.2, 61))
    config = CONFIG.replace(learning_rate=1.0, warmup=0.0, lr_schedule="cosine", epochs=1)
    source = mix_of([Fixed(numbered(4, 20, 20))], config=config, share=lambda: float(next(ticks)))
    steps = list(source.steps())
    assert len(steps) > 5 and steps[-1].epoch >= 2, "more than the epochs of the settings"
    rates = [step.rate for step in steps]
    assert rates == sorted(rates, reverse=True) and rates[-1] < 0.05


def test_segments_of_a_document(rng):
    """Every segment once an epoch, in another order each time; counted as they are drawn."""
    config = LiftConfig(segment_length=8, batch_size=3, seed=int(rng.integers(0, 99)), epochs=4)
    tokens, orders = rng.integers(3, 200, size=301), []
    steps = drain(segments_alone(tokens, config, [1]))
    for epoch in range(4):
        rows = [i for step in steps if step.epoch == epoch for i in ids(step)]
        every = [tuple(s.ids) for s in Segments(tokens, config, [1]).samples(epoch)]
        assert Counter(rows) == Counter(every)
        orders.append([every.index(row) for row in rows])
    assert any(o != orders[0] for o in orders[1:])
    passes = sum(step.tokens for step in steps)
    assert count(301, config, [1]) == (len(steps), passes)


def test_the_number_of_steps_is_known_from_the_start(rng):
    config = CONFIG.replace(schedule="overlap", stride=5)
    source = segments_alone(rng.integers(3, 200, size=203), config, [])
    source.draw()
    expected = [source.expected_steps]
    while source.draw() is not None:
        expected.append(source.expected_steps)
    assert set(expected) <= {len(expected) - 1, len(expected), len(expected) + 1}
    assert expected[-1] == len(expected) == source.done_steps
