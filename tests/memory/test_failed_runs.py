"""A run that fails leaves the caller's model as it was; one that is trained keeps its adapter."""

import pytest
import torch
from bees import TEXT
from saving import CONFIG, fails, loaded

import liftcore
from liftcore.errors import LiftError


@pytest.mark.parametrize("where", ["state", "questions", "init", "interrupt"])
def test_an_error_before_the_first_step_leaves_the_model_as_it_was(
    memory, tmp_path, monkeypatch, where
):
    from liftcore import prepare
    from liftcore.layers.lora import Adapter
    from liftcore.output import STATE

    options, expected = {}, LiftError
    memory.adapter.install()
    if where == "state":
        (tmp_path / STATE).write_bytes(b"{}" * 99)
        options = {"resume": tmp_path}
    elif where == "questions":
        monkeypatch.setattr(prepare, "digest_of", fails)
        expected = RuntimeError
    elif where == "init":
        (tmp_path / "adapter_config.json").write_text("{}")
        options = {"init": tmp_path}
    else:
        real, expected = Adapter.install, KeyboardInterrupt

        def interrupted(self):
            if self is memory.adapter:
                return real(self)
            real(self)
            raise KeyboardInterrupt

        monkeypatch.setattr(Adapter, "install", interrupted)
    with pytest.raises(expected):
        liftcore.absorb(
            memory.model, memory.tokenizer, TEXT, config=CONFIG, progress=False, **options
        )
    assert memory.model._liftcore_adapter is memory.adapter
    layers = dict(memory.model.named_modules())
    assert all(layers[path] is layer for path, layer in memory.adapter.layers.items())


def test_an_interrupt_within_the_installing_leaves_the_model_as_it_was(memory, monkeypatch):
    from liftcore.layers import lora

    memory.adapter.install()
    for number in (1, 5, 15, 20):
        real, count = lora.put, [0]

        def stops(*args, real=real, count=count, number=number):
            count[0] += 1
            if count[0] == number:
                raise KeyboardInterrupt
            real(*args)

        monkeypatch.setattr(lora, "put", stops)
        with pytest.raises(KeyboardInterrupt):
            liftcore.absorb(memory.model, memory.tokenizer, TEXT, config=CONFIG, progress=False)
        monkeypatch.setattr(lora, "put", real)
        assert memory.model._liftcore_adapter is memory.adapter
        layers = dict(memory.model.named_modules())
        assert all(layers[path] is layer for path, layer in memory.adapter.layers.items())


def test_recall_that_fails_after_training_keeps_the_adapter(memory, tmp_path, monkeypatch):
    from liftcore import report

    real, calls = report.greedy, []

    def breaks(*args):
        calls.append(1)
        return real(*args) if len(calls) == 1 else fails()

    monkeypatch.setattr(report, "greedy", breaks)
    with pytest.warns(UserWarning, match="it broke"):
        made = liftcore.absorb(memory.model, memory.tokenizer, TEXT, config=CONFIG, progress=False)
    assert torch.equal(made.adapter.values, memory.adapter.values)
    again = loaded(made.save(tmp_path / "m"), memory)
    assert "not measured" in again.report.text()


def test_a_model_whose_recall_cannot_be_measured_is_not_trained(memory, monkeypatch):
    from liftcore import lift, report

    monkeypatch.setattr(report, "greedy", fails)
    monkeypatch.setattr(lift, "train", lambda *a, **o: pytest.fail("it was trained"))
    with pytest.raises(LiftError, match="it broke"):
        liftcore.absorb(memory.model, memory.tokenizer, TEXT, config=CONFIG, progress=False)
