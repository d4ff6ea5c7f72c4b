"""The LooGLE evaluation: its files, its prompts, its scores by kind, and a run that goes on."""

import importlib.util
import json
import sys

import pytest
from extras import needs

from bench.evaluations import loogle, loogle_data, metrics
from bench.evaluations.loogle_data import find_files, literal, read
from bench.evaluations.prompts import Prompt
from liftcore.errors import LiftError

TEXT = (
    "The mill at Orrin stands on the river. Ada Blum bought it in 1871. Her son sold it in 1902. "
)
QA = [
    {"Q": "Who bought the mill?", "A": "Ada Blum", "S": "Ada Blum bought it in 1871."},
    {"Q": "When was it sold?", "A": "In 1902.", "S": "Her son sold it in 1902."},
]
LONG = [
    {"Q": "How long did they own it?", "A": "31 years", "type": "computation", "S": ["a", "b"]},
    {"Q": "Order: 1. sale 2. purchase", "A": "2,1", "type": "timeline_reorder", "S": ["a"]},
]
NAMES = {"<mask-0>": "Ada Blum", "<mask-1>": "Orrin"}
CLOZE = [{"Q": "<mask-0> bought the mill at <mask-1>.", "A": NAMES}]
ROWS = {
    "shortdep_qa": {"input": TEXT, "title": "The mill", "qa_pairs": repr(QA), "output": "none"},
    "longdep_qa": {"input": TEXT, "title": "The mill", "qa_pairs": repr(LONG), "output": "none"},
    "shortdep_cloze": {"input": TEXT, "title": "The mill", "qa_pairs": repr(CLOZE), "output": ""},
    "longdep_summarization": {
        "input": TEXT * 2,
        "title": "2301.1",
        "qa_pairs": "none",
        "output": "A mill changes hands.",
    },
}


@pytest.fixture
def data(tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    for name, row in ROWS.items():
        (folder / f"{name}.jsonl").write_text(json.dumps(row) + "\n")
    (folder / "other.jsonl").write_text("{}\n")
    return folder


def items(data):
    return [item for file in find_files([data], loogle_data.TASKS) for item in read(file)]


def test_a_file_or_a_document_that_stands_there_twice(data):
    file = next(data.glob("shortdep_qa.jsonl"))
    tasks = loogle_data.TASKS
    assert find_files([data, file], tasks) == find_files([data], tasks)
    with pytest.raises(LiftError, match="DATA is missing"):
        find_files([], tasks)
    file.write_text(file.read_text().rstrip() + "\n" + file.read_text())
    with pytest.raises(LiftError, match="2 lines hold the same document"):
        read(file)


def test_the_four_files_are_read(data):
    short, long, cloze, summary = items(data)
    assert (short.title, short.text, short.task) == ("The mill", TEXT, "shortdep_qa")
    assert [(q.text, q.answer) for q in short.questions] == [(p["Q"], p["A"]) for p in QA]
    assert [q.kind for q in long.questions] == ["computation", "timeline_reorder"]
    assert cloze.questions[0].answer == NAMES
    assert [(q.text, q.answer) for q in summary.questions] == [("", "A mill changes hands.")]
    assert short.key == long.key != summary.key


def test_a_list_of_pairs_needs_no_literal(tmp_path):
    file = tmp_path / "shortdep_qa.jsonl"
    file.write_text(json.dumps({**ROWS["shortdep_qa"], "qa_pairs": QA}) + "\n\n")
    assert [q.answer for q in read(file)[0].questions] == ["Ada Blum", "In 1902."]


def test_a_literal_is_parsed_and_never_run(tmp_path):
    trap = tmp_path / "trap"
    assert literal("[{'Q': 'a\\'b', 'A': 1}]", "here") == [{"Q": "a'b", "A": 1}]
    for text in (f"open({str(trap)!r}, 'w')", "[1, 2", "__import__('os')", "[" * 100_000, "x"):
        with pytest.raises(LiftError, match="here: not a Python literal"):
            literal(text, "here")
    assert not trap.exists()
    with pytest.raises(LiftError, match="here: a literal of 11 characters; at most 10"):
        literal("'123456789'", "here", limit=10)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", ":2: not JSON"),
        ("[1]", ":2: not a JSON object"),
        (json.dumps({"input": 3, "title": "t", "qa_pairs": "[]"}), ":2: the field 'input'"),
        (json.dumps({"input": "x", "title": "t", "qa_pairs": "3"}), ":2: qa_pairs is not a list"),
        (json.dumps({"input": "x", "title": "t", "qa_pairs": "[{'Q': 'a'}]"}), ":2: the field 'A'"),
        (json.dumps({"input": "x", "title": "t", "qa_pairs": "f()"}), ":2: not a Python literal"),
    ],
)
def test_what_is_wrong_is_said_with_file_and_line(line, message, tmp_path):
    file = tmp_path / "shortdep_qa.jsonl"
    file.write_text(json.dumps(ROWS["shortdep_qa"]) + "\n" + line + "\n")
    with pytest.raises(LiftError, match=f"{file}{message}"):
        read(file)


def test_cases_follow_each_other_by_document_and_are_limited_by_document_and_task(data):
    cases = loogle.cases_of(items(data), 1, None)
    assert [c.about["task"] for c in cases] == list(loogle_data.TASKS)
    assert [c.document for c in cases] == sorted((c.document for c in cases), reverse=True)
    assert [c.max_new_tokens for c in cases] == [300, 500, 50, 500]
    assert len({c.id for c in loogle.cases_of(items(data), None, 7)}) == 6
    assert {c.max_new_tokens for c in loogle.cases_of(items(data), None, 7)} == {7}
    assert cases[3].question  # a retrieval method needs something to look for


def test_prompts_hold_the_document_or_not(tokenizer, data):
    for case in loogle.cases_of(items(data), None, None):
        prompt = case.prompt or Prompt()
        for document in ("A DOCUMENT", ""):
            ids = prompt.ids(tokenizer, "A TITLE", document, case.question)
            text = tokenizer.decode(ids)
            assert ("A DOCUMENT" in text) == bool(document) and "A TITLE" in text
            if case.about["task"] != "longdep_summarization":
                assert case.question in text
            if case.about["task"] == "shortdep_cloze":
                assert '{"<mask-0>": "Ada", "<mask-1>": "Oslo"}' in text


@pytest.mark.parametrize(
    ("answer", "exact", "partial"),
    [
        ('{"<mask-0>": "Ada Blum", "<mask-1>": "Orrin"}', 1, 1),
        ("Sure: {'<mask-0>': 'Ada', '<mask-1>': 'Orrin'} is it", 0.5, 1),  # a Python dict
        ('{"<mask-0>": "Blum", "<mask-2>": "Orrin"}', 0, 0.5),
        ("{'<mask-0>': open('x')}", 0, 0),
        ("} {", 0, 0),
        ("{1, 2}", 0, 0),
        ("Ada Blum", 0, 0),
    ],
)
def test_cloze_counts_masks(answer, exact, partial):
    assert loogle.cloze(NAMES, answer) == {"exact_match": exact, "partial_match": partial}


def row(task, kind, method, scores, answers=("x",), case="1"):
    return {
        "case": f"{task} {case}",
        "method": method,
        "document": "d",
        "task": task,
        "kind": kind,
        "answer": "y",
        "answers": list(answers),
        "scores": scores,
        "answer_seconds": 1.0,
    }


def test_groups_are_tasks_and_kinds_of_long_questions():
    rows = [
        row("shortdep_qa", "shortdep_qa", "lift", {"token_f1": 0.5}),
        row("longdep_qa", "computation", "lift", {"token_f1": 0.2}),
        row("longdep_qa", "computation", "rag", {"token_f1": 0.4}),
        row("longdep_qa", "timeline_reorder", "lift", {"token_f1": 1.0}),
        row("longdep_qa", "timeline_reorder", "rag", None),
    ]
    groups = {(g["group"], g["method"]): g for g in loogle.groups_of(rows)}
    assert list(groups) == [
        ("ShortQA", "lift"),
        ("LongQA", "lift"),
        ("LongQA", "rag"),
        ("LongQA: computation", "lift"),
        ("LongQA: computation", "rag"),
        ("LongQA: timeline reorder", "lift"),
        ("LongQA: timeline reorder", "rag"),
    ]
    assert groups["LongQA", "lift"]["scores"]["token_f1"] == pytest.approx(0.6)
    assert groups["LongQA: computation", "rag"]["scores"]["token_f1"] == 0.4
    assert groups["LongQA", "rag"]["cases"] == 2 and groups["LongQA", "rag"]["fit"] == 1
    text = loogle.text_table(loogle.groups_of(rows))
    assert "60.0" in text and "1/2" in text and "0/1" in text


def test_cloze_means_are_over_masks():
    one, three = json.dumps({"a": "x"}), json.dumps({"a": "x", "b": "y", "c": "z"})
    rows = [
        row("shortdep_cloze", "shortdep_cloze", "lift", {"exact_match": 0.0}, [one]),
        row("shortdep_cloze", "shortdep_cloze", "lift", {"exact_match": 1.0}, [three], case="2"),
    ]
    assert loogle.groups_of(rows)[0]["scores"] == {"exact_match": 0.75}


def test_bert_score_is_added_to_texts(monkeypatch):
    rows = [
        row("shortdep_qa", "shortdep_qa", "lift", {"token_f1": 0.5}),
        row("shortdep_cloze", "shortdep_cloze", "lift", {"exact_match": 1.0}, ["{}"]),
        row("longdep_qa", "computation", "lift", None),
    ]
    monkeypatch.setattr(metrics, "bert_score", lambda said, wanted, model: [0.75] * len(said))
    scores = [r["scores"] for r in loogle.add_bert_score(rows, None)]
    assert scores == [{"token_f1": 0.5, "bert_score": 0.75}, {"exact_match": 1.0}, None]


@pytest.fixture
def arguments(data, tiny_folder, tmp_path):
    return [
        *(str(data), "--model", str(tiny_folder), "--device", "cpu", "--dtype", "fp32"),
        *("--method", "truncated-icl", "lift", "--max-new-tokens", "3", "--window", "200"),
        *("--epochs", "1", "--segment-length", "16", "--rank", "2", "--out", str(tmp_path / "out")),
    ]


def test_a_run_answers_everything_and_goes_on_after_a_kill(
    arguments, tmp_path, monkeypatch, capsys
):
    pytest.importorskip("rouge")
    pytest.importorskip("nltk")
    assert loogle.main(arguments) == 0
    out = tmp_path / "out"
    table = capsys.readouterr().out
    assert "ShortQA" in table and "LongQA: computation" in table and "cloze" in table
    whole = (out / "loogle.jsonl").read_bytes()
    rows = [json.loads(line) for line in whole.splitlines()][1:]
    assert len(rows) == 2 * 6
    assert {r["method"] for r in rows} == {"truncated-icl", "lift"}
    assert all(r["scores"] is not None for r in rows)
    assert TEXT.strip() not in whole.decode()  # the document stays where it is
    summary = json.loads((out / "loogle.json").read_text())
    assert summary["settings"]["window"] == 200 and summary["groups"][0]["cases"] == 2
    assert str(tmp_path) not in summary["command"]
    assert not (out / "loogle.memories").exists()

    class Killed(BaseException):
        pass

    calls, score = [], loogle.score

    def dies(case, answer):
        calls.append(case)
        if len(calls) == 4 + 7:  # four calls look for missing packages
            raise Killed
        return score(case, answer)

    again = [*arguments[:-1], str(tmp_path / "again")]
    monkeypatch.setattr(loogle, "score", dies)
    with pytest.raises(Killed):
        loogle.main(again)
    monkeypatch.setattr(loogle, "score", score)
    with (tmp_path / "again" / "loogle.jsonl").open("a") as file:
        file.write('{"case": "torn')
    assert loogle.main(again) == 0
    assert (tmp_path / "again" / "loogle.jsonl").read_bytes() == whole
    if importlib.util.find_spec("matplotlib"):
        assert (out / "loogle.png").stat().st_size > 5000


def test_wrong_wishes_are_errors_of_one_line(arguments, capsys, monkeypatch):
    pytest.importorskip("rouge")
    monkeypatch.setattr("bench.evaluations.methods.models.load", None)  # nothing may be loaded
    monkeypatch.setattr("bench.evaluations.judge.PAUSE", 0)
    for extra, message in (
        (["--task", "shortqa"], "unknown task 'shortqa'"),
        (["--documents", "Nothing"], "no document is called Nothing"),
        (["--method", "magic"], "unknown method 'magic'"),
        (["--report-only"], "no results in"),
        (["--judge", "http://127.0.0.1:1/v1", "--judge-model", "m"], "the judge cannot be asked"),
    ):
        assert loogle.main([*arguments, *extra]) == 1
        assert message in capsys.readouterr().err
    assert loogle.main(["/no/such/folder"]) == 1
    assert "no such file or folder" in capsys.readouterr().err


@needs("bm25s")
@pytest.mark.parametrize(
    ("package", "options", "extra"),
    [
        ("rouge", [], "eval"),
        ("bm25s", ["--method", "lift", "rag"], "documents"),
        ("bert_score", ["--bert-score"], "bertscore"),
    ],
)
def test_a_missing_library_is_missed_before_the_model_is_loaded(
    package, options, extra, arguments, capsys, monkeypatch
):
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.setattr("bench.evaluations.evaluate.models.load", None)
    assert loogle.main([*arguments, *options]) == 1
    assert f"pip install 'liftcore[{extra}]'" in capsys.readouterr().err


def test_the_question_said_again_is_the_floor():
    pytest.importorskip("rouge")
    row = {
        "case": "a", "document": "d", "task": "longdep_qa", "kind": "computation", "method": "lift",
        "question": "How old is the mill?", "answers": ["The mill is 31 years old"], "answer": "31",
        "scores": {"token_f1": 0.2}, "answer_seconds": 1.0, "prepare_seconds": 1.0,
    }  # fmt: skip
    (echo,) = loogle.echoes([row, {**row, "method": "rag"}, {**row, "task": "shortdep_cloze"}])
    assert echo["method"] == loogle.ECHO and echo["answer_seconds"] is None
    # "how old is mill" against "mill is 31 years old": 3 of 4 and 3 of 5 words.
    assert echo["scores"]["token_f1"] == pytest.approx(2 * 3 / 9)
    assert [g["method"] for g in loogle.groups_of([row, echo])[:2]] == ["lift", loogle.ECHO]
