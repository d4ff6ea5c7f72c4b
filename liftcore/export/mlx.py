"""A memory as an adapter of mlx-lm: adapters.safetensors and an adapter_config.json of its own.

mlx-lm (tuner/utils.py) puts LoRA on the last `num_layers` blocks, on the linear layers whose
names within a block are `keys`, then reads the file; a pair that is not in it stays at B = 0.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

from safetensors.torch import save_file

from liftcore.errors import LiftError
from liftcore.export.saved import Saved, new_files

CONFIG, WEIGHTS = "adapter_config.json", "adapters.safetensors"
# mlx-lm names these as transformers does; other layouts (GPT-2's transformer.h) it renames.
_LAYER = re.compile(r"model\.layers\.(\d+)\.(.+)")


def write_mlx(saved: Saved, folder: Path, *, force: bool = False) -> None:
    """Writes the adapter in its own dtype.

    Raises LiftError when mlx-lm would look for its layers elsewhere, and when the folder is not
    empty, unless force.
    """
    tensors, blocks, keys = {}, [], set()
    for path, (a, b) in saved.layers.items():
        parts = _LAYER.fullmatch(path)
        if parts is None:
            raise LiftError(
                f"no mlx-lm adapter of this memory: it names {path} otherwise than transformers, "
                "and liftcore does not know how"
            )
        blocks.append(int(parts[1]))
        keys.add(parts[2])
        tensors[f"{path}.lora_a"] = a.T.contiguous()  # [K, R]
        tensors[f"{path}.lora_b"] = b.T.contiguous()  # [R, N]
    config = {
        "fine_tune_type": "lora",
        "model": saved.info.about.base_model,
        "num_layers": saved.model_config.num_hidden_layers - min(blocks),
        "lora_parameters": {
            "rank": saved.rank,
            "scale": saved.alpha / saved.rank,
            "dropout": 0.0,
            "keys": sorted(keys),
        },
    }

    def fill(new: Path) -> None:
        save_file(tensors, new / WEIGHTS)
        (new / CONFIG).write_text(json.dumps(config, indent=2) + "\n")

    new_files(folder, fill, force=force)
