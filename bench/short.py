"""What the presets make of short documents, in each dtype: recall, facts, and what is kept.

    python -m bench short
    python -m bench short --share 1 2 & python -m bench short --share 2 2

Each case is absorb() with a preset as it is. A processor without bf16 takes fp32, so that both
must do. The rows go into bench/results/DEVICE/short.jsonl; a killed run goes on where it was.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch

import liftcore
from bench import sweep as sweeps
from bench.common import RESULTS, read_lines, results_name, table, versions
from bench.recall import documents, probes
from bench.understand.general import GENERAL
from bench.understand.run import general_answered
from liftcore import model as models
from liftcore.cli import info
from liftcore.config import LiftConfig

# Documents and their tokens, about; the invented ones cannot be shorter.
DOCUMENTS = {"essay-addiction": 60, "essay-vb": 150, "fiction-21": 300, "fiction-22": 540}
PRESETS = ("understand", "memorize")
DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
NAME = "short"


@dataclass(frozen=True)
class Case:
    document: str
    preset: str
    dtype: str

    @property
    def key(self) -> str:
        return f"{self.document} | {self.preset} | {self.dtype}"


@lru_cache(maxsize=1)
def _base(name: str, dtype: str, device: str) -> tuple:
    """A model and its tokenizer, and how many general questions it answers as it is."""
    model, tokenizer = models.load(name, device=torch.device(device), dtype=DTYPES[dtype])
    return model, tokenizer, general_answered(model, tokenizer)


def run(case: Case, name: str, device: str) -> dict:
    """Absorbs one document -> a row for the file. The model is left as it was."""
    model, tokenizer, known = _base(name, case.dtype, device)
    sample = documents.read(case.document, tokenizer, DOCUMENTS[case.document])
    config = LiftConfig.preset(case.preset)
    started = time.process_time()
    memory = liftcore.absorb(
        model, tokenizer, sample.text, title=sample.title, config=config, progress=False
    )
    seconds = time.process_time() - started
    try:
        return {
            "key": case.key,
            "document": case.document,
            "preset": case.preset,
            "dtype": case.dtype,
            "tokens": memory.length,
            "passes": round(memory.training.token_passes / memory.length, 1),
            "steps": memory.training.steps,
            "recall": memory.report.recall,
            "facts": len(sample.facts),
            "facts_after": probes.facts_completed(model, tokenizer, sample),
            "general_before": known,
            "general": general_answered(model, tokenizer),
            "general_of": len(GENERAL),
            "forgotten": memory.report.forgotten,
            "cpu_seconds": round(seconds, 1),
        }
    finally:
        memory.adapter.remove()


def text(rows: list[dict]) -> str:
    """The table of the rows."""
    head = ["document", "tokens", "preset", "dtype", "passes", "recall", "facts", "general",
            "own words"]  # fmt: skip
    return table([head, *map(cells, rows)])


def cells(row: dict) -> list[str]:
    """A row of the table, its document named by kind and length."""
    facts = f"{row['facts_after']} of {row['facts']}" if row["facts"] else "-"
    return [
        row["document"],
        str(row["tokens"]),
        row["preset"],
        row["dtype"],
        f"{row['passes']:.1f}",
        f"{100 * row['recall']:.0f} %",
        facts,
        f"{row['general']} of {row['general_before']}",
        f"{row['forgotten']:+.2f}",
    ]


def ordered(rows: list[dict]) -> list[dict]:
    """The rows by length, preset and dtype."""
    return sorted(rows, key=lambda row: (row["tokens"], row["preset"], row["dtype"]))


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog=f"python -m bench {NAME}",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    sweeps.options(parser, DOCUMENTS, f"presets to run: {', '.join(PRESETS)}")
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=list(DTYPES))
    args = parser.parse_args(argv)
    device = torch.device(args.device or models.default_device())
    folder: Path = args.out or RESULTS / results_name(device)
    file = folder / f"{NAME}.jsonl"
    if not args.plot_only:
        machine = {"device": info.device_name(device), "versions": versions()}

        def one(case: Case) -> tuple[dict, str]:
            row = run(case, args.model, str(device))
            return {**row, **machine}, f"recall {row['recall']:.0%}"

        every = [
            Case(document, preset, dtype)
            for dtype in args.dtypes
            for document in DOCUMENTS
            for preset in args.only or PRESETS
        ]
        sweeps.run(file, sweeps.share_of(every, args), one, args.minutes)
    print(text(ordered(read_lines(file))))
    return 0
