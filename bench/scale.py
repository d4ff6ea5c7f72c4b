"""What many documents would cost on H100s, on paper: the tables of docs/scale.md.

Nothing here is measured, and no GPU has run liftcore. The operations that a run needs are counted
(liftcore.cost.needed_flops), and the bytes that its steps move; both are divided by what NVIDIA's
data sheet promises of an H100 SXM. That is a floor. What is assumed beyond it stands in ASSUMED.

    python -m bench scale
"""

from __future__ import annotations

import argparse
import functools
import re
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import PreTrainedModel

from bench import shapes
from liftcore.config import LiftConfig
from liftcore.cost import needed_flops
from liftcore.layers import depth
from liftcore.layers.linear import features, matrix
from liftcore.layers.lora import linear_layers, lora_layers
from liftcore.pretrained import dtype_keyword, from_config
from liftcore.training.source import count

PAGE = Path(__file__).resolve().parents[1] / "docs" / "scale.md"
MARKED = re.compile(r"(<!-- scale: (\w+) -->\n).*?(<!-- /scale -->)", re.S)
# H100 SXM, NVIDIA's data sheet: operations a second in bf16 without sparsity, bytes a second.
PEAK, BANDWIDTH = 989e12, 3.35e12
# The share of these that steps are assumed to reach, products and the optimizer.
ASSUMED = (0.4, 0.8)
TOKENS, DOCUMENTS = 10_000, 1_000_000
CARDS = (8, 64, 512)
TOGETHER = (1, 2, 4, 8, 16, 32)
# Bytes of an update for each trained number in bf16: gradient read twice and zeroed (6), added up
# to by the backward (6), master (8) and two moments (16) read and written, the number written (2).
UPDATE = 38
SETTINGS = {
    "memorize": LiftConfig.preset("memorize"),
    "memorize, segments of 512": LiftConfig.preset("memorize", segment_length=512),
    "memorize, rank 16": LiftConfig.preset("memorize", rank=16),
    "large": LiftConfig.preset("large"),
}


@functools.cache
def skeleton(shape: str) -> PreTrainedModel:
    """A model of a shape without weights."""
    with torch.device("meta"):
        return from_config(shapes.config(shape), **dtype_keyword(torch.bfloat16)).eval()


@dataclass(frozen=True)
class Cost:
    """A run of one document of TOKENS tokens: its steps, token-passes, operations a token-pass, the
    numbers of A and B, those that are trained, and the bytes of weights that a step reads."""

    steps: int
    passes: int
    flops: float
    of_a: int
    of_b: int
    trained: int
    weights: float

    @classmethod
    @functools.cache
    def of(cls, shape: str, config: LiftConfig) -> Cost:
        model = skeleton(shape)
        numbers = depth.numbers(model, config.layers)
        layers = lora_layers(model, config)
        of_a, of_b = (config.rank * sum(features(m)[i] for m in layers.values()) for i in (0, 1))
        steps, passes = count(TOKENS, config)
        flops = needed_flops(
            model,
            config.segment_length,
            config.rank,
            numbers=numbers,
            exclude=config.exclude_modules,
            train_a=config.train_a,
        )
        # Forward, and again for dx from the first trained layer on; the head twice.
        lists, first = depth.list_path(model), min(numbers, default=0) if numbers else 0
        below = tuple(f"{lists}.{number}." for number in range(first))
        weights = sum(
            2 * matrix(m).numel() * (1 if path.startswith(below) and below else 2)
            for path, m in linear_layers(model).items()
        )
        text = model.config.get_text_config()
        weights += 2 * 2 * text.vocab_size * text.hidden_size
        trained = of_b + (of_a if config.train_a else 0)
        return cls(steps, passes, flops, of_a, of_b, trained, weights)

    def seconds(self, together: int, compute: float = 1.0, memory: float = 1.0) -> float:
        """Of one document, when so many share a step, at these shares of PEAK and BANDWIDTH: the
        products take what they compute or the weights that they read, and each update its bytes."""
        tokens = self.passes / self.steps
        products = max(
            together * tokens * self.flops / (compute * PEAK), self.weights / (memory * BANDWIDTH)
        )
        update = together * UPDATE * self.trained / (memory * BANDWIDTH)
        return self.steps * (products + update) / together

    @property
    def bytes(self) -> int:
        """Of the saved adapter, in bf16."""
        return 2 * (self.of_a + self.of_b)


def runs() -> list[list[str]]:
    lines = [
        ["model", "settings", "token-passes", "GFLOP a token-pass", "PFLOP a document",
         "seconds a document: floor, assumed", "H100-hours a million: floor, assumed"]
    ]  # fmt: skip
    for shape in ("smollm2-135m", "llama-3-8b"):
        for name, config in SETTINGS.items():
            cost = Cost.of(shape, config)
            floor, assumed = cost.seconds(TOGETHER[-1]), cost.seconds(TOGETHER[-1], *ASSUMED)
            hours = [f"{s * DOCUMENTS / 3600:,.0f}" for s in (floor, assumed)]
            lines.append([shape, name, f"{cost.passes:,}", f"{cost.flops / 1e9:.2f}",
                          f"{cost.passes * cost.flops / 1e15:.3f}", f"{floor:.2f}, {assumed:.2f}",
                          ", ".join(hours)])  # fmt: skip
    return lines


def cards() -> list[list[str]]:
    lines = [["settings, llama-3-8b", *(f"{n} H100s" for n in CARDS)]]
    for name, config in SETTINGS.items():
        hours = Cost.of("llama-3-8b", config).seconds(TOGETHER[-1], *ASSUMED) * DOCUMENTS / 3600
        lines.append([name, *(_time(hours / n) for n in CARDS)])
    return lines


def _time(hours: float) -> str:
    return f"{hours / 24:.1f} days" if hours >= 48 else f"{hours:.1f} hours"


def together() -> list[list[str]]:
    lines = [["settings, llama-3-8b, documents an hour on one H100", *map(str, TOGETHER)]]
    for name, config in SETTINGS.items():
        cost = Cost.of("llama-3-8b", config)
        for what, shares in (("floor", (1.0, 1.0)), ("assumed", ASSUMED)):
            hourly = [f"{3600 / cost.seconds(n, *shares):,.0f}" for n in TOGETHER]
            lines.append([f"{name}: {what}", *hourly])
    return lines


def storage() -> list[list[str]]:
    lines = [["model", "settings", "numbers in A, in B", "MB a document", "B alone, 4 bits",
              "a million documents", "NVMe at 7 GB/s", "PCIe at 50 GB/s",
              "adapters in 60 GB"]]  # fmt: skip
    for shape in ("smollm2-135m", "llama-3-8b"):
        for name, config in SETTINGS.items():
            if "512" in name:
                continue
            cost = Cost.of(shape, config)
            lines.append([shape, name, f"{cost.of_a / 1e6:.1f} M, {cost.of_b / 1e6:.1f} M",
                          f"{cost.bytes / 1e6:.1f}", f"{cost.of_b / 2e6:.1f} MB",
                          f"{cost.bytes * DOCUMENTS / 1e12:.1f} TB",
                          f"{7e9 / cost.bytes:,.0f} a second", f"{50e9 / cost.bytes:,.0f} a second",
                          f"{60e9 / cost.bytes:,.0f}"])  # fmt: skip
    return lines


TABLES = {"runs": runs, "cards": cards, "together": together, "storage": storage}


def rewritten(text: str) -> str:
    """The page with every table between its marks made anew."""
    return MARKED.sub(lambda m: m[1] + markdown(m[2]) + m[3], text)


def markdown(name: str) -> str:
    head, *lines = TABLES[name]()
    rows = [head, ["---"] * len(head), *lines]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench scale",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--write", action="store_true", help="into docs/scale.md")
    args = parser.parse_args(argv)
    print("\n".join(map(markdown, TABLES)))
    if args.write:
        PAGE.write_text(rewritten(PAGE.read_text()))
    return 0
