"""Pairs: the user's file, what counts as the same question, and evidence."""

import json

import pytest

from liftcore.errors import LiftError
from liftcore.questions.pairs import Deduplicator, GivenPairs, Pair, read_pairs, stands_in


def write(folder, *lines):
    file = folder / "pairs.jsonl"
    file.write_bytes("\n".join(lines).encode())
    return file


def test_reads_the_users_pairs(tmp_path):
    file = write(
        tmp_path,
        "\ufeff" + json.dumps({"question": " Who? ", "answer": "Ann\n", "id": 7}) + "\r",
        "",
        '{"question": "Wo\u2028her?", "answer": "Köln", "evidence": "aus Köln"}',
        json.dumps({"question": "WHO", "answer": "somebody else"}),
    )
    assert read_pairs(file) == [Pair("Who?", "Ann"), Pair("Wo\u2028her?", "Köln", "aus Köln")]


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("{", "line 2: not JSON"),
        ("[" * 100_000, "line 2: not JSON"),
        ('["a", "b"]', "line 2: not a JSON object"),
        ('{"question": "Who?"}', "line 2: answer is missing"),
        ('{"question": " ", "answer": "b"}', "line 2: question is missing"),
        ('{"question": "Who?", "answer": 3}', "line 2: answer is missing, empty or not a string"),
        ('{"question": "?!", "answer": "b"}', "line 2: the question has no words"),
        ('{"question": "Who?", "answer": "b", "evidence": [1]}', "line 2: evidence"),
    ],
)
def test_a_bad_line_is_named(tmp_path, line, says):
    file = write(tmp_path, '{"question": "a", "answer": "b"}', line)
    with pytest.raises(LiftError, match=says):
        read_pairs(file)


def test_a_file_without_pairs(tmp_path):
    with pytest.raises(LiftError, match="holds no question-answer pairs"):
        read_pairs(write(tmp_path, "", " "))
    with pytest.raises(LiftError, match="no such file"):
        read_pairs(tmp_path / "none.jsonl")


def test_a_question_counts_once_across_calls():
    seen = Deduplicator()
    first = [Pair("Who built  the “Mole”?", "a"), Pair("Who built it?", "b")]
    assert seen.fresh(first) == first
    assert seen.fresh([Pair('who built the "mole"', "c"), Pair("When?", "d")]) == [
        Pair("When?", "d")
    ]


def test_evidence_but_for_case_spaces_and_quotes():
    text = "It was called\n  ‘the  Ladder’ – a stair of 210 paces."
    assert stands_in("'The Ladder' - a stair", text)
    assert stands_in('"... of 210 paces..."', text)
    assert not stands_in("a stair of 220 paces", text)
    assert stands_in("art", "The art of it.") and not stands_in("art", "The party went on.")
    assert not stands_in(" ", text) and not stands_in('"."', text)


def test_given_pairs_come_once():
    source = GivenPairs([Pair("a", "b")])
    assert (source.expected, source.done) == (1, False)
    assert source.poll() == [Pair("a", "b")]
    assert source.poll() == [] and source.done and source.expected == 1
    assert GivenPairs([]).done


@pytest.mark.parametrize(
    "questions",
    [
        ("What is C?", "What is C++?", "What is C#?", "What is C*?"),
        ("Was sind Maße?", "Was sind Masse?"),
        ("What is ??", "What is .?", "What is ?"),
        ("दिन क्या है?", "दान क्या है?", "दीन क्या है?"),
        ("What is x²?", "What is x2?"),
        ("Is it 5 or -5?", "Is it 5 or 5?"),
        ("What is 1.5?", "What is 15?", "What is 1 5?"),
        ("What is 5!?", "What is 5?"),
        ("What is [0, 1]?", "What is (0, 1)?"),
        ("What is blood of type A+?", "What is blood of type A-?", "What is blood of type A?"),
        ("What is 🙂?", "What is 🙁?"),
        ("Who is Zoe\u0308?", "Who is Zoe?"),
    ],
)
def test_symbols_and_vowel_signs_tell_questions_apart(tmp_path, questions):
    lines = [json.dumps({"question": q, "answer": str(n)}) for n, q in enumerate(questions)]
    assert [pair.question for pair in read_pairs(write(tmp_path, *lines))] == list(questions)


def test_questions_that_only_look_different_are_one():
    same = [
        "Who built  the “Mole”, and when?",
        'who built the "mole" and WHEN ?',
        "Who built the mole and when",
    ]
    assert len(Deduplicator().fresh([Pair(q, "a") for q in same])) == 1
    assert len(Deduplicator().fresh([Pair("Zoë?", "a"), Pair("ZOE\u0308", "b")])) == 1


def test_a_single_word_of_evidence_is_whole():
    assert not stands_in("14", "It left at 14:05.") and stands_in("14:05", "It left at 14:05.")
    assert not stands_in("C", "We use C++ here.") and stands_in("C", "C, and nothing else")
    assert not stands_in("द", "दिन")
