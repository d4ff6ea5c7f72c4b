"""The command line: demo, absorb, sft, ask, report, estimate, info."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import sys
import traceback
from pathlib import Path

from liftcore import __version__
from liftcore.cli_absorb import absorb_options, sft_options
from liftcore.errors import LiftError, UsageError
from liftcore.options import DTYPES, EMBEDDED, dtype, model_options, settings, verb
from liftcore.options import config as settings_of


def main(argv: list[str] | None = None) -> int:
    """Runs one verb; returns the exit code: 0 done, 1 failed, 2 wrong usage, 130 interrupted."""
    args = _parse(argv)
    try:
        result = args.run(args)
    except KeyboardInterrupt:
        print("\nliftcore: interrupted", file=sys.stderr)
        return 130
    except Exception as error:
        if args.debug:
            traceback.print_exc()
        print(f"liftcore: error: {_one_line(error)}", file=sys.stderr)
        return 2 if isinstance(error, UsageError) else 1
    if args.json:
        print(json.dumps(result))
    return 0


def _parse(argv: list[str] | None) -> argparse.Namespace:
    parser = _parser()
    args, rest = parser.parse_known_args(argv)
    # argparse takes `ask DIR --complete QUESTION` for a surplus argument.
    if rest and "question" in args and not any(r.startswith("-") for r in rest):
        args.question, rest = args.question + rest, []
    if rest:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    return args


def _one_line(error: Exception) -> str:
    import torch

    text = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, LiftError):
        return text
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return "out of memory: try a smaller --segment-length, --batch-size or --rank"
    return f"{type(error).__name__}: {text} (--debug shows where)"


def _demo(args) -> dict:
    from liftcore.demo import demo

    return demo(Path(args.out), seed=args.seed, tokens=args.tokens, dtype=dtype(args.dtype))


def _absorb(args) -> dict:
    from liftcore.cli_absorb import absorb

    return absorb(args)


def _sft(args) -> dict:
    from liftcore.cli_absorb import sft

    return sft(args)


def _ask(args) -> dict:
    from liftcore.memory import load_memory
    from liftcore.model import load

    given = None
    if args.model:
        given = load(args.model, device=args.device, dtype=dtype(args.dtype))
    memory = load_memory(
        args.memory, given, device=args.device, dtype=dtype(args.dtype), force=args.force
    )

    def reply(text: str) -> str:
        if args.complete:
            return memory.complete(text, max_new_tokens=args.max_new_tokens)
        return memory.ask(text, context=args.context, max_new_tokens=args.max_new_tokens)

    answers = []
    for question in args.question or _typed(memory.title):
        answer = reply(question)
        answers.append({"question": question, "answer": answer})
        if len(args.question) > 1:
            print(f"Q: {question}")
        print(f"{question}{answer}" if args.complete else answer)
    return {"memory": args.memory, "answers": answers}


def _typed(title: str):
    """Questions from the terminal, one a line, until an empty line or the end."""
    if sys.stdin.isatty():
        print(f'Ask about "{title}"; an empty line ends.', file=sys.stderr)
    while True:
        with contextlib.suppress(EOFError):
            if sys.stdin.isatty():
                sys.stderr.write("> ")
                sys.stderr.flush()
        line = sys.stdin.readline().strip()
        if not line:
            return
        yield line


def _report(args) -> dict:
    from liftcore.adapter import read_json
    from liftcore.memory import INFO
    from liftcore.report import Report

    info = read_json(Path(args.memory) / INFO)
    try:
        report, about = Report(**info["report"]), info["document"]
    except (KeyError, TypeError) as error:
        raise LiftError(f"{args.memory} is damaged or of another version: {error}") from error
    print(f"{info['document']['title']}: {info['document']['tokens']:,} tokens")
    print(report.text())
    if args.png:
        report.png(Path(args.png), about["title"])
    return info["report"]


def _estimate(args) -> dict:
    from liftcore import document, model
    from liftcore.cost import estimate
    from liftcore.usage import gib

    config = settings_of(args)
    base, tokenizer = model.load(args.model, device=args.device, dtype=dtype(args.dtype))
    if args.what.isdecimal():
        tokens = int(args.what)
    else:
        tokens = len(document.read(Path(args.what), tokenizer).tokens)
    if tokens < 2:
        raise UsageError(f"nothing to learn from {tokens} token(s)")
    found = estimate(base, tokens, config)
    print(
        f"{tokens:,} tokens: about {_duration(found.seconds)}, peak memory "
        f"{gib(found.peak_bytes)}, {found.flops / 1e12:,.1f} TFLOP "
        f"({found.steps:,} steps, {found.token_passes:,} token-passes, "
        f"{found.tokens_per_second:,.0f} tokens/s)"
    )
    return dataclasses.asdict(found)


def _info(args) -> dict:
    from liftcore.info import info

    found = info()
    print(f"device    {found['device']} ({found['device_name']}), {found['dtype']}")
    print(f"ops       {found['ops']}, because: {found['ops_because']}")
    library = "in use" if found["library"] else "not in use"
    print(f"library   {library}: {found['library_because']}")
    for name, version in found["versions"].items():
        print(f"{name:<12} {version}")
    return found


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="liftcore",
        description="Make a language model remember a document: train a small LoRA adapter on "
        "its segments (LIFT), then answer from the weights.",
    )
    parser.add_argument("--version", action="version", version=f"liftcore {__version__}")
    verbs = parser.add_subparsers(required=True, metavar="VERB")

    demo = verb(verbs, "demo", _demo, "absorb a fictional document and show what is recalled")
    demo.add_argument("--out", default="demo-memory", help="folder of the adapter (%(default)s)")
    demo.add_argument("--seed", type=int, default=0, help="another seed, another document")
    demo.add_argument(
        "--tokens", type=int, metavar="N", help="length of the document (what takes two minutes)"
    )
    demo.add_argument(
        "--dtype", choices=tuple(DTYPES), help="(bf16 where the device computes with it)"
    )

    absorb_options(verb(verbs, "absorb", _absorb, "train an adapter on a text file"))
    sft_options(
        verb(verbs, "sft", _sft, "train a starting adapter on many documents, for absorb --init")
    )

    ask = verb(verbs, "ask", _ask, "ask a memory; without a question, interactively")
    ask.add_argument("memory", metavar="DIR", help="a folder that absorb wrote")
    ask.add_argument("question", nargs="*", metavar="QUESTION")
    ask.add_argument(
        "--context",
        choices=("none", "truncated"),
        default="none",
        help="none: from the weights alone; truncated: beside the text cut to the "
        "model's window (LIFT+ICL)",
    )
    ask.add_argument(
        "--complete",
        action="store_true",
        help="take QUESTION as the beginning of a passage and go on with it",
    )
    ask.add_argument("--max-new-tokens", type=int, default=64, metavar="N")
    ask.add_argument("--force", action="store_true", help="accept a base model of another name")
    model_options(ask, None)

    report = verb(verbs, "report", _report, "show what a memory recalls, and where")
    report.add_argument("memory", metavar="DIR")
    report.add_argument("--png", metavar="FILE", help="draw the strip")

    estimate = verb(verbs, "estimate", _estimate, "seconds, memory and FLOPs of segments alone")
    estimate.add_argument("what", metavar="FILE|TOKENS", help="a text file or a number of tokens")
    model_options(estimate, EMBEDDED)
    settings(estimate)

    verb(verbs, "info", _info, "device, versions, and which path the ops take")
    return parser


if __name__ == "__main__":
    sys.exit(main())
