"""What the evaluations on question sets share: options, the run, the summary on disk."""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import shlex
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from bench.common import RESULTS, device_name, results_name, versions
from bench.evaluations import cases, methods
from bench.evaluations.cases import Case, Results
from liftcore import document as documents
from liftcore import model as models
from liftcore.cli.options import DTYPES, dtype, settings
from liftcore.cli.options import config as config_of
from liftcore.document import Document
from liftcore.errors import LiftError

METHODS = ("truncated-icl", "rag", "lift", "lift-icl")


@dataclass(frozen=True)
class Text:
    """A document of a question set."""

    text: str
    title: str | None = None


def parser(name: str, description: str) -> argparse.ArgumentParser:
    """The options of an evaluation on a question set."""
    out = argparse.ArgumentParser(prog=f"python -m bench {name}", description=description)
    out.add_argument("data", nargs="*", type=Path, help="the benchmark's JSONL files, or a folder")
    out.add_argument("--task", nargs="+", metavar="T", help="tasks to run (all that DATA holds)")
    options(out, METHODS)
    out.add_argument("--max-new-tokens", type=int, help="in place of each task's own length")
    return out


def options(out: argparse.ArgumentParser, default_methods: Sequence[str]) -> None:
    """The options that every evaluation takes: methods, model, results, settings of training."""
    out.add_argument(
        "--method",
        nargs="+",
        default=default_methods,
        metavar="M",
        help=f"{', '.join(methods.METHODS)}, or FILE.py:CLASS",
    )
    out.add_argument(
        "--limit",
        type=_count,
        metavar="N",
        help="at most N questions of each document and task (niah: of all)",
    )
    out.add_argument("--model", default="smollm2-135m", help="a name or a folder")
    out.add_argument("--device")
    out.add_argument("--dtype", choices=tuple(DTYPES))
    out.add_argument("--window", type=int, help="make the model's window smaller than it is")
    out.add_argument("--out", type=Path, help="folder of the results (bench/results/DEVICE)")
    out.add_argument("--memories", type=Path, help="keep the trained memories in this folder")
    out.add_argument(
        "--report-only", "--plot-only", action="store_true", help="summary and plot from the file"
    )
    settings(out)


def _count(text: str) -> int:
    if not text.isdigit() or text == "0":
        raise argparse.ArgumentTypeError(f"not a number above 0: {text!r}")
    return int(text)


def results_file(args: argparse.Namespace, name: str) -> Path:
    device = torch.device(args.device or models.default_device())
    return (args.out or RESULTS / results_name(device)) / f"{name}.jsonl"


def run(
    args: argparse.Namespace,
    name: str,
    todo: Sequence[Case],
    texts: dict[str, Text],
    score: Callable[[Case, str], dict],
) -> Path:
    """Answers and scores the cases that are not done yet; returns the file of the rows.

    texts   the documents by the names that the cases give them
    """
    if not todo:
        raise LiftError("no questions: nothing in DATA belongs to the tasks that were asked for")
    for case in {case.about["task"]: case for case in todo}.values():
        score(case, "")  # a package that is missing is missed before the model is loaded
    for key, count in Counter(case.id for case in todo).items():
        if count > 1:
            raise LiftError(f"DATA holds the question {key!r} {count} times")
    settings = {"max_new_tokens": args.max_new_tokens}
    model, tokenizer = load(args, name, settings)
    todo = [with_digest(case, texts[case.document]) for case in todo]

    def read(key: str) -> Document:
        return documents.from_text(texts[key].text, tokenizer, texts[key].title)

    return answer(args, name, todo, model, tokenizer, settings, read=read, score=score)


def with_digest(case: Case, document: Text) -> Case:
    """The case with a digest of its data in `about`, so that rows of other data are noticed."""
    classes = case.about.get("classes")
    data = [document.title, document.text, case.question, case.answers, classes]
    digest = hashlib.sha256(json.dumps(data).encode()).hexdigest()[:16]
    return dataclasses.replace(case, about={**case.about, "digest": digest})


def load(
    args: argparse.Namespace, name: str, settings: dict
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The model with the window that was asked for, and its tokenizer.

    Before it is loaded, raises LiftError for methods that cannot run, and when the results on
    disk are of other settings. `settings` as for `answer`.
    """
    known = _settings(args, name, settings)
    if args.window:
        known["window"] = args.window
    if (named := dtype(args.dtype)) is not None:
        known["dtype"] = _name(named)
    cases.check_settings(results_file(args, name), known, some=True)
    for method in args.method:
        methods.find(method).check()
    model, tokenizer = models.load(args.model, device=args.device, dtype=dtype(args.dtype))
    if args.window:
        methods.set_window(model, args.window)
    return model, tokenizer


def answer(
    args: argparse.Namespace,
    name: str,
    todo: Sequence[Case],
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    settings: dict,
    *,
    read: Callable[[str], Document],
    score: Callable[[Case, str], dict],
) -> Path:
    """Runs the cases with the methods asked for; returns the file of the rows.

    settings   what else the rows depend on, beside model and training
    """
    file, config = results_file(args, name), config_of(args)
    of_model = {"dtype": _name(model.dtype), "window": models.window(model)}
    results = Results(file, _settings(args, name, settings, **of_model))
    memories = args.memories or file.with_suffix(".memories")
    bench = methods.Bench.of(model, tokenizer, config, cache=memories)
    cases.run(
        todo,
        [methods.find(m)(bench) for m in args.method],
        results,
        read=read,
        score=score,
        keep=args.memories is not None,
    )
    if args.memories is None and memories.is_dir() and not any(memories.iterdir()):
        memories.rmdir()
    return file


def _settings(args: argparse.Namespace, name: str, settings: dict, **of_model: object) -> dict:
    """All that the rows depend on; `of_model` is known from the model."""
    config = dataclasses.asdict(config_of(args))
    return {"benchmark": name, "model": args.model, **of_model, "config": config, **settings}


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def rows_of(file: Path) -> list[dict]:
    """The rows of a results file. Raises LiftError when there are none."""
    rows = cases.read_rows(file)
    if not rows:
        raise LiftError(f"no results in {file}")
    return rows


def write_summary(args: argparse.Namespace, file: Path, groups: list[dict], **more: object) -> None:
    """The summary beside the rows, with the machine and the command that made it."""
    device = torch.device(args.device or models.default_device())
    made = {"device": device_name(device), "versions": versions(), "command": command()}
    out = file.with_suffix(".json")
    if args.report_only and out.exists():
        # Who draws a picture is not who made the rows.
        before = json.loads(out.read_text())
        made = {name: before.get(name, value) for name, value in made.items()}
    summary = {"settings": cases.read_settings(file), **made, "groups": groups, **more}
    out.write_text(json.dumps(summary, indent=1, ensure_ascii=False) + "\n")


def command() -> str:
    """The command line; of paths only the last part, which means something elsewhere."""

    def short(word: str) -> str:
        path = Path(word)
        return path.name if "/" in word and (path.is_absolute() or path.exists()) else word

    return "python -m bench " + shlex.join(map(short, sys.argv[1:]))


def main(run_one: Callable[[list[str]], None], argv: list[str]) -> int:
    """Runs an evaluation; an error that explains itself is one line on stderr."""
    try:
        run_one(argv)
    except LiftError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\ninterrupted: the same command goes on from here", file=sys.stderr)
        return 130
    return 0
