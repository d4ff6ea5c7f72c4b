"""liftcore report: what a memory recalls."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

from liftcore.cli import options
from liftcore.terminal import one_line, show


def add(verbs: options.Verbs) -> None:
    parser = options.verb(verbs, "report", run, "show what a memory recalls, and where")
    parser.add_argument("memory", metavar="DIR")
    parser.add_argument("--png", metavar="FILE", help="draw the strip")


def run(args: argparse.Namespace) -> dict:
    from liftcore.memory import read_info

    info = read_info(Path(args.memory))
    title, report = info.about.title, info.report
    show(f"{one_line(title)}: {info.about.tokens:,} tokens\n{report.text()}")
    if args.png:
        report.png(Path(args.png), title)
    return dataclasses.asdict(report)
