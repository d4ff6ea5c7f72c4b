"""LongBench: its English tasks by method, from the benchmark's own JSONL.

    python -m bench longbench DATA --task musique qmsum --method rag lift-icl --limit 20

DATA is a folder with the benchmark's files TASK.jsonl (or TASK_e.jsonl of LongBench-E), or some of
these files. A record is one document and one question, so each costs a training of its own. A
killed run goes on with the same command.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from bench.common import table
from bench.evaluations import evaluate
from bench.evaluations.cases import Case, means
from bench.evaluations.evaluate import Text
from bench.evaluations.longbench_tasks import TASKS, Task
from bench.evaluations.loogle_data import field, find_files, json_lines
from bench.evaluations.plot import bars
from liftcore.errors import LiftError

# LongBench-E reports by the length of the context in words.
LENGTHS = ((4000, "0-4k"), (8000, "4-8k"), (float("inf"), "8k+"))
NAMES = (*TASKS, *(f"{name}_e" for name in TASKS))


@dataclass(frozen=True)
class Record:
    """A line of a file: `task` is the file's name, with its _e for LongBench-E."""

    task: str
    id: str
    context: str
    question: str
    answers: tuple[str, ...]
    classes: tuple[str, ...]
    length: int


def read(file: Path) -> list[Record]:
    """The records of a file. Raises LiftError with file and line."""
    records = [_record(row, file.stem, where) for where, row in json_lines(file)]
    if len({record.id for record in records}) < len(records):
        raise LiftError(f"{file}: the same _id twice")
    return records


def _record(row: dict, task: str, where: str) -> Record:
    answers = field(row, "answers", list, where)
    classes = row.get("all_classes") or []
    if not answers or not all(isinstance(a, str) for a in [*answers, *classes]):
        raise LiftError(f"{where}: answers and all_classes must be texts, and one answer at least")
    dataset, language = row.get("dataset", task), row.get("language", "en")
    if dataset.removesuffix("_e") != task.removesuffix("_e"):
        raise LiftError(f"{where}: a record of {dataset} in the file of {task}")
    if task.removesuffix("_e") not in ("lcc", "repobench-p") and language != "en":
        raise LiftError(f"{where}: the language is {language!r}; only English tasks are known")
    return Record(
        task,
        field(row, "_id", str, where),
        field(row, "context", str, where),
        field(row, "input", str, where),
        tuple(answers),
        tuple(classes),
        field(row, "length", int, where),
    )


def case_of(record: Record, max_new_tokens: int | None) -> tuple[Case, Text]:
    """A record's question, and its document."""
    task = TASKS[record.task.removesuffix("_e")]
    context, question = _split(record, task)
    key = f"{record.task} {record.id}"
    about = {"task": record.task, "length": record.length}
    if record.classes:
        about["classes"] = list(record.classes)
    tokens = max_new_tokens or task.max_new_tokens
    case = Case(key, key, question, record.answers, tokens, task.prompt, about)
    return case, Text(context)


def _split(record: Record, task: Task) -> tuple[str, str]:
    """Context and question; the last lines of code are the question of a task without one."""
    if not task.tail:
        return record.context, record.question.rstrip("\n") or task.query
    lines = record.context.splitlines(keepends=True)
    cut = max(1, len(lines) - task.tail)
    return "".join(lines[:cut]), "".join(lines[cut:]).rstrip("\n")


def score(case: Case, answer: str) -> dict[str, float]:
    """The score of the case's task."""
    task = TASKS[case.about["task"].removesuffix("_e")]
    return {"score": task.score(answer, list(case.answers), case.about.get("classes"))}


def groups_of(rows: list[dict]) -> list[dict]:
    """Mean scores by task (of LongBench-E by task and length) and method."""

    def group(row: dict) -> str:
        if not row["task"].endswith("_e"):
            return row["task"]
        return f"{row['task']} {next(name for most, name in LENGTHS if row['length'] < most)}"

    order = {name: i for i, name in enumerate([*NAMES, *(name for _, name in LENGTHS)])}
    rows = sorted(rows, key=lambda row: [order[part] for part in group(row).split(" ")])
    groups = means(rows, by=lambda row: (group(row), row["method"]))
    return [{"group": g["key"][0], "method": g["key"][1], **g, "key": g["key"]} for g in groups]


def text_table(groups: list[dict]) -> str:
    """Scores in percent: a line a task, a column a method, and the mean over the tasks."""
    methods = list(dict.fromkeys(g["method"] for g in groups))
    names = list(dict.fromkeys(g["group"] for g in groups))
    by_key = {(g["group"], g["method"]): g for g in groups}
    rows = [["task", "records", *methods]]
    for name in names:
        mine = [by_key.get((name, method)) for method in methods]
        records = max(g["cases"] for g in mine if g)
        rows.append([name, str(records), *(_cell(g, records) for g in mine)])
    total = sum(int(row[1]) for row in rows[1:])
    last = [_mean([by_key.get((n, m)) for n in names], total) for m in methods]
    return table([*rows, ["mean", str(total), *last]])


def _mean(groups: list[dict | None], total: int) -> str:
    """The mean over all tasks, with the number of records behind it where not all."""
    values = [v for g in groups if (v := _value(g)) is not None]
    # A mean over other tasks than the next column's would mislead.
    if len(values) < len(groups):
        return ""
    fit = sum(g["fit"] for g in groups if g)
    return f"{100 * sum(values) / len(values):.2f}{_part(fit, total)}"


def _value(group: dict | None) -> float | None:
    return None if group is None else group["scores"].get("score")


def _cell(group: dict | None, records: int) -> str:
    """The score, with the number of records behind it where not all."""
    value = _value(group)
    if group is None or value is None:
        return "" if group is None else "0 fit"
    return f"{100 * value:.2f}{_part(group['fit'], records)}"


def _part(fit: int, records: int) -> str:
    return "" if fit == records else f" ({fit} of {records})"


def run(argv: list[str]) -> None:
    parser = evaluate.parser("longbench", __doc__.splitlines()[0])
    args = parser.parse_args(argv)
    file = evaluate.results_file(args, "longbench")
    if not args.report_only:
        for task in args.task or ():
            if task not in NAMES:
                raise LiftError(f"unknown task {task!r}: {', '.join(TASKS)}, or one of them + _e")
        files = find_files(args.data, args.task or NAMES)
        records = [record for f in files for record in read(f)[: args.limit]]
        pairs = [case_of(record, args.max_new_tokens) for record in records]
        texts = {case.document: text for case, text in pairs}
        evaluate.run(args, "longbench", [case for case, _ in pairs], texts, score)
    groups = groups_of(evaluate.rows_of(file))
    evaluate.write_summary(args, file, groups)
    print(text_table(groups))
    picture = file.with_suffix(".png")
    if bars(groups, {"score": "score"}, picture, "LongBench"):
        print(f"plot in {picture}")


def main(argv: list[str]) -> int:
    return evaluate.main(run, argv)
