"""What older and newer versions of the libraries under liftcore are told apart by."""

import re
from importlib import metadata

import pytest
import torch
import transformers
from wheels import ROOT

from liftcore import embedded
from liftcore.kernels import device
from liftcore.pretrained import dtype_keyword


@pytest.mark.parametrize(
    ("version", "name"),
    [("4.53.2", "torch_dtype"), ("4.55.4", "torch_dtype"), ("4.56.0", "dtype"), ("5.0", "dtype"),
     ("5.23.0", "dtype"), ("6.1.0.dev0", "dtype")],
)  # fmt: skip
def test_the_dtype_is_given_by_the_name_that_is_read(monkeypatch, version, name):
    monkeypatch.setattr("transformers.__version__", version)
    assert dtype_keyword(torch.bfloat16) == {name: torch.bfloat16}


def test_this_transformers_takes_it():
    config = transformers.LlamaConfig(
        vocab_size=9, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2
    )
    model = transformers.AutoModelForCausalLM.from_config(config, **dtype_keyword(torch.bfloat16))
    assert model.dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("version", "usable"),
    [("3.3.1", False), ("3.5.1", False), ("3.6.0", True), ("3.10.0+git1", True), ("4.0", True)],
)
def test_a_triton_older_than_the_kernels_is_none(monkeypatch, version, usable):
    monkeypatch.setattr(device.importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(metadata, "version", lambda name: version)
    monkeypatch.setattr(torch.version, "hip", None)
    assert device._has_triton() is usable


def test_each_major_transformers_converts_the_embedded_model_for_itself(monkeypatch):
    """transformers 4 misreads the rotary settings that 5 writes."""
    folders = set()
    for version in ("4.53.2", "5.17.0"):
        monkeypatch.setattr(metadata, "version", lambda name, version=version: version)
        folders.add(embedded._converted())
    assert len(folders) == 2


@pytest.mark.parametrize("name", ["torch", "transformers", "peft", "accelerate"])
def test_the_declared_minimum_is_the_oldest_that_the_suite_runs_with(name):
    declared = set(re.findall(rf'"{name}>=([\d.]+)"', (ROOT / "pyproject.toml").read_text()))
    lock = (ROOT / "requirements-official.lock").read_text()
    (tested,) = re.findall(rf"^{name}==([\d.]+)$", lock, re.M)
    (minimum,) = declared
    assert f"{tested}.".startswith(f"{minimum}.")
