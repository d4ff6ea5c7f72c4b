"""estimate(): what it counts exactly, and that it leaves the model as it was."""

import numpy as np
import pytest
import torch
from tiny import TINY, tiny_model
from transformers import LlamaConfig

import liftcore
from liftcore import report
from liftcore.config import LiftConfig
from liftcore.layers.lora import Adapter

CONFIG = LiftConfig(segment_length=32, schedule="trivial", epochs=3, rank=4, batch_size=2)


def test_flops_of_a_small_model_by_hand():
    cost = liftcore.estimate(tiny_model(), 320, CONFIG)
    linear = 2 * (48 * 48 * 2 + 24 * 48 * 2 + 3 * 48 * 80)
    lora = 2 * 4 * ((48 + 48) * 2 + (24 + 48) * 2 + 3 * (48 + 80))
    attention = 3.5 * 2 * 32 * 48 * 2
    assert cost.token_passes == 960 and cost.steps == 15
    assert cost.flops == pytest.approx(960 * (4 * linear + 6 * lora + 4 * 211 * 48 + attention))
    assert cost.seconds > 0 and cost.peak_bytes > 0


def test_a_configuration_without_weights_is_enough():
    config = LlamaConfig(**{**TINY, "num_hidden_layers": 5})
    from_config = liftcore.estimate(config, 320, CONFIG, device="cpu", dtype=torch.float32)
    from_model = liftcore.estimate(tiny_model(num_hidden_layers=5), 320, CONFIG)
    assert from_config.flops == pytest.approx(from_model.flops)
    assert config.num_hidden_layers == 5


def test_a_document_shorter_than_a_segment():
    assert liftcore.estimate(tiny_model(), 5, CONFIG).token_passes == 15


def test_the_model_and_its_adapter_are_left_as_they_were():
    model = tiny_model()
    adapter = Adapter(model, 4, 8.0)
    adapter.install()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    liftcore.estimate(model, 100, CONFIG)
    after = model.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[k], before[k]) for k in before)
    assert model._liftcore_adapter is adapter


def test_as_many_probes_are_timed_as_are_measured(monkeypatch):
    model = torch.nn.Linear(2, 2)
    monkeypatch.setattr(report, "greedy", lambda model, ids, new: torch.zeros(len(ids), new))
    for length in (2, 3, 31, 63, 64, 65, 70, 126, 127, 128, 500):
        measured = report.measure(model, np.arange(length), prefix=[1])
        assert len(measured.positions) == report.places(length)
        assert len({*measured.positions}) == report.places(length) or length > 127
    assert report.places(10_000) == report.PROBES > report.places(70) == 7
