"""liftcore read: the text of a file as it would be learnt."""

from __future__ import annotations

import argparse
import json

from liftcore.cli import options
from liftcore.terminal import note, show


def add(verbs: options.Verbs) -> None:
    parser = options.verb(verbs, "read", run, "show the text of a document that would be learnt")
    options.file_argument(parser)
    parser.add_argument(
        "--tokens", action="store_true", help="show the tokens, one a line, in place of the text"
    )
    parser.add_argument(
        "--model", default=options.EMBEDDED, metavar="M", help="whose tokens (smollm2-135m)"
    )


def run(args: argparse.Namespace) -> dict:
    from liftcore import document as documents
    from liftcore.model import load_tokenizer

    reading = options.reading(options.text_file(args.file))
    tokenizer = load_tokenizer(args.model)
    document = documents.from_text(reading.text, tokenizer, source=reading.source)
    if args.tokens:
        for number in document.tokens.tolist():
            show(json.dumps(tokenizer.decode([number]), ensure_ascii=False))
    else:
        show(document.text)
    length, letters = len(document.tokens), len(document.text)
    note(f"liftcore: {length:,} tokens of {args.model}, {letters:,} characters")
    return {
        "file": args.file,
        "kind": reading.source.kind,
        "notes": reading.source.notes,
        "characters": letters,
        "tokens": length,
        "sha256": document.sha256,
        "source_sha256": reading.source.sha256,
    }
