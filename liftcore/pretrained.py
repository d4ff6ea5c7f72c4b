"""What transformers loads by name or from a folder, without a line of code that a model brings."""

from __future__ import annotations

import contextlib
import importlib
import logging
import re
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from liftcore.errors import LiftError

if TYPE_CHECKING:
    import torch

# Loading imports every quantiser that is installed, and some of these talk while they are.
TALKATIVE = ("torchao", "torch.utils._pytree")
LFS_POINTER = b"version https://git-lfs"
# USER/NAME on the hub.
HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+", re.ASCII)
MEMORY_FILES = (
    *("*.json", "adapter_model.safetensors", "recall.png"),
    *("document.txt", "trained_questions.jsonl"),
)


def from_pretrained(
    kind: str, source: str | Path, *, name: str | None = None, **options: Any
) -> Any:
    """transformers.KIND.from_pretrained(source, **options), where `kind` is the name of a class.

    name   what an error calls the source, when that is another word

    Raises LiftError when what is to be loaded would run code of its own, and whatever transformers
    raises otherwise.
    """
    shown, source = name or str(source), str(source)
    with _no_code(shown):
        importlib.import_module("transformers.modeling_utils")
        loader = getattr(importlib.import_module("transformers"), kind)
        if kind == "AutoModelForCausalLM" and not {"config", "gguf_file"} & options.keys():
            options["config"] = _harmless(from_pretrained("AutoConfig", source), shown)
        return loader.from_pretrained(source, trust_remote_code=False, **options)


def from_config(config: Any, **options: Any) -> Any:
    """transformers.AutoModelForCausalLM.from_config(config, **options); raises as
    from_pretrained()."""
    with _no_code(str(getattr(config, "name_or_path", "") or "the model")):
        loader = importlib.import_module("transformers").AutoModelForCausalLM
        return loader.from_config(config, trust_remote_code=False, **options)


@contextlib.contextmanager
def _no_code(shown: str) -> Generator[None]:
    """Within it transformers is quiet, and its refusal of code is a LiftError."""
    try:
        with quiet_transformers():
            yield
    except Exception as error:
        if isinstance(error, LiftError) or "trust_remote_code" not in str(error):
            raise
        raise LiftError(
            f"{shown} needs code of its own (auto_map), and liftcore runs no code from models: "
            "take a model that transformers knows by itself"
        ) from error


def _harmless(config: Any, shown: str) -> Any:
    """The configuration, whose parts ask for no code either. Raises LiftError where it wants an
    attention kernel from the hub, which is code too."""
    for part in _parts(config):
        wanted = getattr(part, "_attn_implementation", None)
        if isinstance(wanted, str) and "/" in wanted:
            raise LiftError(
                f"{shown} wants the attention kernel {wanted} from the hub, and liftcore runs no "
                "code from models: take attn_implementation out of its config.json"
            )
        if part is not config:
            # transformers would ask for leave on standard input when it comes to this part.
            vars(part).pop("auto_map", None)
    return config


def _parts(config: Any) -> Iterator:
    """A configuration and those within it."""
    yield config
    for value in list(vars(config).values()):
        if hasattr(value, "model_type") and hasattr(value, "to_dict"):
            yield from _parts(value)


def memory_from_hub(name: str) -> Path:
    """The folder with a memory that is called USER/NAME on the hub; none of its other files comes.

    Raises LiftError, in one line, when it cannot be had.
    """
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=list(MEMORY_FILES)))
    except Exception as error:
        why = " ".join(str(error).split()) or type(error).__name__
        raise LiftError(
            f"{name} is neither a folder with a memory nor reachable on the hub ({why})"
        ) from error


def lfs_pointer(folder: str | Path) -> Path | None:
    """A file of the folder that Git LFS has not fetched yet; None when there is none."""
    with contextlib.suppress(OSError):
        for file in sorted(Path(folder).iterdir()):
            if file.is_file():
                with open(file, "rb") as stream:
                    if stream.read(len(LFS_POINTER)) == LFS_POINTER:
                        return file
    return None


@contextlib.contextmanager
def quiet_transformers() -> Generator[None]:
    """Silences the progress bars and notices of transformers, and of what it imports, while it
    loads."""
    from transformers.utils import logging as notices

    bars, level = notices.is_progress_bar_enabled(), notices.get_verbosity()
    loggers = {each: each.level for each in map(logging.getLogger, TALKATIVE)}
    notices.disable_progress_bar()
    notices.set_verbosity_error()
    for each in loggers:
        each.setLevel(logging.ERROR)
    try:
        yield
    finally:
        notices.set_verbosity(level)
        for each, before in loggers.items():
            each.setLevel(before)
        if bars:
            notices.enable_progress_bar()


def dtype_keyword(dtype: torch.dtype) -> dict[str, torch.dtype]:
    """{"dtype": dtype}, or by the older name for a transformers before 4.56."""
    import transformers

    major, minor = map(int, transformers.__version__.split(".")[:2])
    return {"dtype" if (major, minor) >= (4, 56) else "torch_dtype": dtype}
