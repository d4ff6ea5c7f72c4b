"""Loading models: no code that a model brings is run, and what cannot be loaded says why."""

import contextlib
import io
import json
import re
import shutil
import sys
from pathlib import Path

import pytest
import transformers
from folders import change

import liftcore
from liftcore.cli.main import main
from liftcore.config import LiftConfig
from liftcore.errors import LiftError
from liftcore.model import load_tokenizer

ROOT = Path(__file__).resolve().parents[2]
PLANTED = """
import pathlib
pathlib.Path({marker!r}).write_text("ran")
from transformers import LlamaConfig as Config, LlamaForCausalLM as Model
from transformers import PreTrainedTokenizerFast as Tokenizer
"""


@pytest.fixture
def planted(tiny_folder, tmp_path, monkeypatch):
    """Makes a model folder whose config.json, tokenizer_config.json or part of a config names a
    module that writes a file; standard input would say yes to running it."""
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(transformers.dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "m"))
    marker = tmp_path / "marker"

    def make(where):
        folder = shutil.copytree(tiny_folder, tmp_path / where)
        (folder / "planted.py").write_text(PLANTED.format(marker=str(marker)))
        names = {
            "AutoConfig": "planted.Config",
            "AutoModelForCausalLM": "planted.Model",
            "AutoModel": "planted.Model",
        }
        config = folder / "config.json"
        if where == "config":
            change(config, model_type="planted", auto_map=names)
        elif where == "model":
            # transformers knows the configuration, and has no causal model for it.
            change(config, model_type="clip_text_model", auto_map=names)
        elif where == "part":
            part = {"model_type": "clip_text_model", "auto_map": names}
            change(config, model_type="fuyu", text_config=part)
        else:
            change(config, model_type="planted")
            tokenizer = {"AutoTokenizer": ["planted.Tokenizer", "planted.Tokenizer"]}
            change(folder / "tokenizer_config.json", auto_map=tokenizer, tokenizer_class="Planted")
        return folder

    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n" * 9))
    yield make
    assert sys.stdin.read() == "y\n" * 9, "somebody asked on standard input"
    assert not marker.exists(), "the model's code ran"


@pytest.mark.parametrize("where", ["config", "model", "part", "tokenizer"])
def test_code_of_a_model_is_not_run(planted, where, capsys):
    folder = planted(where)
    with contextlib.suppress(LiftError):
        load_tokenizer(folder)
    with pytest.raises(LiftError) as refused:
        liftcore.load(folder, device="cpu")
    assert str(folder) in str(refused.value) and "\n" not in str(refused.value)
    if where in ("config", "model"):
        assert "runs no code" in str(refused.value)
    assert main(["absorb", str(ROOT / "README.md"), "--model", str(folder)]) == 1
    assert capsys.readouterr().err.count("\n") == 1


def test_code_of_a_tokenizer_is_not_run_and_named(planted):
    with pytest.raises(LiftError, match="runs no code"):
        load_tokenizer(planted("tokenizer"))


def test_a_memory_that_names_a_model_with_code_runs_none(planted, memory_folder, capsys):
    folder, base = memory_folder, planted("config")
    change(folder / "liftcore.json", base_model=str(base))
    with pytest.raises(LiftError, match="runs no code"):
        liftcore.load_memory(folder)
    capsys.readouterr()
    assert main(["ask", str(folder)]) == 1
    err = capsys.readouterr().err
    assert str(base) in err and err.startswith("liftcore: loading the folder")


def test_a_kernel_from_the_hub_is_code_too(tiny_folder, tmp_path):
    folder = shutil.copytree(tiny_folder, tmp_path / "model")
    change(folder / "config.json", attn_implementation="somebody/kernel")
    with pytest.raises(LiftError, match="somebody/kernel"):
        liftcore.load(folder, device="cpu")


def test_code_that_transformers_does_not_need_is_no_obstacle(planted, tiny_folder):
    folder = planted("config")
    kind = json.loads((tiny_folder / "config.json").read_text())["model_type"]
    change(folder / "config.json", model_type=kind)
    model, _ = liftcore.load(folder, device="cpu")
    assert type(model).__module__.startswith("transformers.")


def test_everything_from_transformers_is_loaded_in_one_place():
    # PEFT's own adapters, and the text of a model card, are something else.
    call = re.compile(r"^(?!\s*f?['\"]).*\b(?!PeftModel\b)\w+\.from_pretrained\(", re.MULTILINE)
    files = [*(ROOT / "liftcore").rglob("*.py"), *(ROOT / "bench").rglob("*.py")]
    elsewhere = [f.name for f in files if call.search(f.read_text())]
    assert elsewhere == ["pretrained.py"]


def test_a_base_that_the_user_did_not_name_is_named(memory_folder, tiny_folder, capsys):
    folder = memory_folder
    words = ["ask", str(folder), "Who?", "--max-new-tokens", "1", "--device", "cpu"]
    assert main(words) == 0
    err = capsys.readouterr().err
    assert str(tiny_folder) in err and err.count("\n") == 1
    assert main([*words, "--model", str(tiny_folder)]) == 0
    assert capsys.readouterr().err == ""
    change(folder / "liftcore.json", base_model="no\x1b]0;body\x07/nothing")
    assert main(words) == 1
    err = capsys.readouterr().err
    assert "the hub's no/nothing" in err and "\x1b" not in err


@pytest.mark.parametrize(
    "changes",
    [
        {"base_model": ["x"]},
        {"base_model": None},
        {"document": 3},
        {"document": {"title": 3, "sha256": "x", "tokens": 5}},
        {"config": {"rank": "four"}},
        {"config": []},
        {"report": {"recall": "all"}},
        {"training": {"seconds": "long"}},
        {"adapter_sha256": 5},
    ],
)
def test_a_description_with_other_types_is_damaged(memory_folder, capsys, changes):
    folder = memory_folder
    (name, value), file = next(iter(changes.items())), folder / "liftcore.json"
    before = json.loads(file.read_text())
    value = {**before[name], **value} if isinstance(value, dict) else value
    change(file, **{name: value})
    with pytest.raises(LiftError, match="damaged"):
        liftcore.load_memory(folder)
    if name in ("report", "document"):
        assert main(["report", str(folder)]) in (0, 1)
        err = capsys.readouterr().err
        assert "Error" not in err and "Traceback" not in err


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
def test_a_git_lfs_pointer_is_named(tiny_folder, tmp_path, name):
    folder = shutil.copytree(tiny_folder, tmp_path / "model")
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"
    (folder / name).write_text(pointer)
    with pytest.raises(LiftError) as refused:
        liftcore.load(folder, device="cpu")
    if name != "tokenizer.json":
        assert name in str(refused.value) and "git lfs pull" in str(refused.value)


@pytest.mark.parametrize("content", [b"", b"junk" * 9, b"\xff" * 64])
def test_weights_that_are_none_are_one_line(tiny_folder, tmp_path, content):
    folder = shutil.copytree(tiny_folder, tmp_path / "model")
    (folder / "model.safetensors").write_bytes(content)
    with pytest.raises(LiftError, match=r"cannot|not a model folder"):
        liftcore.load(folder, device="cpu")


@pytest.mark.parametrize("config", ["[]", "{", '{"model_type": "llama", "hidden_size": "big"}'])
def test_a_configuration_that_is_none_is_one_line(tiny_folder, tmp_path, config):
    folder = shutil.copytree(tiny_folder, tmp_path / "model")
    (folder / "config.json").write_text(config)
    with pytest.raises(LiftError):
        liftcore.load(folder, device="cpu")


def test_a_tokenizer_of_another_model_is_named(tokenizer):
    """Its tokens have no place in the model's embedding."""
    from tiny import tiny_model

    model = tiny_model(vocab_size=64)
    config = LiftConfig(segment_length=16, epochs=1, rank=4)
    for objectives in (("segments",), ("recitation",)):
        given = config.replace(objectives=objectives)
        with pytest.raises(LiftError, match="another model"):
            liftcore.absorb(model, tokenizer, "A heron is grey.", config=given, progress=False)
    from liftcore import answer

    with pytest.raises(LiftError, match="another model"):
        answer.complete(model, tokenizer, "A heron is grey.", 2)
    with pytest.raises(LiftError, match="empty"):
        answer.complete(tiny_model(), tokenizer, "", 2)
