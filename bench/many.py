"""Many documents in one batch against one after the other: documents an hour.

A step of one document at a time, as absorb takes it, against joint steps of E documents, as
absorb_many takes them: one process, the same model, settings and documents, in turns. The losses
of the document that all of them hold are compared first; no ratio is printed where they differ. A
document's time is that of its training alone, without fitting A to it and without its report. On a
machine that others use too, --cpu-time counts the seconds of this process's threads in place of
the clock's.

    python -m bench many                       the embedded model on a CPU
    python -m bench many --device cuda --model llama-3-8b --together 1 8 32
"""

from __future__ import annotations

import argparse
import gc
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from torch import nn

from bench import shapes
from bench.common import RESULTS, Rows, device_name, known, results_name, table
from liftcore import model as models
from liftcore.config import LiftConfig
from liftcore.errors import LiftError
from liftcore.layers.lora import Adapter, own_adapter_after
from liftcore.training.loop import make_runner, prepared
from liftcore.training.source import count, segments_alone
from liftcore.training.together import Learner, TogetherSource

ALONE = "one after the other"
# Losses of bf16 steps in another batch differ by their roundings.
NEAR = 0.02
COLUMNS = (
    "model", "layers", "dtype", "rank", "segment_length", "document_tokens", "together",
    "tokens_per_second", "slowest", "fastest", "documents_per_hour", "times_alone",
    "loss_difference", "clock", "note",
)  # fmt: skip


# What tells the rows of a table from those of others.
IDENTITY = ("model", "layers", "segment_length", "document_tokens")


class Document(Learner):
    """A document of the benchmark, of which there are always enough steps left."""

    def ended(self) -> None:
        raise RuntimeError("the document is too short for so many steps: take more --tokens")

    def failed(self, error: LiftError) -> None:
        raise error


class Variant:
    """The steps of `together` documents at once, or of one alone (0), as they go on."""

    def __init__(
        self,
        model: nn.Module,
        texts: list[np.ndarray],
        config: LiftConfig,
        together: int,
        clock: Callable[[], float],
    ) -> None:
        self.model, self.clock = model, clock
        sources = [segments_alone(text, config, []) for text in texts[: max(1, together)]]
        if together:
            # All begin alike, and what a document learns is not read: one adapter serves them.
            one = Adapter.of(model, config)
            self.documents = [Document(one, source) for source in sources]
            self.adapter = Adapter.of(model, config, slots=together)
            waiting = iter(self.documents)
            self.source = TogetherSource(
                self.adapter, waiting, config, models.window(model), count=together
            )
            self.source.fill()
        else:
            self.adapter, self.source = Adapter.of(model, config), sources[0]
        self.runner = None

    def take(self, steps: int) -> tuple[float, int]:
        """(seconds, token-passes) of so many further steps."""
        with own_adapter_after(self.model):
            self.adapter.install()
            with torch.enable_grad(), prepared(self.adapter, self.source.length):
                self.runner = self.runner or make_runner(self.adapter, self.source)
                started, tokens = self._now(), 0
                for step in islice(iter(self.source.draw, None), steps):
                    self.runner.run(step)
                    # Of a joint step too: the samples are those of all documents.
                    tokens += step.tokens
                return self._now() - started, tokens

    def _now(self) -> float:
        if self.adapter.values.is_cuda:
            torch.cuda.synchronize(self.adapter.values.device)
        return self.clock()

    def losses(self, steps: int) -> torch.Tensor:
        """Of the first document's first steps."""
        if isinstance(self.source, TogetherSource):
            return torch.stack(self.documents[0].losses[:steps]).cpu()
        assert self.runner is not None
        return self.runner.losses[:steps].cpu()


@dataclass
class Measured:
    """Token-passes a second of each turn, and the first document's losses in it."""

    speeds: list[float] = field(default_factory=list)
    losses: list[torch.Tensor] = field(default_factory=list)


def compared(
    model: nn.Module, config: LiftConfig, args: argparse.Namespace
) -> Iterator[tuple[str, Measured, float]]:
    """(name, what was measured, difference of the losses) of each variant. They take turns, and
    each is built anew for its turn: the optimizers of all of them would not fit together."""
    rng = np.random.default_rng(0)
    vocabulary = models.head(model).weight.shape[0]
    texts = [rng.integers(3, vocabulary, args.tokens) for _ in range(max(args.together))]
    clock = time.process_time if args.cpu_time else time.perf_counter
    sizes = {ALONE: 0, **{str(e): e for e in args.together}}
    measured = {name: Measured() for name in sizes}
    warm_up = 3 if args.device.type == "cuda" else 1  # the second pass of a shape is captured
    for _ in range(args.rounds):
        for name, size in sizes.items():
            variant = Variant(model, texts, config, size, clock)
            variant.take(warm_up)
            seconds, tokens = variant.take(args.steps)
            measured[name].speeds.append(tokens / seconds)
            measured[name].losses.append(variant.losses(warm_up + args.steps))
            del variant
            gc.collect()
    right = measured[ALONE].losses[0]
    for name, one in measured.items():
        difference = max(((losses - right).abs() / right).max() for losses in one.losses)
        yield name, one, float(difference)


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench many",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--device", type=torch.device, default=models.default_device())
    parser.add_argument("--model", default="smollm2-135m", help="a model, or a shape of bench step")
    parser.add_argument("--layers", type=int, help="a shape's first layers; 1 of 8B on a CPU")
    parser.add_argument("--together", type=int, nargs="+", default=[1, 2, 4, 8, 16])
    parser.add_argument("--segments", type=int, nargs="+", default=[64, 128, 512])
    parser.add_argument("--tokens", type=int, default=2048, help="of a document")
    parser.add_argument("--preset", default="memorize")
    parser.add_argument("--rank", type=int, help="the preset's if not given")
    parser.add_argument("--steps", type=int, default=2, help="a turn")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--cpu-time", action="store_true", help="not for a GPU")
    parser.add_argument("--fresh", action="store_true", help="without the rows that are there")
    parser.add_argument("--out", type=Path, help="folder of the results")
    args = parser.parse_args(argv)
    layers = args.layers or shapes.default_layers(args.model, args.device)
    model, _ = shapes.build(args.model, args.device, layers)
    folder = args.out or RESULTS / results_name(args.device)
    file, agree = folder / "many.csv", True
    done = set() if args.fresh else known(file, *IDENTITY)
    rows = Rows(file, args.device, COLUMNS, append=not args.fresh)
    print(f"{args.model} on {device_name(args.device)}, documents of {args.tokens} tokens")
    for segment in args.segments:
        key = args.model, str(layers or "all"), str(segment), str(args.tokens)
        if key in done:
            print(f"segments of {segment} tokens are in {file} already; --fresh begins anew")
            continue
        changes = {} if args.rank is None else {"rank": args.rank}
        config = LiftConfig.preset(
            args.preset, segment_length=segment, adapter_init="random", **changes
        )
        passes, alone, lines, kept = count(args.tokens, config)[1], 0.0, [], []
        for name, measured, difference in compared(model, config, args):
            speed = statistics.median(measured.speeds)
            alone = alone or speed  # the first
            agrees = difference <= NEAR
            agree &= agrees
            row = {
                "model": args.model, "layers": layers or "all", "rank": config.rank,
                "dtype": str(next(model.parameters()).dtype).removeprefix("torch."),
                "segment_length": segment, "document_tokens": args.tokens, "together": name,
                "tokens_per_second": round(speed, 1),
                "slowest": round(min(measured.speeds), 1),
                "fastest": round(max(measured.speeds), 1),
                "documents_per_hour": round(3600 * speed / passes, 2),
                "times_alone": round(speed / alone, 3) if agrees else "",
                "loss_difference": f"{difference:.2g}",
                "clock": "CPU seconds" if args.cpu_time else "wall",
                "note": "" if agrees else "losses differ",
            }  # fmt: skip
            kept.append(row)
            shown = ("together", "tokens_per_second", "slowest", "fastest",
                     "documents_per_hour", "times_alone", "loss_difference")  # fmt: skip
            lines.append([str(row[key]) for key in shown])
        for row in kept:  # a table that is cut off is measured again
            rows.add(**row)
        head = ["together", "tokens/s", "slowest", "fastest", "documents/h", "times", "loss diff"]
        print(f"\nsegments of {segment} tokens, one a step and document\n{table([head, *lines])}")
    return int(not agree)
