"""liftcore ask and report: what a memory answers, and what it recalls."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from liftcore.cli import options
from liftcore.errors import LiftError, UsageError
from liftcore.terminal import RECALL, Typewriter, note, one_line, show

if TYPE_CHECKING:
    from liftcore.info import Info
    from liftcore.memory import Memory


def add(verbs: options.Verbs) -> None:
    parser = options.verb(verbs, "ask", run, "ask a memory; without a question, interactively")
    options.memory_argument(
        parser,
        "a folder that absorb wrote, or one of many memories that corpus wrote: each question "
        "then goes to the memory whose document matches it, or else to the base model",
    )
    parser.add_argument(
        "--all",
        action="store_true",
        help="of many memories ask the best three whose documents match; a line above each answer "
        "says whose it is",
    )
    parser.add_argument("question", nargs="*", metavar="QUESTION")
    parser.add_argument(
        "--context",
        choices=("none", "truncated", "passages"),
        default="none",
        help="none: from the weights alone; truncated: beside the text cut to the "
        "model's window (LIFT+ICL); passages: beside the passages of the text that hold most of "
        "the question's words (LIFT+RAG)",
    )
    parser.add_argument(
        "--evidence",
        action="store_true",
        help="also print those passages, with their places, below each answer",
    )
    parser.add_argument(
        "--complete",
        action="store_true",
        help="take QUESTION as the beginning of a passage and go on with it",
    )
    parser.add_argument("--max-new-tokens", type=int, default=64, metavar="N")
    parser.add_argument("--force", action="store_true", help="accept a base model of another name")
    options.model_options(parser, None)
    parser = options.verb(verbs, "report", report, "show what a memory recalls, and where")
    options.memory_argument(parser)
    parser.add_argument("--png", metavar="FILE", help="draw the strip")
    page = parser.add_argument_group("a page to look at")
    page.add_argument(
        "--html",
        metavar="FILE",
        help="the text by what is recalled of it, and the questions asked once more, as one file",
    )
    page.add_argument(
        "--questions", type=int, default=48, metavar="N", help="questions asked, at most (48)"
    )
    page.add_argument("--force", action="store_true", help="accept a base model of another name")
    options.model_options(page, None)


def run(args: argparse.Namespace) -> dict:
    from liftcore.corpus.memories import is_many
    from liftcore.memory import check_length

    if not args.question and (sys.stdin is None or sys.stdin.closed):
        raise UsageError("no question, and standard input is closed: give one on the command line")
    check_length(args.max_new_tokens)
    if is_many(args.memory):
        return _ask_many(args)
    if args.all:
        raise UsageError(f"--all belongs to a folder of many memories, which {args.memory} is not")
    memory = _loaded(args)
    answers = []
    for question in args.question or _typed(memory.title):
        if len(args.question) > 1:
            show(f"Q: {question}")
        answers.append(_answered(memory, question, args))
    return {"memory": args.memory, "answers": answers}


def _ask_many(args: argparse.Namespace) -> dict:
    """Asks the memories of a folder, each question those that match it."""
    from liftcore.corpus.memories import MOST, Memories
    from liftcore.memory import say_base
    from liftcore.model import load

    def base(name: str) -> tuple[Any, Any]:
        if not args.model:
            say_base(name, args.memory)
        return load(args.model or name, device=args.device, dtype=options.dtype(args.dtype))

    many = Memories(args.memory, base, force=args.force)
    answers = []
    for question in args.question or _typed(f"{len(many.entries)} memories"):
        if len(args.question) > 1:
            show(f"Q: {question}")
        chosen = many.choose(question, MOST if args.all else 1)
        if not chosen:
            note("liftcore: no document matches: the base model answers")
            if args.all:
                show("[no memory: the base model]")
            streams, on_text = _stream()
            answer = many.ask_base(question, max_new_tokens=args.max_new_tokens, on_text=on_text)
            show("" if streams else answer)
            answers.append({"question": question, "answer": answer, "memory": None, "title": None})
        for choice in chosen:
            title = one_line(choice.title)
            if args.all:
                show(f"[{title}]")
            else:
                note(f"liftcore: from {title} (match {choice.score:.2f})")
            answered = _answered(many.memory(choice), question, args)
            told = {"memory": choice.folder, "title": choice.title, "match": choice.score}
            answers.append({**answered, **told})
    return {"memory": args.memory, "answers": answers}


def _stream() -> tuple[bool, Typewriter | None]:
    """Whether answers appear piece by piece, and what shows them so."""
    streams = sys.stdout is not None and sys.stdout.isatty()
    return streams, Typewriter() if streams else None


def _answered(memory: Memory, question: str, args: argparse.Namespace) -> dict[str, Any]:
    """Answers a question, on a terminal piece by piece, and prints the answer."""
    passages = memory.evidence(question) if args.evidence else []
    most, (_, on_text) = args.max_new_tokens, _stream()
    if args.complete:
        if on_text is not None:
            on_text(question)
        answer = memory.complete(question, max_new_tokens=most, on_text=on_text)
    else:
        answer = memory.ask(question, context=args.context, max_new_tokens=most, on_text=on_text)
    if on_text is not None:
        show()
    else:
        show(f"{question}{answer}" if args.complete else answer)
    for passage in passages:
        show(f"\n[{passage.place}]\n{passage.text}")
    answered: dict[str, Any] = {"question": question, "answer": answer}
    if args.evidence:
        answered["evidence"] = [dataclasses.asdict(passage) for passage in passages]
    return answered


def _typed(title: str) -> Iterator[str]:
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


def report(args: argparse.Namespace) -> dict:
    from liftcore.info import read_info

    if args.questions < 0:
        raise UsageError(f"--questions must not be negative: {args.questions}")
    folder = options.memory_folder(args)
    info = read_info(folder)
    title = info.about.title
    show(f"{one_line(title)}: {info.about.tokens:,} tokens\n{info.report.text()}", RECALL)
    if args.png:
        info.report.png(Path(args.png), title)
    if args.html:
        _write_page(info, folder, args)
    return dataclasses.asdict(info.report)


def _write_page(info: Info, folder: Path, args: argparse.Namespace) -> None:
    from liftcore.cli.again import command
    from liftcore.page import write_page
    from liftcore.training.progress import ProgressLine

    memory = _loaded(args)
    with ProgressLine() as line:
        write_page(
            *(memory, args.html),
            questions=args.questions,
            command=command(info, folder, memory.questions),
            say=line.count,
        )
    note(f"liftcore: the page is {args.html}")


def _loaded(args: argparse.Namespace) -> Memory:
    """The memory that a command line names, on the model that it names."""
    from liftcore.memory import load_memory

    return load_memory(
        options.memory_folder(args),
        options.load(args) if args.model else None,
        device=args.device,
        dtype=options.dtype(args.dtype),
        force=args.force,
    )
