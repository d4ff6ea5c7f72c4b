"""The benchmark of documents in one batch, and the page of what a million would take."""

import csv

import pytest
import torch

from bench import many, scale
from bench.many import Variant
from liftcore.config import LiftConfig


def test_rows_hold_what_was_measured(tmp_path, monkeypatch, capsys):
    from tiny import tiny_model

    monkeypatch.setattr(many.shapes, "build", lambda *_: (tiny_model(), None))
    options = "--device cpu --together 1 3 --segments 8 --tokens 64 --rank 4 --steps 1 --rounds 2"
    assert many.main([*options.split(), "--cpu-time", "--out", str(tmp_path)]) == 0
    with (tmp_path / "many.csv").open() as file:
        alone, one, three = csv.DictReader(file)
    assert (alone["together"], one["together"], three["together"]) == (many.ALONE, "1", "3")
    assert float(alone["times_alone"]) == 1 and three["clock"] == "CPU seconds"
    # 8 passes over 64 tokens.
    hourly = 3600 * float(three["tokens_per_second"]) / 512
    assert float(three["documents_per_hour"]) == pytest.approx(hourly, rel=1e-2)
    assert "segments of 8 tokens" in capsys.readouterr().out


def test_no_ratio_where_the_losses_differ(tmp_path, monkeypatch):
    from tiny import tiny_model

    own = Variant.losses
    monkeypatch.setattr(many.shapes, "build", lambda *_: (tiny_model(), None))
    monkeypatch.setattr(
        Variant, "losses", lambda self, n: own(self, n) * (1 + 0.1 * bool(self.adapter.slots))
    )
    options = "--device cpu --together 2 --segments 8 --tokens 64 --rank 4 --steps 1 --rounds 1"
    assert many.main([*options.split(), "--out", str(tmp_path)]) == 1
    with (tmp_path / "many.csv").open() as file:
        _, two = csv.DictReader(file)
    assert two["times_alone"] == "" and two["note"] == "losses differ"


def test_the_page_on_scale_agrees_with_its_counts():
    text = scale.PAGE.read_text()
    assert scale.rewritten(text) == text
    assert [name for _, name, _ in scale.MARKED.findall(text)] == list(scale.TABLES)


def test_a_floor_is_the_slower_of_products_and_weights_and_the_updates_of_each():
    cost = scale.Cost(
        steps=10, passes=640, flops=1e9, of_a=0, of_b=10**6, trained=10**6, weights=1e10
    )
    weights, update = 1e10 / scale.BANDWIDTH, scale.UPDATE * 1e6 / scale.BANDWIDTH
    assert cost.seconds(1) == pytest.approx(10 * (weights + update))
    assert cost.seconds(4) == pytest.approx(10 * (weights / 4 + update))
    products = 64 * 1e9 / scale.PEAK
    assert cost.seconds(1000) == pytest.approx(10 * (products + update))
    assert cost.seconds(1000, 0.5) == pytest.approx(10 * (2 * products + update))
    assert cost.bytes == 2 * 10**6


def test_counts_of_a_shape():
    """Llama-3-8B: 6.98 G weights in its layers, half of them read a second time, and the head."""
    cost = scale.Cost.of("llama-3-8b", LiftConfig.preset("memorize"))
    layers = 32 * (2 * 4096 * 4096 + 2 * 4096 * 1024 + 3 * 4096 * 14336)
    assert cost.weights == 2 * 1.5 * layers + 4 * 128256 * 4096
    assert cost.of_b == cost.trained == 128 * 16 * (2 * 4096 + 2 * 1024 + 2 * 14336)
    assert torch.tensor(cost.flops) > 2 * 1.5 * layers
