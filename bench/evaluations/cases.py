"""Runs the cases of an evaluation: every question with every method, one JSON line each.

A killed run goes on where it was and gives the same file to the last byte: the order is fixed,
each line is written whole, and what differs from run to run (seconds) stands in a file beside it,
NAME.seconds.jsonl. The first line holds the settings; a file of other settings is refused.
"""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path

from bench.common import append, read_lines
from bench.evaluations.methods import DoesNotFit, Method
from bench.evaluations.prompts import Prompt
from liftcore.document import Document
from liftcore.errors import LiftError


@dataclass(frozen=True)
class Case:
    """One question. Cases of one document must follow each other.

    id          unique within the evaluation
    document    what `read` gives the Document for
    about       what the row says about the case beside its id (a type, a depth, ...); with a
                "digest" of its data, a stored row of other data is refused
    """

    id: str
    document: str
    question: str
    answers: tuple[str, ...]
    max_new_tokens: int
    prompt: Prompt | None = None
    about: dict = field(default_factory=dict)


class Results:
    """The lines of an evaluation on disk: settings first, then a row for each finished case."""

    def __init__(self, file: Path, settings: dict):
        self.file, self.times = file, file.with_suffix(".seconds.jsonl")
        check_settings(file, settings)
        file.parent.mkdir(parents=True, exist_ok=True)
        lines, _ = read_lines(file), read_lines(self.times)  # cuts torn lines off both
        if not lines:
            append(file, {"settings": settings})
        self.done = {(r["case"], r["method"]) for r in lines[1:]}
        self.digests = {r["case"]: r["digest"] for r in lines[1:] if "digest" in r}

    def check(self, cases: Sequence[Case]) -> None:
        """Raises LiftError for a case whose rows come from another text, question or answer."""
        for case in cases:
            wanted = case.about.get("digest")
            if wanted != self.digests.get(case.id, wanted):
                raise LiftError(
                    f"{self.file} holds the case {case.id!r} with other data (document, question "
                    "or answers): give another folder with --out, or delete it"
                )

    def add(self, row: dict, seconds: dict) -> None:
        """Writes a finished case; its seconds first, so that no row is without them."""
        append(self.times, {"case": row["case"], "method": row["method"], **seconds})
        append(self.file, row)
        self.done.add((row["case"], row["method"]))


def check_settings(file: Path, settings: dict, some: bool = False) -> None:
    """Raises LiftError when the file holds results of other settings.

    some   whether `settings` are only those that are known yet
    """
    if not read_lines(file):
        return
    # What JSON makes of the settings (lists of tuples) is what the file holds.
    settings, old = json.loads(json.dumps(settings)), read_settings(file)
    names = settings if some else {**old, **settings}
    if other := [name for name in names if old.get(name) != settings.get(name)]:
        raise LiftError(
            f"{file} holds results of other settings ({', '.join(other)}): "
            "give another folder with --out, or delete it"
        )


def run(
    cases: Sequence[Case],
    methods: Sequence[Method],
    results: Results,
    *,
    read: Callable[[str], Document],
    score: Callable[[Case, str], dict],
    keep: bool = False,
    progress: bool = True,
) -> None:
    """Answers and scores what is not in the results yet, document by document.

    read    the document of a name, called once for each document with cases to do
    score   the metrics of an answer, by name
    keep    whether the memories of a finished document stay on disk

    A case that a method cannot take (DoesNotFit) is a row too: its answer and scores are null.
    Raises LiftError for rows of other data under the same id.
    """
    results.check(cases)
    total, memories = len(cases) * len(methods), methods[0].bench.memories
    # Counted over the cases asked for: the file may hold others.
    line = Progress(total, sum((c.id, m.name) in results.done for c in cases for m in methods))
    line.enabled &= progress
    memories.progress = progress
    for name, group in groupby(cases, key=lambda case: case.document):
        of_document = list(group)
        todo = [(m, c) for m in methods for c in of_document if (c.id, m.name) not in results.done]
        # A kill may have come between the last answer of a document and drop().
        if not todo and (keep or memories.empty):
            continue
        document = read(name)
        for method, parts in groupby(todo, key=lambda pair: pair[0]):
            line.say(f"{name}: preparing {method.name}")
            method.prepare(document)
            for _, case in parts:
                row, seconds = _one(method, case, score)
                results.add(row, seconds)
                line.advance(f"{name} {method.name}")
        if not keep:
            memories.drop(document)
    line.close()


def _one(method: Method, case: Case, score: Callable[[Case, str], dict]) -> tuple[dict, dict]:
    try:
        answer = method.answer(case.question, case.max_new_tokens, case.prompt)
        scores = {k: None if v is None else round(v, 4) for k, v in score(case, answer).items()}
    except DoesNotFit:
        answer, scores = None, None
    row = {
        "case": case.id,
        "method": method.name,
        "document": case.document,
        **case.about,
        "answers": list(case.answers),
        "answer": answer,
        "scores": scores,
        "prompt_tokens": None if answer is None else method.prompt_tokens,
    }
    if method.memory is not None:
        recall = method.memory.report.recall
        row["recall"] = None if recall is None else round(recall, 4)
    seconds = {
        "prepare_seconds": round(method.prepare_seconds, 3),
        "answer_seconds": None if answer is None else round(method.answer_seconds, 3),
    }
    return row, seconds


def read_rows(file: Path) -> list[dict]:
    """The rows of an evaluation, each with its seconds."""
    times = {
        (t.pop("case"), t.pop("method")): t for t in read_lines(file.with_suffix(".seconds.jsonl"))
    }
    rows = [r for r in read_lines(file) if "case" in r]
    return [{**row, **times.get((row["case"], row["method"]), {})} for row in rows]


def read_settings(file: Path) -> dict:
    """The settings that a results file was made with; {} for a file that is not there."""
    return next((line["settings"] for line in read_lines(file) if "settings" in line), {})


def means(rows: Sequence[dict], by: Callable[[dict], tuple]) -> list[dict]:
    """Mean scores and seconds of groups of rows, in the order of their first row.

    Each: key, cases, fit (how many the method could take), scores by name (of those that fit),
    answer_seconds, prepare_seconds (mean over documents).
    """
    groups: dict[tuple, list[dict]] = {}
    for row in rows:
        groups.setdefault(by(row), []).append(row)
    return [{"key": list(key), **_mean(group)} for key, group in groups.items()]


def _mean(rows: list[dict]) -> dict:
    fit = [r for r in rows if r["scores"] is not None]
    names = dict.fromkeys(name for r in fit for name in r["scores"])
    scores = {n: average(r["scores"].get(n) for r in fit) for n in names}
    prepared = {r["document"]: r.get("prepare_seconds") for r in rows}
    return {
        "cases": len(rows),
        "fit": len(fit),
        "scores": {n: None if v is None else round(v, 4) for n, v in scores.items()},
        "answer_seconds": average(r.get("answer_seconds") for r in fit),
        "prepare_seconds": average(prepared.values()),
    }


def average(values: Iterable[float | None]) -> float | None:
    """The mean of what is known; None when nothing is."""
    known = [v for v in values if v is not None]
    return sum(known) / len(known) if known else None


class Progress:
    """A bar with the time left on a terminal; elsewhere a plain line at most every half minute."""

    def __init__(self, total: int, done: int):
        self.total, self.before, self.done = total, done, done
        self.started = self.said = time.monotonic()
        self.enabled, self.terminal = True, sys.stderr.isatty()

    def advance(self, text: str) -> None:
        """One more case is finished."""
        self.done += 1
        due = self.done == self.total or time.monotonic() - self.said > 30
        if self.terminal or due:
            self.say(text, due)

    def say(self, text: str, due: bool = False) -> None:
        """Replaces the line; where there is no terminal, prints it when it is due."""
        if not self.enabled or not (self.terminal or due):
            return
        self.said = time.monotonic()
        spent, new = self.said - self.started, self.done - self.before
        left = f"{_clock(spent / new * (self.total - self.done))} left" if new else ""
        filled = 20 * self.done // max(1, self.total)
        bar = f"{'█' * filled}{'·' * (20 - filled)} {self.done}/{self.total}  {left}  {text}"
        if self.terminal:
            bar = "\r\x1b[K" + bar[: shutil.get_terminal_size().columns - 1]
        print(bar, end="" if self.terminal else "\n", file=sys.stderr, flush=True)

    def close(self) -> None:
        if self.enabled and self.terminal:
            print(file=sys.stderr)


def _clock(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"
