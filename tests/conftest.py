"""Shared by all tests: no network, fresh random numbers, the models."""

import copy
import gc
import json
import os
import shutil
import tempfile

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# Tiny models gain nothing from threads, and lose much when tests run side by side: here, and in
# the processes that tests start.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import own_rows
import pytest
import torch
from bees import PAIRS, TEXT
from native_build import on_host, once, tools
from real_model import skip_without
from saving import CONFIG
from tiny import tiny_model
from transformers import AutoTokenizer

import liftcore
from liftcore.kernels import native

needs_both = pytest.mark.skipif(tools("nvcc", "g++") is not None, reason=str(tools("nvcc", "g++")))

torch.set_num_threads(1)


def pytest_collection_finish():
    """What has been imported stays: no search for garbage goes through it again."""
    gc.collect()
    gc.freeze()


@pytest.fixture
def rng():
    """Fresh random numbers every run; the seed is printed for a failing test."""
    seed = int(np.random.SeedSequence().entropy % 2**32)
    print("seed", seed)
    return np.random.default_rng(seed)


@pytest.fixture(scope="session")
def embedded():
    """(model, tokenizer) of the embedded model; tests must leave it as they found it."""
    skip_without()
    return liftcore.load("smollm2-135m", device="cpu")


@pytest.fixture(scope="session")
def tokenizer(embedded):
    return embedded[1]


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory, tokenizer):
    """A random two-layer model with the embedded model's tokenizer, as a local folder."""
    folder = tmp_path_factory.mktemp("tiny-model")
    tiny_model(vocab_size=len(tokenizer), pad_token_id=2).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    own_rows.keep(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(AutoTokenizer, "from_pretrained", _read_once(folder.resolve()))
        yield folder


def _read_once(folder):
    """AutoTokenizer.from_pretrained, which reads the 49,152 words of this folder only once.

    Each caller may set what it likes; the words themselves are shared.
    """
    read, kept = AutoTokenizer.from_pretrained, []

    def from_pretrained(source, *args, **options):
        if str(source) != str(folder) or args or options != {"trust_remote_code": False}:
            return read(source, *args, **options)
        if not kept:
            kept.append(read(source, **options))
        own = copy.copy(kept[0])
        vars(own).update(
            {k: copy.copy(v) for k, v in vars(own).items() if isinstance(v, dict | list | set)}
        )
        return own

    return from_pretrained


@pytest.fixture
def loaded(tiny_folder):
    """(model, tokenizer) of the folder, in fp32; nobody else's."""
    return liftcore.load(tiny_folder, device="cpu", dtype=torch.float32)


@pytest.fixture(scope="module")
def memory(tiny_folder):
    model, tokenizer = liftcore.load(tiny_folder, device="cpu", dtype=torch.float32)
    return liftcore.absorb(model, tokenizer, TEXT, title="Bees", config=CONFIG, progress=False)


@pytest.fixture(scope="module")
def other(memory):
    """Another memory on the same model."""
    given = memory.model, memory.tokenizer
    text = TEXT.replace("bees", "goats")
    return liftcore.absorb(*given, text, title="Goats", config=CONFIG, progress=False)


@pytest.fixture
def elsewhere(tmp_path_factory, monkeypatch):
    """The folder for temporary ones, where a memory goes that could not be saved."""
    folder = tmp_path_factory.mktemp("elsewhere")
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


@pytest.fixture(scope="session")
def saved_memory(tiny_folder, tmp_path_factory):
    """A saved memory of the tiny model."""
    model, tokenizer = liftcore.load(tiny_folder, device="cpu", dtype=torch.float32)
    config = liftcore.LiftConfig(segment_length=16, epochs=1, rank=4)
    memory = liftcore.absorb(model, tokenizer, TEXT, config=config, progress=False)
    return memory.save(tmp_path_factory.mktemp("saved") / "memory")


@pytest.fixture(scope="session")
def learnt(tiny_folder, tmp_path_factory):
    """(memory, its folder) of a tiny model that recites the document; tests leave it as it is."""
    model, tokenizer = liftcore.load(tiny_folder, device="cpu", dtype=torch.float32)
    config = liftcore.LiftConfig(segment_length=64, epochs=100, rank=16, learning_rate=1e-2)
    memory = liftcore.absorb(model, tokenizer, TEXT, title="Bees", config=config, progress=False)
    return memory, memory.save(tmp_path_factory.mktemp("learnt") / "bees")


@pytest.fixture
def memory_folder(saved_memory, tmp_path):
    """A memory's folder to change at will."""
    return shutil.copytree(saved_memory, tmp_path / "memory")


@pytest.fixture(scope="session")
def host_library(tmp_path_factory):
    return native.load(once(tmp_path_factory, "host-library", on_host) / native.NAME)


@pytest.fixture(params=["twin", pytest.param("kernels", marks=needs_both)])
def path(request, monkeypatch):
    """The ops on CPU tensors: through their twins, or through the kernels run on the CPU."""
    if request.param == "kernels":
        library = request.getfixturevalue("host_library")

        def call(name, device, *arguments):
            values = [a.data_ptr() if isinstance(a, torch.Tensor) else a for a in arguments]
            assert getattr(library, name)(*values, None) == 0

        monkeypatch.setattr(native, "live", lambda x: True)
        monkeypatch.setattr(native, "call", call)
    return request.param


@pytest.fixture
def corpus(tmp_path):
    folder = tmp_path / "corpus"
    folder.mkdir()
    for i, word in enumerate(("bees", "goats", "geese")):
        (folder / f"{word}.txt").write_text(TEXT.replace("bees", word))
        if i < 2:
            pair = {"question": f"Who keeps {word}?", "answer": "Marta Quellin"}
            (folder / f"{word}.jsonl").write_text(json.dumps(pair) + "\n")
    return folder


@pytest.fixture
def questions(tmp_path):
    file = tmp_path / "q.jsonl"
    lines = [json.dumps({"question": q, "answer": a}) for q, a in PAIRS]
    file.write_text("\n".join(lines) + "\n")
    return file
