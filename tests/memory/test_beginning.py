"""A run with all of it: some layers, a frozen A, fitted to the document."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from bees import TEXT
from interrupts import stop_after
from tiny import TINY, tiny_model
from transformers import LlamaConfig

import liftcore
from liftcore import adapter as adapters
from liftcore import beginning, lift
from liftcore.config import LiftConfig
from liftcore.cost import needed_flops
from liftcore.errors import LiftError, UsageError
from liftcore.layers import document_init
from liftcore.layers import inputs as layer_inputs
from liftcore.layers.lora import Adapter
from liftcore.questions import own_words
from liftcore.questions.own_words import OwnWords
from liftcore.training.loop import train

CONFIG = LiftConfig(
    segment_length=16, epochs=3, rank=4, learning_rate=5e-3, layers=(1, 2), train_a=False,
    adapter_init="document", replay_rows=8,
)  # fmt: skip


@pytest.fixture
def model(tokenizer, tmp_path, monkeypatch):
    """A tiny model of four layers that knows its own words; what is kept goes to a fresh folder."""
    monkeypatch.setenv("LIFTCORE_CACHE", str(tmp_path / "cache"))
    vocabulary = len(tokenizer)
    rng = np.random.default_rng(0)
    rows = [OwnWords(rng.integers(3, vocabulary, 12), 6) for _ in range(9)]
    collected = own_words.Collection(rows[:8], rows[8:], 0.0)
    monkeypatch.setattr(own_words, "collect", lambda *args, **options: collected)
    monkeypatch.setattr(own_words, "held_out", lambda *args: [])
    return tiny_model(
        vocab_size=vocabulary, num_hidden_layers=4, initializer_range=0.1, pad_token_id=2
    )


def absorb(model, tokenizer, config=CONFIG, **options):
    given = dict(title="Bees", progress=False, config=config, **options)
    return liftcore.absorb(model, tokenizer, TEXT, **given)


def test_a_is_fitted_and_stays(model, tokenizer):
    memory = absorb(model, tokenizer)
    plain = Adapter.of(model, CONFIG)
    assert memory.adapter.numbers == [1, 2] and memory.training.starting > 0
    fitted = Adapter.of(model, CONFIG)
    beginning.begin(fitted, tokenizer, [memory_tokens(tokenizer)], CONFIG)
    assert torch.equal(memory.adapter.frozen, fitted.frozen)
    assert not torch.equal(fitted.frozen, plain.frozen)
    assert memory.adapter.values.any()


def memory_tokens(tokenizer):
    return liftcore.document.from_text(TEXT, tokenizer, "Bees").tokens


def test_a_run_that_goes_on_gives_the_same_bits(model, tokenizer, tmp_path, monkeypatch):
    right = absorb(model, tokenizer).adapter
    right.remove()

    def until_step_3(*args, **options):
        return train(*args, **{**options, "on_step": stop_after(3)})

    with monkeypatch.context() as patch:
        patch.setattr(lift, "train", until_step_3)
        with pytest.raises(KeyboardInterrupt):
            absorb(model, tokenizer, resume=tmp_path / "run")
    # A is in the state: nothing is fitted again.
    monkeypatch.setattr(document_init, "begin", None)
    memory = absorb(model, tokenizer, resume=tmp_path / "run")
    again = memory.adapter
    assert torch.equal(again.values, right.values) and torch.equal(again.frozen, right.frozen)
    assert memory.training.starting > 0
    with pytest.raises(LiftError, match="train_a"):
        absorb(model, tokenizer, CONFIG.replace(train_a=True), resume=tmp_path / "run")


def test_a_memory_is_saved_merged_and_begun_from(model, tokenizer, tmp_path):
    memory = absorb(model, tokenizer)
    ids = torch.arange(3, 40)[None]
    right = model(ids).logits
    memory.save(tmp_path / "memory", merge=True)
    merged = type(model).from_pretrained(tmp_path / "memory" / "merged")
    torch.testing.assert_close(merged(ids).logits, right, rtol=1e-4, atol=1e-4)
    memory.adapter.remove()
    again = liftcore.load_memory(tmp_path / "memory", (model, tokenizer))
    assert again.config == CONFIG and torch.equal(model(ids).logits, right)
    again.adapter.remove()
    # One more run begins from it, and keeps its A.
    frozen = memory.adapter.frozen
    more = absorb(model, tokenizer, CONFIG.replace(epochs=1), init=tmp_path / "memory")
    assert torch.equal(more.adapter.frozen, frozen) and more.training.starting == 0
    assert not torch.equal(more.adapter.values, memory.adapter.values)
    assert adapters.settings_of(tmp_path / "memory")["layers"] == (1, 2)
    with pytest.raises(UsageError, match="layers"):
        absorb(model, tokenizer, CONFIG.replace(layers=None), init=tmp_path / "memory")


def test_what_own_words_gave_is_kept(model, monkeypatch):
    adapter = Adapter.of(model, CONFIG)
    rows = [np.arange(3, 20) + i for i in range(6)]
    first = beginning.known_words(adapter, rows, 1e-3)
    assert beginning.known_words(adapter, rows, 1e-3) is first
    beginning._known.clear()
    with monkeypatch.context() as patch:
        patch.setattr(document_init, "own_words", None)
        read = beginning.known_words(adapter, rows, 1e-3)
    for path, against in first.items():
        assert torch.equal(read[path].factor, against.factor)
        assert read[path].delta == pytest.approx(against.delta)
    # Other rows, another damping: something else.
    for changes in ((rows[1:], 1e-3), (rows, 1e-2)):
        beginning._known.clear()
        other = beginning.known_words(adapter, *changes)
        assert not torch.equal(next(iter(other.values())).factor, next(iter(first.values())).factor)


def test_what_is_known_of_one_model_is_not_read_for_another(model, tokenizer):
    rows = [np.arange(3, 20) + i for i in range(6)]
    of_one = beginning.known_words(Adapter.of(model, CONFIG), rows, 1e-3)
    # The same shape, other weights.
    other = tiny_model(
        seed=1, vocab_size=len(tokenizer), num_hidden_layers=4, initializer_range=0.1,
        pad_token_id=2,
    )  # fmt: skip
    of_other = beginning.known_words(Adapter.of(other, CONFIG), rows, 1e-3)
    assert of_one.keys() == of_other.keys()
    assert not any(torch.equal(of_one[p].factor, of_other[p].factor) for p in of_one)


@pytest.mark.parametrize("widest", [layer_inputs.WIDEST, 8])
def test_without_own_words_a_is_what_the_document_says_most(model, tokenizer, monkeypatch, widest):
    monkeypatch.setattr(layer_inputs, "WIDEST", widest)

    def fail(*args, **options):
        raise LiftError("the model wrote too few words")

    monkeypatch.setattr(own_words, "collect", fail)
    with pytest.warns(UserWarning, match="too few words"):
        memory = absorb(model, tokenizer)
    plain = Adapter.of(model, CONFIG)
    assert memory.training.starting > 0 and memory.report.forgotten is None
    assert not torch.equal(memory.adapter.frozen, plain.frozen)
    memory.adapter.remove()
    with pytest.warns(UserWarning, match="too few words"), pytest.raises(LiftError, match="keep"):
        absorb(model, tokenizer, CONFIG.replace(keep=0.1))


def test_a_layer_that_plain_text_never_calls_stays_as_it_begins(model, tokenizer):
    first = model.model.layers[1].mlp
    first.spare = torch.nn.Linear(first.up_proj.in_features, 8, bias=False)
    adapter, untouched = Adapter.of(model, CONFIG), Adapter.of(model, CONFIG)
    (spare,) = [path for path in adapter.layers if path.endswith("spare")]
    beginning.begin(adapter, tokenizer, [memory_tokens(tokenizer)], CONFIG)
    for path, layer in adapter.layers.items():
        same = torch.equal(layer.lora_a, untouched.layers[path].lora_a)
        assert same == (path == spare)


def test_a_damaged_file_is_made_anew(model):
    adapter = Adapter.of(model, CONFIG)
    rows = [np.arange(3, 20) + i for i in range(6)]
    first = beginning.known_words(adapter, rows, 1e-3)
    (file,) = (beginning.cache_folder() / "own-words").glob("*.safetensors")
    file.write_bytes(file.read_bytes()[:-5])
    beginning._known.clear()
    again = beginning.known_words(adapter, rows, 1e-3)
    assert all(torch.equal(again[path].factor, first[path].factor) for path in first)


def test_the_estimate_of_a_configuration_is_that_of_the_model():
    """A layer below those that are trained, and one above them."""
    config = dataclasses.replace(CONFIG, schedule="trivial", segment_length=32)
    shape = LlamaConfig(**{**TINY, "num_hidden_layers": 4})
    model = tiny_model(num_hidden_layers=4)
    from_config = liftcore.estimate(shape, 320, config, device="cpu", dtype=torch.float32)
    from_model = liftcore.estimate(model, 320, config)
    assert from_config.flops == pytest.approx(from_model.flops)


def test_flops_by_hand():
    linear = 48 * 48 * 2 + 24 * 48 * 2 + 3 * 48 * 80
    of_a, of_b = 4 * (48 * 6 + 80), 4 * (48 * 3 + 24 * 2 + 80 * 2)
    attention = (1 + 2 * 3.5) * 2 * 32 * 48
    right = 2 * linear + 8 * linear + 4 * 2 * of_a + 6 * 2 * of_b + 4 * 211 * 48 + attention
    model = tiny_model(num_hidden_layers=3)
    assert needed_flops(model, 32, 4, numbers=[1, 2], train_a=False) == pytest.approx(right)


def test_settings_on_disk_and_in_words():
    config = LiftConfig(layers=[15, -1], train_a=False)
    assert config.layers == (15, -1)
    assert LiftConfig(**json.loads(json.dumps(dataclasses.asdict(config)))) == config
    for wrong in (0, 1.5, (1,), (1, 2, 3), "upper", (0.5, 1), True):
        with pytest.raises(UsageError):
            LiftConfig(layers=wrong)
