"""LooGLE: questions with short and long dependencies about long documents, by method and kind.

    python -m bench loogle DATA --method truncated-icl rag lift lift-icl --limit 8

DATA is a folder with the benchmark's files shortdep_qa.jsonl, longdep_qa.jsonl,
shortdep_cloze.jsonl and longdep_summarization.jsonl, or some of these files. A killed run goes
on with the same command. The prompts have the benchmark's structure in words of our own.
"""

from __future__ import annotations

import json

from bench.common import table
from bench.evaluations import evaluate, metrics
from bench.evaluations.cases import Case, means
from bench.evaluations.evaluate import Text
from bench.evaluations.judge import Judge, judge_rows
from bench.evaluations.loogle_data import KINDS, TASKS, Item, find_files, literal, read
from bench.evaluations.plot import bars
from bench.evaluations.prompts import Prompt
from liftcore.errors import LiftError

MAX_NEW_TOKENS = {
    "shortdep_qa": 300,
    "longdep_qa": 500,
    "shortdep_cloze": 50,
    "longdep_summarization": 500,
}
NAMES = {
    "shortdep_qa": "ShortQA",
    "longdep_qa": "LongQA",
    "shortdep_cloze": "cloze",
    "longdep_summarization": "summarisation",
    "comprehension_and_reasoning": "comprehension and reasoning",
    "multiple_information_retrieval": "multiple information retrieval",
    "computation": "computation",
    "timeline_reorder": "timeline reorder",
}
_FILL = (
    "In the text below, names of people, places and organisations are replaced by <mask-n>; the "
    "same mask is the same name everywhere. Reply with the names as JSON, for example "
    '{{"<mask-0>": "Ada", "<mask-1>": "Oslo"}}.\n\nText: {question}\n\nWhich names are masked?'
)
_SUM_UP = 'Please write a summary of the paper "{title}".'
PROMPTS = {
    "shortdep_cloze": Prompt(
        beside='Here is "{title}".\n\n{document}\n\n' + _FILL,
        alone='You have read "{title}".\n\n' + _FILL,
    ),
    "longdep_summarization": Prompt(beside=_SUM_UP + "\n\n{document}\n\nSummary:", alone=_SUM_UP),
}
ECHO = "the question"
SUMMARY = "a summary of the main points"  # what a retrieval method looks for
COLUMNS = {
    "exact_match": "exact",
    "token_f1": "F1",
    "contains": "contains",
    "rouge_l": "ROUGE-L",
    "rouge_l_recall": "recall",
    "bleu_1": "BLEU-1",
    "bleu_4": "BLEU-4",
    "partial_match": "partial",
    "judge": "judge",
    "bert_score": "BERTScore",
}


def cases_of(items: list[Item], limit: int | None, max_new_tokens: int | None) -> list[Case]:
    """A case for each question, at most `limit` of a document and task; by document."""
    by_document: dict[str, list[Case]] = {}
    for item in items:
        key = item.key
        for number, question in enumerate(item.questions[:limit]):
            judged = {"longdep_summarization": "grade", "shortdep_cloze": None}
            answer = question.answer
            case = Case(
                id=f"{item.task} {key.rsplit(' ', 1)[1]} {number}",
                document=key,
                question=question.text or SUMMARY,
                answers=(answer if isinstance(answer, str) else json.dumps(answer),),
                max_new_tokens=max_new_tokens or MAX_NEW_TOKENS[item.task],
                prompt=PROMPTS.get(item.task),
                about={
                    "task": item.task,
                    "kind": question.kind,
                    "question": question.text,
                    "judged_as": judged.get(item.task, "same"),
                },
            )
            by_document.setdefault(key, []).append(case)
    return [case for group in by_document.values() for case in group]


def score(case: Case, answer: str) -> dict[str, float]:
    """The metrics of an answer: those of the masked names for a cloze, of texts elsewhere."""
    if case.about["task"] == "shortdep_cloze":
        return cloze(json.loads(case.answers[0]), answer)
    scores = {
        "token_f1": metrics.token_f1(answer, case.answers),
        "rouge_l": metrics.rouge_l(answer, case.answers),
        "rouge_l_recall": metrics.rouge_l(answer, case.answers, part="r"),
        "bleu_1": metrics.bleu(answer, case.answers),
        "bleu_4": metrics.bleu(answer, case.answers, order=4),
    }
    if case.about["task"] != "longdep_summarization":
        scores["exact_match"] = metrics.exact_match(answer, case.answers)
        scores["contains"] = metrics.contains(answer, case.answers)
    return scores


def cloze(wanted: dict[str, str], answer: str) -> dict[str, float]:
    """Shares of the masks that are named exactly, and in at least one word."""
    named = _names(answer)
    exact = sum(named.get(mask) == name for mask, name in wanted.items())
    partial = sum(bool({*named.get(m, "").split()} & {*n.split()}) for m, n in wanted.items())
    masks = max(1, len(wanted))
    return {"exact_match": exact / masks, "partial_match": partial / masks}


def _names(answer: str) -> dict[str, str]:
    """The first {...} of an answer as a dict; {} when it is none."""
    start, stop = answer.find("{"), answer.find("}")
    if not 0 <= start < stop:
        return {}
    text = answer[start : stop + 1]
    try:
        names = json.loads(text)
    except ValueError:
        try:
            names = literal(text, "answer", limit=10_000)
        except LiftError:
            return {}
    return {str(k): str(v) for k, v in names.items()} if isinstance(names, dict) else {}


def echoes(rows: list[dict]) -> list[dict]:
    """A row for each question answered by saying it again: the floor of scores by shared words."""
    floor = []
    for row in {r["case"]: r for r in rows if r["task"] in ("shortdep_qa", "longdep_qa")}.values():
        case = Case(
            id=row["case"], document=row["document"], question=row["question"],
            answers=tuple(row["answers"]), max_new_tokens=0, about={"task": row["task"]},
        )  # fmt: skip
        given = {"answer": row["question"], "scores": score(case, row["question"])}
        spent = {"answer_seconds": None, "prepare_seconds": None, "prompt_tokens": 0}
        floor.append({**row, "method": ECHO, **given, **spent})
    return floor


def groups_of(rows: list[dict]) -> list[dict]:
    """Mean scores by group and method: the tasks, and LongQA also by kind.

    Cloze scores are means over masks, as the benchmark has them, the others over questions.
    """
    kinds = [("longdep_qa", kind) for kind in KINDS]
    groups = []
    for task, kind in [*((task, None) for task in TASKS), *kinds]:
        part = [r for r in rows if r["task"] == task and (kind is None or r["kind"] == kind)]
        for mean in means(part, by=lambda row: (row["method"],)):
            if task == "shortdep_cloze":
                mean["scores"] = _over_masks([r for r in part if r["method"] == mean["key"][0]])
            name = NAMES[task] if kind is None else f"{NAMES[task]}: {NAMES[kind]}"
            groups.append({"group": name, "method": mean.pop("key")[0], **mean})
    return groups


def _over_masks(rows: list[dict]) -> dict[str, float]:
    weighed = [(len(json.loads(r["answers"][0])), r["scores"]) for r in rows if r["scores"]]
    masks = sum(n for n, _ in weighed)
    names = dict.fromkeys(k for _, scores in weighed for k in scores)
    return {k: round(sum(n * s[k] for n, s in weighed) / masks, 4) for k in names if masks}


def text_table(groups: list[dict]) -> str:
    """The groups as columns of text; scores in percent."""
    names = [n for n in COLUMNS if any(g["scores"].get(n) is not None for g in groups)]
    rows = [["group", "method", "questions", *(COLUMNS[n] for n in names), "seconds"]]
    for g in groups:
        scores = [g["scores"].get(n) for n in names]
        cells = ["" if s is None else f"{100 * s:.1f}" for s in scores]
        seconds = g["answer_seconds"]
        seconds = "" if seconds is None else f"{seconds:.1f}"
        rows.append([g["group"], g["method"], f"{g['fit']}/{g['cases']}", *cells, seconds])
    return table(rows)


def add_bert_score(rows: list[dict], model: str | None) -> list[dict]:
    """Rows with the score "bert_score" added, except of clozes and of what has no answer."""
    texts = [r for r in rows if r["scores"] is not None and r["task"] != "shortdep_cloze"]
    scores = metrics.bert_score(
        [r["answer"] for r in texts], [r["answers"][0] for r in texts], model
    )
    by_row = {(r["case"], r["method"]): s for r, s in zip(texts, scores, strict=True)}
    return [
        {**r, "scores": {**r["scores"], "bert_score": by_row[r["case"], r["method"]]}}
        if (r["case"], r["method"]) in by_row
        else r
        for r in rows
    ]


def run(argv: list[str]) -> None:
    parser = evaluate.parser("loogle", __doc__.splitlines()[0])
    parser.add_argument("--documents", nargs="+", metavar="TITLE", help="only these documents")
    parser.add_argument(
        "--bert-score", nargs="?", const="", metavar="M", help="add BERTScore (of this model)"
    )
    parser.add_argument("--judge", metavar="URL", help="an OpenAI-compatible server that judges")
    parser.add_argument("--judge-model", metavar="M", help="the model to ask there")
    args = parser.parse_args(argv)
    if args.judge and not args.judge_model:
        raise LiftError("--judge needs --judge-model")
    judge = Judge(args.judge, args.judge_model) if args.judge else None
    # What the scores need is missed before the run and not behind it.
    if judge is not None:
        judge.check()
    if args.bert_score is not None:
        metrics.package("bert_score", "bertscore")
    file = evaluate.results_file(args, "loogle")
    if not args.report_only:
        for task in args.task or ():
            if task not in TASKS:
                raise LiftError(f"unknown task {task!r}: {', '.join(TASKS)}")
        items = [i for f in find_files(args.data, args.task or TASKS) for i in read(f)]
        if args.documents:
            unknown = set(args.documents) - {item.title for item in items}
            if unknown:
                raise LiftError(f"no document is called {', '.join(sorted(unknown))}")
            items = [item for item in items if item.title in args.documents]
        texts = {item.key: Text(item.text, item.title) for item in items}
        todo = cases_of(items, args.limit, args.max_new_tokens)
        evaluate.run(args, "loogle", todo, texts, score)
    rows = judge_rows(evaluate.rows_of(file), file.with_suffix(".judge.jsonl"), judge)
    if args.bert_score is not None:
        rows = add_bert_score(rows, args.bert_score or None)
    groups = groups_of(rows + echoes(rows))
    evaluate.write_summary(args, file, groups)
    print(text_table(groups))
    picture = file.with_suffix(".png")
    wanted = {"token_f1": "token F1", "rouge_l_recall": "ROUGE-L recall"}
    if bars(groups, wanted, picture, "LooGLE"):
        print(f"plot in {picture}")


def main(argv: list[str]) -> int:
    return evaluate.main(run, argv)
