"""A memory as a GGUF LoRA for llama.cpp.

llama.cpp has names and orders of its own: the `gguf` package's maps give the names; where rotary
positions turn neighbouring rows in llama.cpp and rows half a head apart in transformers, the rows
of B for q and k are reordered as the base model's converter reorders W (W' = P W, so B' = P B).
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from liftcore.errors import LiftError
from liftcore.export.saved import Saved, new_file


class Family(NamedTuple):
    """arch      llama.cpp's name of the architecture, a member of gguf.MODEL_ARCH
    reordered    whether its q and k are stored with their rows in llama.cpp's order
    """

    arch: str
    reordered: bool


# model_type of transformers -> what llama.cpp makes of it. Each was run in llama.cpp.
FAMILIES = {
    "llama": Family("LLAMA", True),
    "mistral": Family("LLAMA", True),
    "smollm3": Family("SMOLLM3", True),
    "granite": Family("GRANITE", True),
    "qwen2": Family("QWEN2", False),
    "qwen3": Family("QWEN3", False),
    "gemma2": Family("GEMMA2", False),
    "gemma3_text": Family("GEMMA3", False),
    "phi3": Family("PHI3", False),
}
NEEDED = "a GGUF file needs the package gguf: pip install 'liftcore[gguf]'"


def write_gguf(saved: Saved, file: Path, *, force: bool = False) -> None:
    """Writes the adapter in fp32, which every backend of llama.cpp multiplies.

    Raises LiftError when llama.cpp could not apply it, when the package gguf is missing, and
    when the file is there already, unless force.
    """
    tensors, arch = renamed(saved)
    import gguf

    def write(path: Path) -> None:
        writer = gguf.GGUFWriter(path, gguf.MODEL_ARCH_NAMES[gguf.MODEL_ARCH[arch]])
        writer.add_type(gguf.GGUFType.ADAPTER)
        writer.add_name(saved.info.about.title)
        writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
        writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, saved.alpha)
        for name, values in tensors.items():
            writer.add_tensor(name, values.float().contiguous().numpy())
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()

    new_file(file, write, force=force)


def renamed(saved: Saved) -> tuple[dict[str, Tensor], str]:
    """(llama.cpp's name -> tensor, the architecture as gguf.MODEL_ARCH names it).

    Raises LiftError with the reason why llama.cpp could not apply the adapter.
    """
    if importlib.util.find_spec("gguf") is None:
        raise LiftError(NEEDED)
    import gguf

    config = saved.model_config
    family = FAMILIES.get(config.model_type)
    if family is None:
        raise LiftError(
            f"no GGUF for {config.model_type}: liftcore does not know how llama.cpp orders its "
            f"weights (it knows {', '.join(FAMILIES)})"
        )
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH[family.arch], config.num_hidden_layers)
    heads = _heads(config) if family.reordered else {}
    tensors = {}
    for path, (a, b) in saved.layers.items():
        name = names.get_name(path)
        if name is None:
            raise LiftError(f"no GGUF of this adapter: llama.cpp has no place for {path}")
        if count := heads.get(path.rpartition(".")[2]):
            b = neighbours(b, count)
        tensors[f"{name}.weight.lora_a"] = a
        tensors[f"{name}.weight.lora_b"] = b
    return tensors, family.arch


def _heads(config: Any) -> dict[str, int]:
    """The last name of a projection that is reordered -> its heads."""
    return {
        "q_proj": config.num_attention_heads,
        "k_proj": config.num_key_value_heads or config.num_attention_heads,
    }


def neighbours(b: Tensor, heads: int) -> Tensor:
    """Rows of B [N, R] from the order of transformers, in which the two rows that rotary
    positions turn together lie half a head apart, into that of llama.cpp, in which they are
    neighbours."""
    return torch.reshape(b.unflatten(0, (heads, 2, -1)).transpose(1, 2), b.shape)
