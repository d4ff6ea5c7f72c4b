"""The LongBench evaluation on records of our own in the form of every English task."""

import json

import pytest

from bench.evaluations import longbench
from bench.evaluations.longbench import case_of, groups_of, read, score, text_table
from bench.evaluations.longbench_tasks import TASKS
from liftcore.errors import LiftError

STORY = "The mill at Orrin stands on the river. Ada Blum bought it in 1871 and sold it in 1902."
PARAGRAPHS = "Paragraph 1: A mill on a river.\n\nParagraph 2: A bridge of stone."
CODE = "".join(f"    step_{i} = {i}\n" for i in range(30))
CLASSES = ["Number of something", "Number", "Individual"]
# Task: input, context, answers, a right prediction, one that is wrong.
FORMS = {
    "narrativeqa": ("Who bought it?", STORY, ["Ada Blum", "Blum"], "blum.", "Nobody"),
    "qasper": ("Is it on a river?", STORY, ["Yes"], "yes", "unanswerable"),
    "multifieldqa_en": ("When was it sold?", STORY, ["In 1902"], "in 1902", "never"),
    "hotpotqa": ("When was it bought?", STORY, ["1871"], "1871", "1902"),
    "2wikimqa": ("When was it bought?", STORY, ["1871"], "1871", "1902"),
    "musique": ("When was it bought?", STORY, ["1871"], "1871", "1902"),
    "gov_report": ("", STORY, ["A mill was sold"], "A mill was sold", "Fish swim"),
    "qmsum": ("What did they say?", STORY, ["They sold it"], "They sold it", "Fish swim"),
    "multi_news": ("", STORY, ["A mill was sold"], "A mill was sold", "Fish swim"),
    "trec": (
        "Question: Who is it ?\nType:",
        "Question: How many ?\nType: Number",
        ["Individual"],
        "\nIndividual\nQuestion: How many ?\nType: Number",
        "Number\nIndividual",
    ),
    "triviaqa": (
        "Passage:\nA mill.\nQuestion: What is it?\nAnswer:",
        f"Passage:\n{STORY}\nQuestion: Who bought it?\nAnswer:\nAda Blum",
        ["a mill", "mill"],
        "mill\nPassage: a bridge",
        "bridge\nmill",
    ),
    "samsum": (
        "Dialogue: A: Hello! B: Bye!\nSummary: ",
        "Dialogue: A: Is it sold? B: Yes.\nSummary: It is sold.",
        ["They greet"],
        "They greet\nDialogue: more",
        "Fish swim\nThey greet",
    ),
    "passage_count": ("", PARAGRAPHS, ["2"], "2", "12"),
    "passage_retrieval_en": ("It tells of stone.", PARAGRAPHS, ["Paragraph 2"], "2", "Paragraph 1"),
    "lcc": ("", CODE, ["    return step_1"], "\n    return step_1\n}", "# nothing"),
    "repobench-p": ("    x = 1\n    y = 2\n", CODE, ["    return x"], "    return x", "// no"),
}  # fmt: skip


def line(task, number=0, **changes):
    question, context, answers, *_ = FORMS[task]
    row = {
        "input": question,
        "context": context,
        "answers": answers,
        "length": 100 + number,
        "dataset": task,
        "language": "python" if task in ("lcc", "repobench-p") else "en",
        "all_classes": CLASSES if task == "trec" else None,
        "_id": f"{task}-{number}",
    }
    return json.dumps({**row, **changes}) + "\n"


@pytest.fixture
def arguments(data, tiny_folder, tmp_path):
    return [
        *(str(data), "--model", str(tiny_folder), "--device", "cpu", "--dtype", "fp32"),
        *("--method", "truncated-icl", "--max-new-tokens", "2", "--out", str(tmp_path / "out")),
    ]


@pytest.fixture
def data(tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    for task in FORMS:
        (folder / f"{task}.jsonl").write_text(line(task) + line(task, 1))
    return folder


def test_every_english_task_is_known_with_its_length():
    assert set(TASKS) == set(FORMS)
    lengths = {name: task.max_new_tokens for name, task in TASKS.items()}
    assert lengths == {
        **dict.fromkeys(("narrativeqa", "qasper", "samsum"), 128),
        **dict.fromkeys(("multifieldqa_en", "trec", "lcc", "repobench-p"), 64),
        **dict.fromkeys(("hotpotqa", "2wikimqa", "musique", "triviaqa"), 32),
        **dict.fromkeys(("passage_count", "passage_retrieval_en"), 32),
        **dict.fromkeys(("gov_report", "qmsum", "multi_news"), 512),
    }


@pytest.mark.parametrize("task", FORMS)
def test_a_right_answer_scores_full_and_a_wrong_one_nothing(task, data):
    if TASKS[task].metric.__name__ == "rouge_l":
        pytest.importorskip("rouge")
    case, _ = case_of(read(data / f"{task}.jsonl")[0], None)
    right, wrong = FORMS[task][3:]
    assert score(case, right)["score"] == pytest.approx(1, abs=1e-6)
    assert score(case, wrong)["score"] == 0
    assert score(case, "")["score"] == 0


@pytest.mark.parametrize("task", FORMS)
def test_prompts_hold_context_and_question_and_end_where_the_answer_begins(task, data, tokenizer):
    case, text = case_of(read(data / f"{task}.jsonl")[0], None)
    question, context, *_ = FORMS[task]
    whole = tokenizer.decode(case.prompt.ids(tokenizer, "", text.text, case.question))
    alone = tokenizer.decode(case.prompt.ids(tokenizer, "", "", case.question))
    assert context.rstrip("\n") in whole and context.rstrip("\n") not in alone
    assert question.rstrip("\n") in whole and question.rstrip("\n") in alone
    assert case.question  # a retrieval method needs something to look for
    few_shot = task in ("trec", "triviaqa", "samsum", "lcc", "repobench-p")
    assert ("<|im_start|>" in whole) != few_shot
    if task in ("trec", "triviaqa", "samsum"):
        assert whole.endswith(question) and alone.endswith(question)


def test_the_last_lines_of_code_are_the_question(data):
    case, text = case_of(read(data / "lcc.jsonl")[0], None)
    assert text.text + case.question + "\n" == CODE
    assert case.question.splitlines() == CODE.splitlines()[-20:]
    (data / "lcc.jsonl").write_text(line("lcc", context="x = 1"))
    assert case_of(read(data / "lcc.jsonl")[0], None)[1].text == "x = 1"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"answers": []}, "answers and all_classes must be texts"),
        ({"answers": [3]}, "answers and all_classes must be texts"),
        ({"context": None}, "the field 'context'"),
        ({"dataset": "qmsum"}, "a record of qmsum in the file of musique"),
        ({"language": "zh"}, "only English"),
        ({"_id": 3}, "the field '_id'"),
    ],
)
def test_what_is_wrong_is_said_with_file_and_line(changes, message, tmp_path):
    file = tmp_path / "musique.jsonl"
    file.write_text(line("musique") + line("musique", 1, **changes))
    with pytest.raises(LiftError, match=f"{file}:2: .*{message}"):
        read(file)


def test_an_id_that_comes_twice_is_an_error(tmp_path):
    file = tmp_path / "musique.jsonl"
    file.write_text(line("musique") * 2)
    with pytest.raises(LiftError, match="the same _id twice"):
        read(file)


def test_an_id_that_stands_in_two_files_is_an_error(data, tmp_path, capsys):
    (tmp_path / "musique.jsonl").write_text(line("musique"))
    assert longbench.main([str(data), str(tmp_path), "--task", "musique"]) == 1
    assert "'musique musique-0' 2 times" in capsys.readouterr().err


def row(task, method, value, length=100, case="0"):
    scores = None if value is None else {"score": value}
    return {"case": f"{task} {case}", "method": method, "document": f"{task} {case}",
            "task": task, "length": length, "scores": scores, "answer_seconds": 1.0}  # fmt: skip


def test_groups_and_table():
    rows = [
        row("qmsum", "rag", 0.5),
        row("musique", "rag", 0.2),
        row("musique", "rag", 0.4, case="1"),
        row("musique", "full-icl", None),
        row("musique", "full-icl", 1.0, case="1"),
    ]
    groups = groups_of(rows)
    assert [(g["group"], g["method"]) for g in groups] == [
        ("musique", "rag"),
        ("musique", "full-icl"),
        ("qmsum", "rag"),
    ]
    lines = [part.split() for part in text_table(groups).splitlines()]
    assert lines[1] == ["musique", "2", "30.00", "100.00", "(1", "of", "2)"]
    assert lines[-1] == ["mean", "3", "40.00"]  # full-icl has no score on qmsum, so no mean
    rows.append(row("qmsum", "full-icl", 0.5))
    last = text_table(groups_of(rows)).splitlines()[-1].split()
    assert last == ["mean", "3", "40.00", "75.00", "(2", "of", "3)"]


def test_longbench_e_is_reported_by_length():
    rows = [row("trec_e", "rag", s, n) for s, n in ((1.0, 9000), (0.0, 3999), (0.5, 4000))]
    assert [g["group"] for g in groups_of(rows)] == ["trec_e 0-4k", "trec_e 4-8k", "trec_e 8k+"]


def test_a_run_over_all_tasks(arguments, data, tmp_path, capsys):
    pytest.importorskip("rouge")
    out = tmp_path / "out"
    arguments = [*arguments, "--limit", "1"]
    assert longbench.main(arguments) == 0
    table = capsys.readouterr().out
    assert all(task in table for task in TASKS) and "mean" in table
    before = (out / "longbench.jsonl").read_bytes()
    assert len(before.splitlines()) == 1 + len(TASKS)
    lift = ["--method", "lift", "--task", "trec", "--epochs", "1", "--rank", "2"]
    assert longbench.main([*arguments, *lift]) == 1  # other settings of training
    assert "other settings (config)" in capsys.readouterr().err
    lift[-4:] = []
    assert longbench.main([*arguments, "--segment-length", "16"]) == 1
    other = [*arguments, "--out", str(tmp_path / "lift"), *lift, "--segment-length", "16"]
    assert longbench.main([*other, "--epochs", "1", "--rank", "2"]) == 0
    assert "trec" in capsys.readouterr().out
    assert longbench.main([str(data), "--task", "trek"]) == 1
    assert "unknown task 'trek'" in capsys.readouterr().err


@pytest.mark.parametrize(
    "changes",
    [{"context": STORY + " "}, {"input": "Who?"}, {"answers": ["1872"]}],
    ids=["context", "question", "answers"],
)
def test_rows_of_other_data_are_refused_and_more_cases_go_on(
    changes, arguments, data, tmp_path, capsys
):
    file = tmp_path / "out" / "longbench.jsonl"
    musique = [*arguments, "--task", "musique"]
    assert longbench.main([*musique, "--limit", "1"]) == 0
    first = file.read_bytes()
    assert longbench.main(musique) == 0
    assert longbench.main([*arguments, "--task", "hotpotqa", "--limit", "1"]) == 0
    whole = file.read_bytes()
    assert whole.startswith(first) and whole.count(b"\n") == 1 + 2 + 1
    (data / "musique.jsonl").write_text(line("musique") + line("musique", 1, **changes))
    capsys.readouterr()
    assert longbench.main(musique) == 1
    assert "the case 'musique musique-1' with other data" in capsys.readouterr().err
    assert file.read_bytes() == whole
    assert longbench.main([*musique, "--limit", "1"]) == 0  # the changed one is not asked for
    # Rows from before there was a digest are taken as they are.
    rows = [json.loads(row) for row in whole.splitlines()]
    for row in rows:
        row.pop("digest", None)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert longbench.main(musique) == 0
