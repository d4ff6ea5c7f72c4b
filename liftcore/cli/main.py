"""The command line: one verb, and what becomes of its errors."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import traceback
from typing import NoReturn

from liftcore import __version__
from liftcore.cli import absorb, ask, corpus, demo, estimate, export, info, read, runfile
from liftcore.errors import ElsewhereError, LiftError, UsageError
from liftcore.terminal import FAILED, guarded, note, one_line, plain, show

# Stands before the words behind --.
_WORD = "\0"


def main(argv: list[str] | None = None) -> int:
    """Runs one verb; returns the exit code: 0 done, 1 failed, as a document of a corpus did,
    or verify found no arrival; 2 wrong usage, 130 interrupted."""
    with guarded():
        try:
            args = _parse(sys.argv[1:] if argv is None else argv)
        except LiftError as error:
            return _failed(error)
        try:
            result = args.run(args)
            if args.json and result:  # which one process of a run has
                show(json.dumps(result))
            if sys.stdout is not None:
                sys.stdout.flush()
        except KeyboardInterrupt:
            note("\nliftcore: interrupted")
            return 130
        except ElsewhereError:
            return 1
        except BrokenPipeError:
            # Nobody reads on, as behind `| head`; the interpreter's own flush must not complain.
            with contextlib.suppress(OSError, ValueError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 141
        except Exception as error:
            if args.debug:
                note(traceback.format_exc())
            return _failed(error)
        return 0 if result.get("arrived", True) and not result.get("failed") else 1


def _failed(error: Exception) -> int:
    note(f"liftcore: error: {_one_line(error)}", FAILED)
    return 2 if isinstance(error, UsageError) else 1


class _Parser(argparse.ArgumentParser):
    """argparse, whose messages hold what was typed."""

    def error(self, message: str) -> NoReturn:
        super().error(plain(message))


def _parse(argv: list[str]) -> argparse.Namespace:
    parser = _parser()
    if "_ARGCOMPLETE" in os.environ:
        _complete(parser)
    (verbs,) = (each.choices for each in parser._actions if isinstance(each.choices, dict))
    argv = runfile.expanded(argv, verbs)
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
        if isinstance(value, list) and name != "question":
            parser.error(f"argument --{name.replace('_', '-')}: expected one argument")
        if isinstance(value, str):
            setattr(args, name, value.removeprefix(_WORD))
        elif name == "question":
            args.question = [word.removeprefix(_WORD) for word in value]
    return args


def _one_line(error: Exception) -> str:
    from liftcore.device_memory import out_of_memory

    text = one_line(str(error)) or type(error).__name__
    if isinstance(error, LiftError):
        return text
    if isinstance(error, OSError) and error.strerror:
        named = isinstance(error.filename, (str, bytes, os.PathLike))
        name = one_line(os.fsdecode(error.filename)) if named else ""
        return f"{name}: {error.strerror}" if name else error.strerror
    if isinstance(error, MemoryError) or out_of_memory(error):
        return "out of memory: try a smaller --segment-length, --batch-size or --rank"
    return f"{type(error).__name__}: {text} (--debug shows where)"


def _complete(parser: argparse.ArgumentParser) -> None:
    """Answers a shell that asks how a word may go on, and ends."""
    with contextlib.suppress(ImportError):
        import argcomplete

        argcomplete.autocomplete(parser)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="liftcore",
        description="Make a language model remember a document: train a small LoRA adapter on "
        "its segments (LIFT), then answer from the weights.",
    )
    parser.add_argument("--version", action="version", version=f"liftcore {__version__}")
    verbs = parser.add_subparsers(required=True, metavar="VERB")
    for each in (demo, absorb, read, corpus, ask, export, estimate, info):
        each.add(verbs)
    return parser
