"""The demo: a document that fits this machine, and measuring that is cheap and says the same."""

import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import transformers
from tiny import tiny_model

import liftcore
from liftcore import answer, report
from liftcore.cli import demo
from liftcore.cli.main import main
from liftcore.config import LiftConfig
from liftcore.errors import UsageError
from liftcore.fiction.documents import MAX_WORDS, MIN_WORDS, fictional_document
from liftcore.layers.lora import Adapter, installed, without_adapter


@pytest.fixture
def trained(rng):
    """A tiny model in fp32 with an adapter that changes what it says."""

    def make(family="llama", **changes):
        model = tiny_model(family, seed=int(rng.integers(2**31)), **changes)
        adapter = Adapter(model, 4, 8.0)
        adapter.values.copy_(torch.from_numpy(rng.normal(size=len(adapter.values)) * 0.3))
        adapter.install()
        return model, adapter

    return make


@pytest.mark.parametrize("family", ["llama", "qwen2", "gemma2", "granite"])
def test_padded_and_folded_is_what_comes_one_by_one(family, trained, rng):
    model, adapter = trained(family)
    lengths = rng.integers(3, 20, size=9)
    rows = [rng.integers(3, 200, size=n).tolist() for n in lengths]
    alone = [answer.greedy(model, torch.tensor([row]), 12)[0] for row in rows]
    model.generation_config.eos_token_id = None
    tokenizer = SimpleNamespace(eos_token_id=None, pad_token_id=0)
    with adapter.folded():
        together = answer.replies(model, tokenizer, rows, 12)
    assert together == torch.stack(alone).tolist()
    with without_adapter(model):
        without = answer.replies(model, tokenizer, rows, 12)
    assert together != without, "the adapter changes nothing: no test"


def test_recall_is_the_same_folded(trained, rng):
    model, adapter = trained()
    tokens = rng.integers(3, 200, size=120)
    # Some of it is what the model says, so that recall is neither 0 nor 1.
    tokens[80:112] = answer.greedy(model, torch.from_numpy(tokens[None, 48:80]), 32)[0]
    plain = report.measure(model, tokens, prefix=[1])
    with adapter.folded():
        folded = report.measure(model, tokens, prefix=[1])
    assert folded == plain


def test_folding_leaves_every_bit_as_it_was(trained):
    model, adapter = trained()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    name = name_of_a_base(model)
    with pytest.raises(RuntimeError, match="in the midst"), adapter.folded():
        plain = model.state_dict()[name.replace(".base.", ".")]
        assert not torch.equal(plain, before[name])
        raise RuntimeError("in the midst")
    after = model.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert installed(model) is adapter


def name_of_a_base(model):
    return next(name for name in model.state_dict() if name.endswith(".base.weight"))


def test_16_bit_is_not_folded(trained):
    """The sum W + BA would be rounded to W's 8 bits."""
    model, adapter = trained(dtype=torch.bfloat16)
    before = model.state_dict()[name_of_a_base(model)].clone()
    with adapter.folded():
        assert torch.equal(model.state_dict()[name_of_a_base(model)], before)
        assert installed(model) is adapter


def test_completions_are_those_of_one_by_one(tiny_folder):
    model, tokenizer = liftcore.load(tiny_folder, device="cpu", dtype=torch.float32)
    cues = [fact.cue for fact in fictional_document(3, 400).facts]
    lengths = [3 + n % 9 for n in range(len(cues))]
    alone = [
        answer.complete(model, tokenizer, cue, length)
        for cue, length in zip(cues, lengths, strict=True)
    ]
    assert answer.complete_all(model, tokenizer, cues, lengths) == alone


def test_a_completion_ends_with_the_text(tiny_folder):
    model, tokenizer = liftcore.load(tiny_folder, device="cpu", dtype=torch.float32)
    cues = ["The mill stands", "Every June she gives the honey"]
    free = answer.complete_all(model, tokenizer, cues, [8, 8])
    row = tokenizer(cues[0] + free[0], add_special_tokens=False)["input_ids"]
    model.generation_config.eos_token_id = row[-4]
    assert answer.complete_all(model, tokenizer, cues, [8, 8]) == [
        answer.complete(model, tokenizer, cue, 8) for cue in cues
    ]


@pytest.fixture
def quick(tiny_folder, monkeypatch):
    """The demo on a tiny model."""
    model, tokenizer = liftcore.load(tiny_folder, device="cpu", dtype=torch.float32)
    monkeypatch.setattr("liftcore.model.load", lambda name, dtype=None: (model, tokenizer))
    return tokenizer


def test_the_demo_says_how_long_it_takes_before_it_begins(quick, tmp_path, capfd):
    assert main(["demo", "--tokens", "300", "--out", str(tmp_path / "memory"), "--json"]) == 0
    out, err = capfd.readouterr()
    first = out.splitlines()[0]
    assert re.search(r"trains [\d,]+ tokens a second in float32.* about \d+(\.\d)? (s|min)", first)
    assert "training" in err and "100%" in err
    assert (tmp_path / "memory" / "adapter_model.safetensors").is_file()


@pytest.mark.parametrize("tokens", [300, 500, 1000, 5000])
def test_a_document_of_the_length_that_was_asked_for(tokens, tokenizer):
    fiction = demo._of_length(1, tokens, tokenizer)
    length = len(tokenizer(fiction.text, add_special_tokens=False)["input_ids"])
    assert abs(length - tokens) <= 0.15 * tokens


def test_2000_tokens_are_the_document_of_a_fast_machine(tokenizer):
    assert demo._of_length(0, 2000, tokenizer) == fictional_document(0)


@pytest.mark.parametrize("tokens", [-1, 0, 20, 100_000])
def test_no_document_has_such_a_length(tokens, tmp_path, capsys):
    with pytest.raises(UsageError, match="tokens"):
        demo.demo(tmp_path / "memory", tokens=tokens)
    assert main(["demo", "--tokens", str(tokens), "--out", str(tmp_path / "memory")]) == 2
    assert "tokens" in capsys.readouterr().err


def test_a_slower_machine_gets_a_shorter_document(quick, tmp_path, monkeypatch):
    """Each is the longest that fits two minutes, between the shortest and 2,000 tokens."""
    lengths = []
    for passes_a_second in (1e6, 150.0, 130.0, 1.0):
        pace = np.array([1 / passes_a_second, 0.1, 0.0, 0.0])
        monkeypatch.setattr("liftcore.cost.calibrate", lambda *_, pace=pace, **__: pace)
        asked = []

        def stop(seed, words, asked=asked):
            asked.append(words)
            raise KeyboardInterrupt

        monkeypatch.setattr(demo, "fictional_document", stop)
        with pytest.raises(KeyboardInterrupt):
            demo.demo(tmp_path / "memory")
        lengths += asked
    fast, slow, slower, slowest = lengths
    assert fast == 1550 and slowest == MIN_WORDS
    assert MIN_WORDS < slower < slow < fast <= MAX_WORDS
    passes = LiftConfig.preset("memorize").epochs * 1.3 * np.array([slow, slower])
    assert (passes / np.array([150.0, 130.0]) < 125).all()


def test_transposed_weights_are_folded_too(rng):
    config = transformers.GPT2Config(vocab_size=97, n_positions=64, n_embd=24, n_layer=2, n_head=2)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    adapter = Adapter(model, 4, 8.0)
    adapter.values.copy_(torch.from_numpy(rng.normal(size=len(adapter.values)) * 0.3))
    adapter.install()
    ids = torch.from_numpy(rng.integers(0, 97, size=(3, 10)))
    with torch.no_grad():
        right = model(ids).logits
        with adapter.folded():
            assert installed(model) is None
            torch.testing.assert_close(model(ids).logits, right, rtol=1e-4, atol=1e-4)
        assert torch.equal(model(ids).logits, right)
