"""cut() against the definition of each schedule and overlap loss, and batches token by token."""

import numpy as np
import pytest

from liftcore.config import LiftConfig
from liftcore.errors import UsageError
from liftcore.objectives import segments as objective
from liftcore.segments import cut
from liftcore.training.batch import make


def cases(rng, schedule, n=40):
    for _ in range(n):
        size = int(rng.integers(2, 40))
        stride = int(rng.integers(1, size + 1)) if schedule == "overlap" else None
        seed = int(rng.integers(0, 1000))
        yield int(rng.integers(1, 200)), dict(segment_length=size, stride=stride, seed=seed)


@pytest.mark.parametrize("schedule", ["overlap", "trivial", "jitter"])
def test_segments_cover_the_document_and_end_at_its_end(rng, schedule):
    for length, settings in cases(rng, schedule):
        config = LiftConfig(schedule=schedule, **settings)
        s = cut(length, config, epoch=3)
        assert s.start[0] == 0 and s.stop[-1] == length
        assert (s.start[1:] <= s.stop[:-1]).all(), "a gap"
        assert (np.diff(s.start) > 0).all() and (np.diff(s.stop) > 0).all(), "a mere suffix"
        assert (s.stop - s.start <= config.segment_length).all() and (s.stop > s.start).all()
        assert [len(w) for w in s.weights] == (s.stop - s.start).tolist()


def test_overlap_is_equation_3(rng):
    for length, settings in cases(rng, "overlap"):
        config = LiftConfig(schedule="overlap", **settings)
        s = cut(length, config)
        assert (np.diff(s.start) == config.start_distance).all()
        assert (s.stop[:-1] - s.start[:-1] == config.segment_length).all()


def test_default_stride_is_three_eighths():
    s = cut(2048, LiftConfig(segment_length=512, schedule="overlap"))
    assert s.start.tolist() == [0, 192, 384, 576, 768, 960, 1152, 1344, 1536]
    assert s.stop[-1] == 2048
    inner = np.zeros(2048)
    for a, b in zip(s.start, s.stop, strict=True):
        inner[a:b] += 1
    assert inner[400:1500].mean() == pytest.approx(8 / 3, abs=0.05)


def test_trivial_is_contiguous():
    s = cut(10, LiftConfig(segment_length=4, schedule="trivial"))
    assert s.start.tolist() == [0, 4, 8] and s.stop.tolist() == [4, 8, 10]


def test_jitter_is_contiguous_and_moves_every_epoch(rng):
    config = LiftConfig(segment_length=32, schedule="jitter", seed=int(rng.integers(0, 1000)))
    firsts = []
    for epoch in range(40):
        s = cut(500, config, epoch)
        assert (s.start[1:] == s.stop[:-1]).all()
        assert (s.stop[1:-1] - s.start[1:-1] == 32).all()
        firsts.append(int(s.stop[0]))
    assert len(set(firsts)) > 10 and min(firsts) >= 1 and max(firsts) <= 32
    assert cut(500, config, 7).start.tolist() == cut(500, config, 7).start.tolist()


@pytest.mark.parametrize("schedule", ["overlap", "trivial", "jitter"])
def test_overlap_losses(rng, schedule):
    for length, settings in cases(rng, schedule):
        held = np.zeros(length)
        s = cut(length, LiftConfig(schedule=schedule, **settings))
        for a, b in zip(s.start, s.stop, strict=True):
            held[a:b] += 1
        for loss, expected in (("all", held), ("new", np.ones(length)), ("mean", np.ones(length))):
            s = cut(length, LiftConfig(schedule=schedule, overlap_loss=loss, **settings))
            total = np.zeros(length)
            for a, b, w in zip(s.start, s.stop, s.weights, strict=True):
                total[a:b] += w
            np.testing.assert_allclose(total, expected, rtol=1e-6)


def test_new_counts_a_token_in_its_first_segment_only():
    s = cut(8, LiftConfig(segment_length=4, stride=2, schedule="overlap", overlap_loss="new"))
    assert [w.tolist() for w in s.weights] == [[1, 1, 1, 1], [0, 0, 1, 1], [0, 0, 1, 1]]


@pytest.mark.parametrize("prefix", [[], [7]])
def test_batch_rows_predict_the_next_token(rng, prefix):
    config = LiftConfig(segment_length=16, stride=6, schedule="overlap", overlap_loss="new")
    tokens = rng.integers(100, 1000, size=61)
    segments = cut(len(tokens), config)
    samples = objective.Segments(tokens, config, prefix).samples(0)
    made = make([samples[i] for i in (0, 3, len(segments) - 1)])
    labels, weights = (t.view_as(made.input_ids) for t in (made.labels, made.weights))
    scored = 0
    for row, i in enumerate([0, 3, len(segments) - 1]):
        ids = made.input_ids[row].tolist()
        text = tokens[segments.start[i] : segments.stop[i]].tolist()
        assert ids[: len(prefix) + len(text)] == prefix + text
        for t, label in enumerate(labels[row].tolist()):
            weight = weights[row, t].item()
            if label == -100:
                assert weight == 0
                continue
            scored += 1
            assert label == ids[t + 1], "a row predicts the token behind it"
            assert weight == segments.weights[i][t + 1 - len(prefix)] > 0
    # Without a prefix the first token of the document has nothing before it.
    expected = sum((segments.weights[i] > 0).sum() for i in (0, 3, len(segments) - 1))
    assert scored == expected - (0 if prefix else 1)
    flat = made.labels
    assert made.hard_rows.tolist() == [t for t in range(len(flat)) if flat[t] != -100]


@pytest.mark.parametrize(
    "bad",
    [
        dict(stride=300, schedule="overlap"),
        dict(stride=0, schedule="overlap"),
        dict(stride=-3, schedule="overlap"),
        dict(stride=5, schedule="trivial"),
        dict(rank=0),
        dict(schedule="zigzag"),
        dict(overlap_loss="some"),
        dict(segment_length=1),
        dict(epochs=0),
        dict(learning_rate=0.0),
        dict(learning_rate=float("nan")),
        dict(batch_size=0),
        dict(rank=1.5),
        dict(lr_schedule="up"),
        dict(warmup=1.0),
    ],
)
def test_settings_that_make_no_sense_are_refused(bad):
    with pytest.raises(UsageError):
        LiftConfig(**bad)


def test_paper_preset_is_the_paper():
    config = LiftConfig.paper(segment_length=512)
    assert config.start_distance == 192 and config.overlap_loss == "all"
    assert (config.rank, config.lora_alpha, config.batch_size) == (128, 256, 4)


def test_cutting_nothing_is_refused():
    with pytest.raises(UsageError):
        cut(0, LiftConfig())
