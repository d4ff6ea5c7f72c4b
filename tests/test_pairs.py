"""Pairs: the user's file, what counts as the same question, and evidence."""

import json

import pytest

from liftcore.errors import LiftError
from liftcore.objectives.pairs import Deduplicator, GivenPairs, Pair, read_pairs, stands_in


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
