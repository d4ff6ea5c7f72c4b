"""Families of models, each with a layer of its own kind, in all that is done to a model."""

import numpy as np
import pytest
import torch
from tiny import tiny_model

from bench.families import main as families
from bench.families import models as family_models
from liftcore.answer import greedy, keeps_a_cache
from liftcore.config import LiftConfig
from liftcore.errors import LiftError
from liftcore.layers.lora import Adapter
from liftcore.model import Head
from liftcore.training.loop import train
from liftcore.training.source import segments_alone

TAKEN = (
    "falcon", "falcon_mamba", "gemma3n_text", "gpt_neox", "gptj", "granitemoe", "jamba", "jetmoe",
    "lfm2", "llama4_text", "mamba", "mamba2", "mixtral", "nemotron", "olmo2",
    "opt", "phi", "qwen2_moe", "qwen3_5_text", "qwen3_next", "recurrent_gemma", "stablelm",
    "starcoder2", "bamba", "phimoe",
)  # fmt: skip
CONFIG = LiftConfig(segment_length=24, epochs=1, rank=2, alpha=4, learning_rate=1e-3)


@pytest.mark.parametrize("family", TAKEN)
def test_a_family_trains_is_measured_and_saved_in_bf16(family):
    """bf16: there the norms and the attention are liftcore's."""
    said = families.try_family(family, torch.bfloat16)
    assert [said.get(p) for p in ("train", "measure", "save")] == ["yes"] * 3, said
    assert not said["accelerate"].startswith("failed"), said


@pytest.mark.parametrize("family", ["mamba", "rwkv", "llama", "recurrent_gemma"])
def test_greedy_text_is_that_of_reading_everything_anew(family):
    model = family_models.tiny(family)
    ids = torch.from_numpy(np.random.default_rng(1).integers(3, 200, size=(2, 9)))
    got, row = greedy(model, ids, 4), ids
    for _ in range(4):
        logits = model(input_ids=row, use_cache=False).logits
        row = torch.cat([row, logits[:, -1:].argmax(-1)], 1)
    assert torch.equal(got, row[:, 9:])
    assert family != "llama" or keeps_a_cache(model)


def a_run(model, config=CONFIG):
    adapter = Adapter(model, 2, 4)
    adapter.install()
    return train(adapter, segments_alone(np.arange(3, 63), config, []))


def test_what_is_put_under_a_model_is_left_out_where_it_differs(monkeypatch):
    """Whatever it is, and also where only the gradient is wrong; a line of the report names it."""
    from liftcore.layers import norms

    class Wrong(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, weight, eps, offset):
            wide = x.float()
            wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
            return (wide * (weight.float() + offset)).to(x.dtype)

        @staticmethod
        def backward(ctx, dy):
            return -dy, None, None, None

    right = a_run(tiny_model(dtype=torch.bfloat16))
    assert "norms" not in right.how
    monkeypatch.setattr(norms, "_RmsNorm", Wrong)
    result = a_run(tiny_model(dtype=torch.bfloat16))
    assert "its own norms stayed" in result.how and result.loss == pytest.approx(
        right.loss, rel=0.02
    )


@pytest.mark.parametrize("case", ["raises", "no gradient", "no number", "looks ahead"])
def test_a_model_that_cannot_be_trained_is_refused_before_the_first_step(case):
    model = tiny_model()
    layer = model.model.layers[1]
    own = type(layer).forward

    def forward(x, *args, **kwargs):
        y = own(layer, x, *args, **kwargs)
        if torch.is_grad_enabled() and case == "raises":
            raise NotImplementedError("no backward here\nof any kind")
        if case == "looks ahead":
            y = y + 0.1 * y.mean(1, keepdim=True)
        return y.detach() if case == "no gradient" else y * (1 if "look" in case else float("nan"))

    adapter = Adapter(model, 2, 4)
    adapter.install()
    layer.forward = forward
    model._liftcore_head = Head(model.lm_head.weight, None, 1.0)
    with pytest.raises(LiftError, match=r"cannot be trained|not causal") as caught:
        train(adapter, segments_alone(np.arange(3, 63), CONFIG, []))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("understood", [True, False])
def test_a_last_layer_that_is_computed_in_full_is_named(understood):
    model = tiny_model()
    if not understood:
        kind = type(model.model.layers[-1])

        class Pair(kind):
            def forward(self, hidden_states, *args, **kwargs):
                return super().forward(hidden_states, *args, **kwargs) + hidden_states[:, :1]

        model.model.layers[-1].__class__ = Pair
    result = a_run(model, CONFIG.replace(schedule="overlap", stride=8, overlap_loss="new"))
    assert ("the last layer runs for all rows" in result.how) is not understood
