"""The command line: demo, absorb, sft, ask, report, estimate, info."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import re
import sys
import traceback
from pathlib import Path

from liftcore import __version__
from liftcore.cli.absorb import absorb_options, sft_options, text_file
from liftcore.cli.options import DTYPES, EMBEDDED, dtype, model_options, settings, verb
from liftcore.cli.options import config as settings_of
from liftcore.errors import LiftError, UsageError
from liftcore.terminal import guarded, note, one_line, plain, show

# Stands before the words behind --.
_WORD = "\0"
MOST_TOKENS = 1_000_000_000


def main(argv: list[str] | None = None) -> int:
    """Runs one verb; returns the exit code: 0 done, 1 failed, 2 wrong usage, 130 interrupted."""
    with guarded():
        args = _parse(sys.argv[1:] if argv is None else argv)
        try:
            result = args.run(args)
            if args.json:
                show(json.dumps(result))
            if sys.stdout is not None:
                sys.stdout.flush()
        except KeyboardInterrupt:
            note("\nliftcore: interrupted")
            return 130
        except BrokenPipeError:
            # Nobody reads on, as behind `| head`; the interpreter's own flush must not complain.
            with contextlib.suppress(OSError, ValueError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 141
        except Exception as error:
            if args.debug:
                note(traceback.format_exc())
            note(f"liftcore: error: {_one_line(error)}")
            return 2 if isinstance(error, UsageError) else 1
    return 0


class _Parser(argparse.ArgumentParser):
    """argparse, whose messages hold what was typed."""

    def error(self, message: str):
        super().error(plain(message))


def _parse(argv: list[str]) -> argparse.Namespace:
    parser = _parser()
    # Behind -- argparse still takes some words for options, and mislays others: a mark that no
    # command line can hold keeps them whole.
    end = argv.index("--") if "--" in argv else len(argv)
    args, rest = parser.parse_known_args(argv[:end] + [_WORD + word for word in argv[end + 1 :]])
    # argparse takes `ask DIR --complete QUESTION` for a surplus argument.
    if rest and "question" in args and not any(r.startswith("-") for r in rest):
        args.question, rest = args.question + rest, []
    if rest:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    for name, value in vars(args).items():
        if isinstance(value, str):
            setattr(args, name, value.removeprefix(_WORD))
        elif name == "question":
            args.question = [word.removeprefix(_WORD) for word in value]
    return args


def _is_name(value) -> bool:
    return isinstance(value, (str, bytes, os.PathLike))


def _one_line(error: Exception) -> str:
    from liftcore.device_memory import out_of_memory

    text = one_line(str(error)) or type(error).__name__
    if isinstance(error, LiftError):
        return text
    if isinstance(error, OSError) and error.strerror:
        name = one_line(os.fsdecode(error.filename)) if _is_name(error.filename) else ""
        return f"{name}: {error.strerror}" if name else error.strerror
    if isinstance(error, MemoryError) or out_of_memory(error):
        return "out of memory: try a smaller --segment-length, --batch-size or --rank"
    return f"{type(error).__name__}: {text} (--debug shows where)"


def _demo(args) -> dict:
    from liftcore.cli.demo import demo

    return demo(Path(args.out), seed=args.seed, tokens=args.tokens, dtype=dtype(args.dtype))


def _absorb(args) -> dict:
    from liftcore.cli.absorb import absorb

    return absorb(args)


def _sft(args) -> dict:
    from liftcore.cli.absorb import sft

    return sft(args)


def _ask(args) -> dict:
    from liftcore.memory import check_length, load_memory
    from liftcore.model import load

    if not args.question and (sys.stdin is None or sys.stdin.closed):
        raise UsageError("no question, and standard input is closed: give one on the command line")
    check_length(args.max_new_tokens)
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
            show(f"Q: {question}")
        show(f"{question}{answer}" if args.complete else answer)
    return {"memory": args.memory, "answers": answers}


def _typed(title: str):
    """Questions from standard input, one a line, until its end; at a terminal an empty line ends
    them, elsewhere it is passed over."""
    typed = sys.stdin.isatty()
    if typed:
        note(f'Ask about "{one_line(title)}"; an empty line ends.')
    while True:
        if typed and sys.stderr is not None:
            sys.stderr.write("> ")
            sys.stderr.flush()
        try:
            line = sys.stdin.readline()
        except UnicodeDecodeError as error:
            raise LiftError("a question on standard input is not UTF-8 text") from error
        if question := line.strip():
            yield question
        elif typed or not line:
            return


def _report(args) -> dict:
    from liftcore.adapter import read_json
    from liftcore.memory import INFO
    from liftcore.report import Report
    from liftcore.stored import from_json

    info = read_json(Path(args.memory) / INFO)
    try:
        report, title = from_json(Report, info["report"]), str(info["document"]["title"])
        lines = f"{one_line(title)}: {info['document']['tokens']:,} tokens", report.text()
    except (LookupError, TypeError, ArithmeticError, ValueError) as error:
        raise LiftError(f"{args.memory} is damaged or of another version: {error}") from error
    show("\n".join(lines))
    if args.png:
        report.png(Path(args.png), title)
    return info["report"]


def _estimate(args) -> dict:
    from liftcore import document, model
    from liftcore.cost import estimate
    from liftcore.device_memory import gib

    config = settings_of(args)
    tokens = _count(args.what)
    base, tokenizer = model.load(args.model, device=args.device, dtype=dtype(args.dtype))
    if tokens is None:
        tokens = len(document.read(text_file(args.what), tokenizer).tokens)
    found = estimate(base, tokens, config)
    show(
        f"{tokens:,} tokens: about {_duration(found.seconds)}, peak memory "
        f"{gib(found.peak_bytes)}, {found.flops / 1e12:,.1f} TFLOP "
        f"({found.steps:,} steps, {found.token_passes:,} token-passes, "
        f"{found.tokens_per_second:,.0f} tokens/s)"
    )
    return dataclasses.asdict(found)


def _count(text: str) -> int | None:
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


def _info(args) -> dict:
    from liftcore.cli.info import info

    found = info()
    show(f"device    {found['device']} ({found['device_name']}), {found['dtype']}")
    show(f"ops       {found['ops']}, because: {found['ops_because']}")
    library = "in use" if found["library"] else "not in use"
    show(f"library   {library}: {found['library_because']}")
    for name, version in found["versions"].items():
        show(f"{name:<12} {version}")
    return found


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
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
