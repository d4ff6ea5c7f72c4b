"""liftcore sft: a starting adapter from many documents."""

from __future__ import annotations

import argparse
from pathlib import Path

from liftcore.cli import options
from liftcore.terminal import show


def add(verbs: options.Verbs) -> None:
    parser = options.verb(
        verbs, "sft", run, "train a starting adapter on many documents, for absorb --init"
    )
    parser.add_argument(
        "corpus",
        metavar="CORPUS",
        help="a folder of .txt files, with questions in a .jsonl of the same name",
    )
    options.model_options(parser, options.EMBEDDED)
    parser.add_argument("--out", metavar="DIR", required=True, help="folder of the adapter")
    options.settings(parser, options.BY_MODEL)
    options.force_option(parser)


def run(args: argparse.Namespace) -> dict:
    from liftcore import output
    from liftcore.memory import check_room
    from liftcore.model import load_tokenizer
    from liftcore.sft import DEFAULTS, sft

    tokenizer = load_tokenizer(args.model)
    defaults = {} if args.preset else DEFAULTS
    config = options.config(args, options.preset(args, tokenizer), **defaults)
    out = Path(args.out)
    output.check(out, force=args.force, names=(*output.ADAPTER, output.START))
    model, _ = options.load(args, tokenizer)
    check_room(out, model, config)
    start = sft(model, tokenizer, args.corpus, config=config)
    start.save(out)
    show(
        f"{start.documents} documents with {start.pairs} questions in "
        f"{options.trained(start.training)}\n"
        f"adapter in {out}\nnext: liftcore absorb FILE --init {options.typed(out)}"
    )
    return {
        "documents": start.documents,
        "pairs": start.pairs,
        "seconds": start.training.seconds,
        "token_passes": start.training.token_passes,
        "loss": start.training.loss,
        "out": str(out),
    }
