"""Joint steps against the steps of each document alone, on both runners."""

import numpy as np
import pytest
import torch
from errors_and_seeds import rel
from steps import CONFIG, Run, mixed
from streams import Fixed, sample
from tiny import tiny_model

from liftcore.layers import attention as layer_attention
from liftcore.layers.attention import beyond_window
from liftcore.layers.lora import Adapter, only_adapter_trains
from liftcore.objectives.segments import Segments
from liftcore.training.loop import train
from liftcore.training.runner import Runner
from liftcore.training.source import StepSource, segments_alone
from liftcore.training.together import Learner, TogetherSource
from liftcore.training.together_runner import TogetherGraphRunner, TogetherRunner

SETTINGS = CONFIG.replace(epochs=2, max_grad_norm=0.05)


class Document(Learner):
    """A learner that notes what becomes of it."""

    def __init__(self, model, source):
        super().__init__(Adapter.of(model, source.config), source)
        self.over = None

    def ended(self):
        assert self.over is None
        self.over = "ended"

    def failed(self, error):
        self.over = error


def _sources(seed):
    """A source of segments, one of segments, questions and a teacher's targets, a short one, one
    of weights that are no whole numbers."""
    rng = np.random.default_rng(seed)
    texts = [rng.integers(3, 200, n) for n in (170, 60, 30, 110)]
    new = SETTINGS.replace(overlap_loss="mean", schedule="overlap", stride=9)
    return [
        segments_alone(texts[0], SETTINGS, [1]),
        mixed(rng, texts[1], SETTINGS),
        segments_alone(texts[2], SETTINGS, [1]),
        segments_alone(texts[3], new, [1]),
    ]


def _together(kind, seed, slots, one_by_one=False):
    model = tiny_model(initializer_range=0.2)
    documents = [Document(model, source) for source in _sources(seed)]
    adapter = Adapter.of(model, SETTINGS, slots=slots)
    source = TogetherSource(adapter, iter(documents), SETTINGS, 200, prefix=1, count=4)
    source.fill()
    adapter.install()
    runner = kind(adapter, source)
    if one_by_one:
        runner.use(runner.plan.cut(runner.rows, 1, 1))
    with only_adapter_trains(adapter):
        for step in source.steps():
            assert np.isfinite(runner.run(step))
    assert source.finished and [d.over for d in documents] == ["ended"] * 4
    return documents, source


@pytest.mark.parametrize("kind", [TogetherRunner, TogetherGraphRunner])
def test_joint_steps_are_those_of_each_alone(rng, kind):
    seed = int(rng.integers(1 << 30))
    alone = [Run(Runner, source).take() for source in _sources(seed)]
    for how in ((2, False), (3, True)):
        documents, source = _together(kind, seed, *how)
        for document, right in zip(documents, alone, strict=True):
            assert rel(document.adapter.values, right.adapter.values) < 1e-4
            losses = torch.stack(document.losses)
            torch.testing.assert_close(losses, right.losses, rtol=1e-4, atol=1e-4)
        # Steps that documents share are taken once.
        assert source.done_steps < sum(right.taken for right in alone)
        assert source.trained == sum(right.source.trained for right in alone)
        assert source.expected_steps == source.done_steps


@pytest.mark.parametrize("kind", [TogetherRunner, TogetherGraphRunner])
def test_a_gradient_that_is_no_number_is_that_of_one_step_alone(rng, kind, monkeypatch):
    """Where nobody looks at each loss, as on a GPU."""
    monkeypatch.setattr(Learner, "lost", False)
    model, seed = tiny_model(initializer_range=0.2), int(rng.integers(1 << 30))
    documents = [Document(model, source) for source in _sources(seed)[:2]]
    adapter = Adapter.of(model, SETTINGS, slots=2)
    source = TogetherSource(adapter, iter(documents), SETTINGS, 200, prefix=1)
    source.fill()
    adapter.install()
    runner = kind(adapter, source)
    with only_adapter_trains(adapter):
        for step in source.steps():
            if step.number == 1:
                adapter.grads[0, 5] = torch.nan
            runner.run(step)
    assert "number at step 2" in str(documents[0].over)
    bad = [i for i, loss in enumerate(documents[0].losses) if not loss.isfinite()]
    assert bad == [1] and documents[1].over == "ended"


def test_a_document_that_is_lost_leaves_alone(rng):
    seed = int(rng.integers(1 << 30))
    model = tiny_model(initializer_range=0.2)
    documents = [Document(model, source) for source in _sources(seed)]
    adapter = Adapter.of(model, SETTINGS, slots=2)
    source = TogetherSource(adapter, iter(documents), SETTINGS, 200, prefix=1)
    source.fill()
    adapter.install()
    runner = TogetherRunner(adapter, source)
    with only_adapter_trains(adapter):
        for step in source.steps():
            if step.number == 1:
                adapter.values[0] = torch.nan
            assert np.isfinite(runner.run(step))
    assert "number at step 2" in str(documents[0].over)
    assert [d.over for d in documents[1:]] == ["ended"] * 3
    for document, own in zip(documents[1:], _sources(seed)[1:], strict=True):
        right = Run(Runner, own).take()
        assert rel(document.adapter.values, right.adapter.values) < 1e-4


def test_rows_beyond_a_sliding_window_attend_by_the_model_itself(rng, monkeypatch):
    """A later document brings such rows; until then, and beside them, the fast attention runs."""
    config = SETTINGS.replace(epochs=1, objectives=("segments", "qa"), mix=(1, 1))
    options = dict(dtype=torch.bfloat16, sliding_window=32)
    tokens, seen = rng.integers(3, 200, 60), []

    def documents(model):
        objectives = [Segments(tokens, config, [1]), Fixed([sample(61, 30, "qa")], "qa")]
        return [
            Document(model, segments_alone(tokens, config, [1])),
            Document(model, StepSource(objectives, config, 200, prefix=1)),
        ]

    def attention(module, query, *rest, **kwargs):
        seen.append(query.shape[2])
        return real(module, query, *rest, **kwargs)

    real = layer_attention.causal_attention
    monkeypatch.setattr(layer_attention, "causal_attention", attention)
    learnt = []
    for fast in (True, False):
        if not fast:  # everything by the model itself
            monkeypatch.setattr(layer_attention, "_plainly_causal", lambda *given: False)
        model = tiny_model("mistral", **options)
        adapter = Adapter.of(model, config, slots=1)
        given = documents(model)
        source = TogetherSource(adapter, iter(given), config, 200, prefix=1)
        source.fill()
        assert source.length == 25
        adapter.install()
        seen.clear()
        train(adapter, source)
        assert (max(seen, default=0) == 25) == fast
        assert [document.over for document in given] == ["ended"] * 2
        learnt.append([document.adapter.values.float() for document in given])
    for ours, right in zip(*learnt, strict=True):
        assert rel(ours, right) < 0.05
    # The rows are so long that the window matters.
    assert beyond_window(model, 61) and not beyond_window(model, 32)
