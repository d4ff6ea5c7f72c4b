"""Tokens a second of greedy decoding: the model alone, and with an adapter on all its linears.

The adapters start at zero, so that all variants say what the model says but for rounding; "same"
is the share of tokens that agree with the model alone. The variants take turns.

    python -m bench decode
    python -m bench decode --device cpu --model smollm2-135m --new 16
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

import liftcore
from bench import shapes
from bench.common import RESULTS, Rows, device_name, results_name, table
from bench.step.variants import with_peft
from liftcore import model as models
from liftcore.config import LiftConfig
from liftcore.layers.lora import Adapter

COLUMNS = ("model", "layers", "prompt", "new", "rank", "variant", "tokens_per_second", "slowest",
           "fastest", "same", "note")  # fmt: skip


def alone(model: PreTrainedModel, config: LiftConfig) -> PreTrainedModel:
    return model


def own(model: PreTrainedModel, config: LiftConfig) -> PreTrainedModel:
    Adapter(model, config.rank, config.lora_alpha).install()
    return model


def peft(model: PreTrainedModel, config: LiftConfig) -> PreTrainedModel:
    return with_peft(model, config, {}, upcast=False)  # ty: ignore[invalid-explicit-return]  # generates as one


def accelerated(model: PreTrainedModel, config: LiftConfig) -> PreTrainedModel:
    wrapped = peft(model, config)
    liftcore.accelerate(wrapped)
    return wrapped


VARIANTS: dict[str, Callable[[PreTrainedModel, LiftConfig], PreTrainedModel]] = {
    "model alone": alone,
    "liftcore": own,
    "PEFT bf16": peft,
    "PEFT bf16, accelerated": accelerated,
}


def seconds_of(model: PreTrainedModel, prompt: Tensor, new: int) -> tuple[Tensor, float]:
    """(the new tokens [new], seconds) of one greedy answer of just so many tokens."""
    if prompt.is_cuda:
        torch.cuda.synchronize()
    start = time.perf_counter()
    generate: Any = model.generate
    out = generate(
        input_ids=prompt, attention_mask=torch.ones_like(prompt), do_sample=False,
        max_new_tokens=new, min_new_tokens=new, pad_token_id=0,
    )  # fmt: skip
    said = out[0, prompt.shape[1] :].cpu()  # waits
    return said, time.perf_counter() - start


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench decode",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--device", type=torch.device, default=torch.device(models.default_device())
    )
    parser.add_argument("--model", default="llama-3-8b", help=", ".join(shapes.SHAPES))
    parser.add_argument("--layers", type=int, help="of the shape (one of an 8B shape on a CPU)")
    parser.add_argument("--prompt", type=int, default=32, help="tokens of the prompt (%(default)s)")
    parser.add_argument("--new", type=int, default=64, help="tokens of an answer (%(default)s)")
    parser.add_argument("--rank", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--minutes", type=float, default=1.5, help="no new round after this long")
    parser.add_argument("--out", type=Path, help="folder of the results (bench/results/DEVICE)")
    args = parser.parse_args(argv)
    end = time.monotonic() + 60 * args.minutes
    layers = args.layers or shapes.default_layers(args.model, args.device)
    base, tokenizer = shapes.build(args.model, args.device, layers)
    prompt = torch.from_numpy(shapes.text(base, tokenizer, args.prompt))[None].to(args.device)
    config = LiftConfig(rank=args.rank)
    built, notes, first, seconds = {}, {}, {}, {}
    for name, make in VARIANTS.items():
        try:
            built[name] = make(shapes.twin(base), config).eval()
            first[name], _ = seconds_of(built[name], prompt, args.new)
            seconds[name] = []
        except Exception as error:
            notes[name] = f"not run: {type(error).__name__}: {error}"[:160]
    for done in range(args.rounds):
        if done and time.monotonic() > end:
            break
        for name in seconds:
            seconds[name].append(seconds_of(built[name], prompt, args.new)[1])
    folder = args.out or RESULTS / results_name(args.device)
    rows = Rows(folder / "decode.csv", args.device, COLUMNS)
    depth = base.config.get_text_config().num_hidden_layers
    lines = [["decoding", "tokens/s (range)", "same"]]
    for name in VARIANTS:
        about = {"model": args.model, "layers": depth, "prompt": args.prompt, "new": args.new,
                 "rank": args.rank, "variant": name, "note": notes.get(name, "")}  # fmt: skip
        if name in seconds:
            rates = [args.new / s for s in seconds[name]]
            about |= {
                "tokens_per_second": round(statistics.median(rates), 1),
                "slowest": round(min(rates), 1),
                "fastest": round(max(rates), 1),
                "same": round((first[name] == first["model alone"]).double().mean().item(), 3),
            }
            lines.append(
                [name, "{tokens_per_second} ({slowest} to {fastest})".format(**about),
                 f"{about['same']:.0%}"]
            )  # fmt: skip
        rows.add(**about)
    print(f"{device_name(args.device)}\n{args.model}, {depth} layers\n{table(lines)}")
    for name, note in notes.items():
        print(f"{name}: {note}")
    print(f"rows: {rows.path}")
    return 0 if len(seconds) == len(VARIANTS) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
