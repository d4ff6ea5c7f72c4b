"""liftcore corpus: a folder of documents becomes a folder of memories."""

from __future__ import annotations

import argparse
import dataclasses
from typing import TYPE_CHECKING

from liftcore.cli import options, runfile
from liftcore.cli.absorb import question_options
from liftcore.errors import UsageError
from liftcore.terminal import note, one_line, show

if TYPE_CHECKING:
    from liftcore.corpus.run import Summary

# Rows of the table; the rest is in the index.
ROWS = 40


def add(verbs: options.Verbs) -> None:
    parser = options.verb(verbs, "corpus", run, "make a memory of every document of a folder")
    parser.add_argument(
        "documents",
        metavar="FOLDER",
        help="a folder, with questions in a .jsonl beside a document; or a .jsonl with a path a "
        "line, and perhaps title and questions",
    )
    parser.add_argument(
        "--out", metavar="MEMORIES", required=True, help="a folder, or a URL (s3://, gs://, ...)"
    )
    options.model_options(parser, options.EMBEDDED)
    parser.add_argument("--init", metavar="DIR", help="begin each from this adapter")
    options.settings(parser, options.BY_MODEL)
    question_options(parser)
    parser.add_argument(
        "--without-document",
        action="store_true",
        help="keep no copy of the texts; ask then finds a memory by its title alone",
    )
    runfile.add(parser)
    where = parser.add_argument_group("where")
    where.add_argument(
        "--together",
        type=int,
        metavar="N",
        help="documents that share each step of a worker; by default as many as pays, 1 for each "
        "by itself",
    )
    where.add_argument(
        "--workers", type=int, metavar="N", help="processes (one a GPU, one without a GPU)"
    )
    where.add_argument(
        "--ray",
        nargs="?",
        const="",
        metavar="ADDRESS",
        help="workers of a Ray cluster; without ADDRESS the one of RAY_ADDRESS, or of this machine",
    )
    where.add_argument(
        "--cpus-per-worker", type=float, metavar="N", help="with --ray: CPUs in place of a GPU each"
    )


def run(args: argparse.Namespace) -> dict:
    from liftcore.adapter import settings_of
    from liftcore.corpus.jobs import Plan
    from liftcore.corpus.run import corpus
    from liftcore.model import load_tokenizer

    if args.workers is not None and args.workers < 1:
        raise UsageError(f"--workers must be at least 1: {args.workers}")
    if args.ray is None and args.cpus_per_worker is not None:
        raise UsageError("--cpus-per-worker belongs to --ray")
    if args.together is not None and args.together < 1:
        raise UsageError(f"--together must be at least 1: {args.together}")
    server = options.server(args)
    preset = args.preset or options.preset(args, load_tokenizer(args.model))
    config = options.config(args, preset, **settings_of(args.init))
    runfile.save(args.save_config, args, config, preset)
    plan = Plan(
        model=args.model,
        config=config,
        device=args.device,
        dtype=None if args.dtype is None else options.DTYPES[args.dtype],
        init=args.init,
        server=server,
        self_made=args.qa_self,
        with_document=not args.without_document,
        together=args.together,
    )
    try:
        summary = corpus(
            *(args.documents, args.out, plan),
            workers=args.workers,
            ray=args.ray,
            cpus_per_worker=args.cpus_per_worker,
        )
    except KeyboardInterrupt:
        note("\nliftcore: the same command goes on")
        raise
    _print(summary)
    return {
        "documents": len(summary.made) + len(summary.skipped) + len(summary.failed),
        "made": len(summary.made),
        "skipped": len(summary.skipped),
        **{k: v for k, v in dataclasses.asdict(summary).items() if k not in ("made", "skipped")},
        "memories": [*summary.made, *summary.skipped],
    }


def _print(summary: Summary) -> None:
    entries = sorted([*summary.made, *summary.skipped], key=lambda entry: entry["title"])
    if entries:
        show(f"{'tokens':>9}  {'recall':>6}  {'seconds':>7}  title")
    for entry in entries[:ROWS]:
        show(
            f"{entry['tokens']:>9,}  {entry['recall']:>6.0%}  {entry['seconds']:>7.1f}  "
            f"{one_line(entry['title'])}"
        )
    if len(entries) > ROWS:
        show(f"… and {len(entries) - ROWS} more in memories.json")
    for each in summary.failed[:ROWS]:
        note(f"liftcore: failed: {one_line(each['path'])}: {one_line(each['error'])}")
    rate = summary.token_passes / summary.seconds if summary.seconds else 0.0
    show(
        f"{len(summary.made)} made, {len(summary.skipped)} there already, {len(summary.failed)} "
        f"failed, in {summary.seconds:.1f} s ({rate:,.0f} tokens/s)"
    )
    show(f"memories in {summary.out}")
    show(f'next: liftcore ask {options.typed(summary.out)} "your question"')
