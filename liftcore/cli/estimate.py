"""liftcore estimate: what a run would cost."""

from __future__ import annotations

import argparse
import dataclasses
import re

from liftcore.cli import options, runfile
from liftcore.errors import UsageError
from liftcore.terminal import show

MOST_TOKENS = 1_000_000_000


def add(verbs: options.Verbs) -> None:
    parser = options.verb(verbs, "estimate", run, "seconds, memory and FLOPs of segments alone")
    parser.add_argument("what", metavar="FILE|TOKENS", help="a document or a number of tokens")
    options.model_options(parser, options.EMBEDDED)
    options.settings(parser)
    runfile.add(parser, save=False)


def run(args: argparse.Namespace) -> dict:
    from liftcore import document
    from liftcore.cost import estimate
    from liftcore.device_memory import gib

    config = options.config(args)
    tokens = count_of(args.what)
    model, tokenizer = options.load(args)
    if tokens is None:
        text = options.reading(options.text_file(args.what)).text
        tokens = len(document.from_text(text, tokenizer).tokens)
    cost = estimate(model, tokens, config)
    show(
        f"{tokens:,} tokens: about {_duration(cost.seconds)}, peak memory "
        f"{gib(cost.peak_bytes)}, {cost.flops / 1e12:,.1f} TFLOP "
        f"({cost.steps:,} steps, {cost.token_passes:,} token-passes, "
        f"{cost.tokens_per_second:,.0f} tokens/s)"
    )
    return dataclasses.asdict(cost)


def count_of(text: str) -> int | None:
    """A number of tokens, with or without commas between its thousands; None for a file's name.
    Raises UsageError for a number that no document has."""
    if not re.fullmatch(r"\d+|\d{1,3}([,_]\d{3})+", text):
        return None
    digits = text.replace(",", "").replace("_", "")
    if len(digits) > 12 or int(digits) > MOST_TOKENS:
        raise UsageError(f"more than {MOST_TOKENS:,} tokens: {text}")
    if int(digits) < 2:
        raise UsageError(f"nothing to learn from {digits} token(s)")
    return int(digits)


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
