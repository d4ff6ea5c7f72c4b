"""A long sweep over cases that each train a model: a row a finished case, resumed after a kill."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from bench.common import append, read_lines


def run(
    file: Path,
    todo: Iterable,
    one: Callable[..., tuple[dict, str]],
    minutes: float = float("inf"),
) -> None:
    """Runs the cases that the file has no row of yet; each row is written when its case is
    finished, and no case is begun after `minutes`.

    todo   cases, each with a `key` that its row holds too
    one    case -> (row, what to say of it)
    """
    end = time.monotonic() + 60 * minutes
    file.parent.mkdir(parents=True, exist_ok=True)
    done = {row["key"] for row in read_lines(file)}
    todo = [case for case in todo if case.key not in done]
    for i, case in enumerate(todo):
        if time.monotonic() > end:
            break
        started = time.perf_counter()
        row, text = one(case)
        append(file, row)
        spent = time.perf_counter() - started
        said = f"{i + 1}/{len(todo)} {case.key}: {text}, {spent:.0f} s"
        print(said, file=sys.stderr, flush=True)


def options(parser: argparse.ArgumentParser, documents: Iterable[str], only: str) -> None:
    """The options of a sweep; `only` says what --only takes."""
    parser.add_argument("--device")
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--only", nargs="*", help=only)
    parser.add_argument("--documents", nargs="+", default=documents)
    parser.add_argument("--minutes", type=float, default=float("inf"), help="begin no case later")
    parser.add_argument(
        "--share", type=int, nargs=2, default=(1, 1), metavar=("I", "N"),
        help="the I-th of N processes that share the sweep and its file",
    )  # fmt: skip
    parser.add_argument("--out", type=Path, help="folder of the results")
    parser.add_argument("--plot-only", action="store_true", help="tables and picture from the file")


def share_of(cases: Iterable, args: argparse.Namespace) -> list:
    """This process's part of the cases, of the documents that were asked for."""
    wanted = [case for case in cases if case.document in args.documents]
    return wanted[args.share[0] - 1 :: args.share[1]]
