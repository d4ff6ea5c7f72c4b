"""The cache of answers: hits, damage, and writing whole files only."""

import json
import os
from concurrent.futures import ThreadPoolExecutor

import pytest

from liftcore.errors import LiftError
from liftcore.questions import cache as qa_cache
from liftcore.questions.cache import QaCache

REQUEST = {"model": "m", "messages": [{"role": "user", "content": "Köln?"}], "temperature": 0.5}
ANSWER = [{"question": "Wo?", "answer": "Köln \ud800"}]


def only_file(folder):
    (file,) = (f for f in folder.rglob("*") if f.is_file())
    return file


def test_an_answer_is_found_again_by_its_request_alone(tmp_path):
    QaCache(tmp_path / "new" / "folder").put(REQUEST, ANSWER)
    again = QaCache(tmp_path / "new" / "folder")
    assert again.get(dict(reversed(REQUEST.items()))) == ANSWER
    for key, other in (("model", "n"), ("temperature", 0.6), ("messages", [])):
        assert again.get({**REQUEST, key: other}) is None


@pytest.mark.parametrize(
    "damage",
    [
        lambda raw: raw[: len(raw) // 2],
        lambda raw: b"",
        lambda raw: b"\x80" + raw,
        lambda raw: b"[" * 100_000,
        lambda raw: raw.replace(b"Wo?", b"Wa?"),
        lambda raw: json.dumps([1]).encode(),
    ],
)
def test_a_damaged_file_counts_as_missing(tmp_path, damage):
    cache = QaCache(tmp_path)
    cache.put(REQUEST, ANSWER)
    file = only_file(tmp_path)
    file.write_bytes(damage(file.read_bytes()))
    assert cache.get(REQUEST) is None
    cache.put(REQUEST, ANSWER)
    assert cache.get(REQUEST) == ANSWER


def test_the_file_of_another_question_is_no_answer(tmp_path):
    cache = QaCache(tmp_path)
    cache.put(REQUEST, ANSWER)
    other = {**REQUEST, "model": "n"}
    target = tmp_path / qa_cache.key_of(other)[:2] / f"{qa_cache.key_of(other)}.json"
    target.parent.mkdir(exist_ok=True)
    os.replace(only_file(tmp_path), target)
    assert cache.get(other) is None


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    cache = QaCache(tmp_path)
    cache.put(REQUEST, ANSWER)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    cache.put(REQUEST, [])
    assert "No space left" in cache.problem
    assert cache.get(REQUEST) == ANSWER
    only_file(tmp_path)


def test_many_writers_of_one_answer(tmp_path):
    cache = QaCache(tmp_path)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda n: cache.put(REQUEST, ANSWER), range(64)))
    assert cache.get(REQUEST) == ANSWER and not cache.problem
    only_file(tmp_path)


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(LiftError, match="cannot make the folder"):
        QaCache(tmp_path / "file")
