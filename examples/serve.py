"""Serve a memory with vLLM or SGLang: save it, check it against the rules of vLLM's loader.

    python examples/serve.py --out report-memory
    python examples/serve.py --adapter report-memory     checks a folder that is there

The check needs no vLLM: its rules are those of vllm/lora and vllm/config/lora.py.
"""

import argparse
import json
import sys
from pathlib import Path

from safetensors import safe_open
from torch import nn

import liftcore
from liftcore import embedded
from liftcore.adapter import VLLM_RANKS, vllm_rank
from liftcore.fiction.documents import fictional_document
from liftcore.layers.linear import features
from liftcore.layers.lora import linear_layers

DTYPES = ("BF16", "F16", "F32")
PREFIX, ENDS = "base_model.model.", {".lora_A.weight": 0, ".lora_B.weight": 1}


def problems(folder: Path, layers: dict[str, nn.Module]) -> list[str]:
    """Why vLLM would refuse the adapter of a folder for a model of these linear layers."""
    found = []
    config = json.loads((folder / "adapter_config.json").read_text())
    for key in ("r", "lora_alpha", "target_modules"):
        if config.get(key) is None:
            found.append(f"adapter_config.json has no {key}")
    if found:
        return found
    rank = config["r"]
    if vllm_rank(rank) is None:
        found.append(f"rank {rank} is above {VLLM_RANKS[-1]}")
    if config.get("modules_to_save"):
        found.append("modules_to_save must be empty")
    if config.get("use_dora"):
        found.append("DoRA is not supported")
    if config.get("bias", "none") != "none":
        found.append("a bias is not supported")
    if config.get("rank_pattern") or config.get("alpha_pattern"):
        found.append("rank_pattern and alpha_pattern would be ignored")
    if not (folder / "adapter_model.safetensors").is_file():
        return [*found, "adapter_model.safetensors is missing"]
    with safe_open(folder / "adapter_model.safetensors", "pt") as file:
        return found + tensor_problems(file, rank, layers)


def tensor_problems(file, rank: int, layers: dict[str, nn.Module]) -> list[str]:
    """What is wrong with the names, shapes and dtypes of an adapter's tensors."""
    found, sides = [], {}
    for name in file.keys():  # noqa: SIM118
        end = next((e for e in ENDS if name.endswith(e)), None)
        path = name.removeprefix(PREFIX).removesuffix(end or "")
        if end is None or not name.startswith(PREFIX):
            found.append(f"{name} is not a name of a LoRA weight")
        elif path not in layers:
            found.append(f"{path} is not a linear layer of the model's decoder")
        else:
            sides.setdefault(path, set()).add(end)
            k, n = features(layers[path])
            right = [(rank, k), (n, rank)][ENDS[end]]
            values = file.get_slice(name)
            if tuple(values.get_shape()) != right:
                found.append(f"{name} has shape {values.get_shape()}, not {right}")
            if values.get_dtype() not in DTYPES:
                found.append(f"{name} has dtype {values.get_dtype()}")
    found += [f"{path} has only one of lora_A and lora_B" for path in sides if len(sides[path]) < 2]
    return found if sides else [*found, "there is no LoRA weight"]


def commands(base: str, folder: Path) -> list[str]:
    """How to serve the adapter under the name "report"."""
    rank = json.loads((folder / "adapter_config.json").read_text())["r"]
    return [
        f"vllm serve {base} --enable-lora --max-lora-rank {vllm_rank(rank)} "
        f"--lora-modules report={folder}",
        f"python -m sglang.launch_server --model-path {base} --enable-lora "
        f"--max-lora-rank {rank} --lora-paths report={folder}",
    ]


def main(argv=None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--device", help="cpu, cuda, … (CUDA when there is one)")
    parser.add_argument("--adapter", type=Path, help="an adapter that is there")
    parser.add_argument("--out", type=Path, default=Path("report-memory"))
    args = parser.parse_args(argv)

    model, tokenizer = liftcore.load(args.model, device=args.device)
    layers = linear_layers(model)
    folder = args.adapter
    if folder is None:
        config = liftcore.LiftConfig(epochs=1, rank=16)
        text = fictional_document(0, 400).text
        memory = liftcore.absorb(model, tokenizer, text, title="The report", config=config)
        folder = memory.save(args.out)
    found = problems(folder, layers)
    for problem in found:
        print(problem)
    if found:
        return 1
    base = embedded.model_folder() if args.model == embedded.NAME else args.model
    print(f'{folder} can be served; ask for the model "report":')
    print("\n".join(commands(str(base), folder.resolve())))
    return 0


if __name__ == "__main__":
    sys.exit(main())
