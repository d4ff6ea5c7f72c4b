"""A starting adapter from many documents, and absorb with objectives, from Python and the shell."""

import json

import numpy as np
import pytest
import torch
from bees import PAIRS, TEXT
from safetensors.torch import load_file
from streams import Stream

import liftcore
from liftcore import adapter as adapters
from liftcore import sft as starting
from liftcore.config import LiftConfig
from liftcore.errors import LiftError, UsageError
from liftcore.questions.pairs import GivenPairs, Pair

CONFIG = LiftConfig(
    segment_length=16, epochs=2, rank=4, learning_rate=5e-3, objectives=("segments", "qa")
)


def test_sft_weighs_all_documents_alike_and_absorb_begins_from_it(
    loaded, corpus, tmp_path, monkeypatch
):
    model, tokenizer = loaded
    seen, real = [], starting.train

    def spy(adapter, source, **options):
        seen.append(source)
        return real(adapter, source, **options)

    monkeypatch.setattr(starting, "train", spy)
    config = CONFIG.replace(mix=(1.0, 0.5))
    start = starting.sft(model, tokenizer, corpus, config=config, progress=False)
    assert (start.documents, start.pairs) == (3, 2) and np.isfinite(start.training.loss)
    names = [o.name for o in seen[0].objectives]
    assert names == ["segments", "qa"] * 3 and seen[0].weights == [1.0, 0.5] * 3
    assert getattr(model, "_liftcore_adapter", None) is None, "the model is left as it was"
    tokens = sum(len(s) for o in seen[0].objectives for s in o.samples(0))
    assert start.training.token_passes == 2 * tokens, "every sample once an epoch"

    folder = start.save(tmp_path / "start")
    assert json.loads((folder / starting.INFO).read_text())["documents"] == 3
    weights = load_file(folder / adapters.WEIGHTS)
    assert any(w.abs().max() > 0 for name, w in weights.items() if "lora_B" in name)
    tiny_step = CONFIG.replace(objectives=("segments",), learning_rate=1e-12, epochs=1)
    memory = liftcore.absorb(model, tokenizer, TEXT, config=tiny_step, init=folder, progress=False)
    assert torch.allclose(memory.adapter.values, start.adapter.values, atol=1e-8)


def test_an_adapter_that_does_not_fit_is_refused(loaded, corpus, tmp_path):
    model, tokenizer = loaded
    one = CONFIG.replace(epochs=1)
    folder = starting.sft(model, tokenizer, corpus, config=one, progress=False).save(tmp_path / "s")

    def absorb(**changes):
        config = one.replace(objectives=("segments",), **changes)
        liftcore.absorb(model, tokenizer, TEXT, config=config, init=folder, progress=False)

    with pytest.raises(UsageError, match="rank 4 and alpha 8"):
        absorb(rank=8)
    with pytest.raises(UsageError, match="alpha"):
        absorb(alpha=3.0)
    name = model.config.name_or_path
    model.config.name_or_path = "somebody/else"
    try:
        with pytest.raises(LiftError, match="belongs to"):
            absorb()
    finally:
        model.config.name_or_path = name
    (folder / adapters.WEIGHTS).unlink()
    with pytest.raises(LiftError, match="no adapter_model"):
        absorb()
    assert getattr(model, "_liftcore_adapter", None) is None


def test_a_corpus_without_documents_or_questions_is_refused(loaded, corpus, tmp_path):
    with pytest.raises(LiftError, match="holds no"):
        starting.sft(*loaded, tmp_path / "nothing", progress=False)
    for file in corpus.glob("*.jsonl"):
        file.unlink()
    with pytest.raises(LiftError, match="no questions"):
        starting.sft(*loaded, corpus, config=CONFIG, progress=False)
    with pytest.raises(UsageError, match="sft takes"):
        starting.sft(*loaded, corpus, config=CONFIG.replace(objectives=("distill",)))
    with pytest.raises(UsageError, match="window"):
        starting.sft(*loaded, corpus, config=CONFIG.replace(segment_length=300))


def test_questions_join_the_objectives(loaded, tmp_path):
    """A run with questions, saved and loaded again."""
    config = CONFIG.replace(objectives=("segments", "recitation"), mix=(1.0, 0.5), epochs=1)
    memory = liftcore.absorb(*loaded, TEXT, title="Bees", config=config, qa=PAIRS, progress=False)
    assert memory.config.objectives == ("segments", "recitation", "qa")
    assert memory.config.mix == (1.0, 0.5, 1.0)
    again = liftcore.load_memory(memory.save(tmp_path / "m"), loaded)
    assert again.config == memory.config and again.training == memory.training
    plain = liftcore.absorb(*loaded, TEXT, config=CONFIG, qa=PAIRS, progress=False)
    assert plain.config == CONFIG


def test_a_source_is_closed_whatever_happens(loaded):
    class Source(GivenPairs):
        closed = False

        def close(self):
            Source.closed = True

    liftcore.absorb(*loaded, TEXT, config=CONFIG, qa=Source([Pair(*PAIRS[0])]), progress=False)
    assert Source.closed
    Source.closed = False

    class Fails(Source):
        def poll(self):
            raise LiftError("the source is broken")

    with pytest.raises(LiftError, match="broken"):
        liftcore.absorb(*loaded, TEXT, config=CONFIG, qa=Fails([]), progress=False)
    assert Source.closed and Stream([]).done
