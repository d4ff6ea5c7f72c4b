"""Pairs from a server that misbehaves in every way: nothing is lost but the windows concerned."""

import json
import logging
import random
import threading
import time
import traceback

import pytest
from stub_server import TEXT, Stub, collect, good, number, sentence_of, start

from liftcore.errors import UsageError
from liftcore.questions import client as chat
from liftcore.questions.pairs import Pair
from liftcore.questions.server import ServerPairs


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    for name in chat.KEYS:
        monkeypatch.delenv(name, raising=False)


def test_every_sentence_is_asked_about_and_delivered_in_order():
    def slow(n, request, count):
        time.sleep(random.random() * 0.05)
        return good(sentence_of(request))

    with Stub(slow) as stub:
        source = start(stub)
        pairs = collect(source)
    assert [p.window for p in pairs] == list(range(12))
    assert pairs[3].question == "What of: Sentence 3 tells of ship 3 in the harbour.?"
    assert pairs[3].evidence == "Sentence 3 tells of ship 3 in"
    assert sorted(map(number, stub.requests)) == list(range(12))
    assert stub.headers[0][0] == "/v1/chat/completions"
    request = stub.requests[0]
    assert request["model"] == "m" and request["response_format"] == {"type": "json_object"}
    assert all("Authorization" not in headers for _, headers in stub.headers)
    last = next(r for r in stub.requests if number(r) == 11)["messages"][-1]["content"]
    assert "The Book" in last and TEXT in last, "the text before the sentence is shown"


def test_requests_run_at_once_but_no_more_than_allowed():
    gate = threading.Barrier(6, timeout=10)

    def together(n, request, count):
        gate.wait()  # passes only when six requests are under way at once
        return good(sentence_of(request))

    with Stub(together) as stub:
        assert len(collect(start(stub, concurrency=6))) == 12
        assert stub.most_busy == 6


def test_what_is_ready_comes_before_the_end_but_never_out_of_order():
    release = threading.Event()

    def behave(n, request, count):
        if number(request) == 4:
            release.wait(20)
        return good(sentence_of(request))

    with Stub(behave) as stub:
        source = start(stub)
        until = time.monotonic() + 20
        while source.summary()["open"] > 1 and time.monotonic() < until:
            time.sleep(0.005)
        assert [p.window for p in source.poll()] == [0, 1, 2, 3]
        assert source.poll() == [] and not source.done and not source.wait(0)
        assert source.expected == 12
        release.set()
        assert source.wait(20)
        assert [p.window for p in source.poll()] == list(range(4, 12)) and source.done


def test_a_server_stopped_in_the_middle_loses_only_what_is_missing(tmp_path):
    stub = Stub(lambda n, request, count: "drop" if n >= 7 else good(sentence_of(request)))
    with stub:
        source = start(stub, concurrency=1, retries=1, cache=tmp_path)
        pairs = collect(source)
    assert [p.window for p in pairs] == list(range(7)) and source.summary()["failed"] == 5
    with Stub() as again:
        source = start(again, cache=tmp_path)
        assert [p.window for p in collect(source)] == list(range(12))
        assert sorted(map(number, again.requests)) == list(range(7, 12))
        assert source.summary()["cached"] == 7


def test_a_second_run_asks_nothing(tmp_path):
    with Stub() as stub:
        first = collect(start(stub, cache=tmp_path))
        source = start(stub, cache=tmp_path)
        assert collect(source) == first and len(stub.requests) == 12
        assert source.summary()["cached"] == 12 and source.summary()["requests"] == 0
        damaged = next(f for f in sorted(tmp_path.rglob("*.json")))
        damaged.write_bytes(damaged.read_bytes()[:50])
        assert collect(start(stub, cache=tmp_path)) == first and len(stub.requests) == 13
        for other in ({"temperature": 0.1}, {"per_window": 3}, {"max_tokens": 9}, {"before": 5}):
            assert start(stub, cache=tmp_path, **other).wait(20)
        assert len(stub.requests) == 13 + 4 * 12 - 1, "the first sentence has nothing before it"


def test_only_good_pairs_pass():
    pairs = [
        {"question": "According to the text, who sailed?", "answer": "Ship 0.", "evidence": ""},
        {"question": "WHO  sailed", "answer": "Another."},
        {"question": "Who sank?", "answer": "Ship 9.", "evidence": "ship 9 sank at sea"},
        {"question": "Where is it?", "answer": "There", "evidence": "IN the\nharbour"},
        {"question": "Why?"},
        {"question": "?", "answer": "b"},
        {"Question": "How many?", "Answer": 3},
        {"question": "One more?", "answer": "yes"},
    ]
    fenced = f"<think>[1]</think>Here you are:\n```json\n{json.dumps(pairs)}\n```\nBye {{}}"
    with Stub(lambda *_: fenced) as stub:
        source = start(stub, "Sentence 0 tells of ship 0 in the harbour.", per_window=4)
        found = collect(source)
    assert found == [
        Pair("Who sailed?", "Ship 0.", "", 0),
        Pair("Where is it?", "There", "IN the\nharbour", 0),
        Pair("How many?", "3", "", 0),
    ]
    assert +source.rejected == {
        "evidence not in the text": 1,
        "wrong schema": 2,
        "too many": 1,
        "duplicate": 1,
    }


@pytest.mark.parametrize(
    ("content", "questions"),
    [
        ('{"pairs": [{"question": "A?", "answer": "1"}, {"question": "B?", "ans', ["A?"]),
        ('{"question": "A?", "answer": "1"}\n{"question": "B?", "answer": "2"}', ["A?", "B?"]),
        ('{"a": [{"question": "A?", "answer": "1"}], "b": [{"question": "B?", "answer": "2"}]}',
         ["A?", "B?"]),
        ('[{"question": "A [1] {", "answer": "1\n2"}]', ["A [1] {"]),
        ("[]", []),
        ('```json\n{"pairs": []}\n```', []),
    ],
)  # fmt: skip
def test_forms_of_answers(content, questions):
    with Stub(lambda *_: content) as stub:
        source = start(stub, "One sentence.")
        assert [p.question for p in collect(source)] == questions and not source.summary()["failed"]


def test_the_key_goes_into_one_header_and_nowhere_else(tmp_path, monkeypatch, caplog, capfd):
    key = "sk-" + "".join(random.choices("abcdefgh", k=20))
    monkeypatch.setenv("OPENAI_API_KEY", "sk-other-key")
    monkeypatch.setenv("LIFTCORE_QA_KEY", f" {key}\n")
    caplog.set_level(logging.DEBUG)

    def echo(n, request, count):
        if n % 3 == 0:
            return 500, f"no such key: {key}", {}
        return good(sentence_of(request))

    with Stub(echo) as stub:
        source = start(stub, cache=tmp_path, retries=6)
        pairs = collect(source)
        assert all(h["Authorization"] == f"Bearer {key}" for _, h in stub.headers)
    texts = [repr(source), str(vars(source)), str(vars(source._server)), str(source.summary())]
    texts += [repr(pairs), caplog.text, *capfd.readouterr()]
    texts += [f.read_text() for f in tmp_path.rglob("*.json")]
    with Stub(lambda *_: (401, f'{{"error": "Incorrect API key: {key}"}}', {})) as stub:
        refused = start(stub)
        assert refused.wait(20) and "Incorrect API key: ***" in refused.stopped
        texts += [refused.stopped, str(refused.summary())]
        server = refused._server
        server._closed = False
        with pytest.raises(chat.ServerError) as caught:
            server.ask([{"role": "user", "content": "<sentence>\nx\n</sentence>"}], 5)
        texts += ["".join(traceback.format_exception(caught.value))]
    assert not any(key in text for text in texts)


def test_the_other_key_is_used_where_ours_is_missing(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-other-key")
    with Stub() as stub:
        collect(start(stub))
        assert stub.headers[0][1]["Authorization"] == "Bearer sk-other-key"
        monkeypatch.setenv("LIFTCORE_QA_KEY", "")
        collect(start(stub))
        assert "Authorization" not in stub.headers[-1][1], "an empty key of ours is none"


@pytest.mark.parametrize("how", ["wrong key", "key in address", "no server", "no model", "none"])
def test_what_cannot_work_is_said_at_once_and_without_the_key(monkeypatch, how):
    url, model, settings = "http://127.0.0.1:9/v1", "m", {}
    if how == "wrong key":
        monkeypatch.setenv("LIFTCORE_QA_KEY", "sk-secret\nX-Evil: 1")
    elif how == "key in address":
        url = "http://me:sk-secret@127.0.0.1/v1"
    elif how == "no server":
        url = "127.0.0.1:8000/v1"
    elif how == "no model":
        model = ""
    else:
        settings = {"concurrency": 0}
    with pytest.raises(UsageError) as caught:
        ServerPairs(TEXT, "t", url, model, **settings)
    assert "secret" not in "".join(traceback.format_exception(caught.value))


def test_close_ends_everything_at_once():
    with Stub(lambda n, r, c: "hang" if number(r) > 2 else good(sentence_of(r))) as stub:
        source = start(stub, timeout=60)
        while source.summary()["answered"] < 3:
            time.sleep(0.005)
        began = time.monotonic()
        source.close()
        assert source.wait(0) and source.stopped == "closed" and source.summary()["failed"] == 9
        assert [p.window for p in source.poll()] == [0, 1, 2] and source.done
        while any(t.name.startswith("liftcore-qa") for t in threading.enumerate()):
            assert time.monotonic() - began < 10, "a thread still waits for its answer"
            time.sleep(0.01)


def test_a_defect_costs_its_window_not_the_run(monkeypatch):
    from liftcore.questions import server

    real = server.messages

    def broken(window, *rest):
        if window.number == 3:
            raise RuntimeError("a defect")
        return real(window, *rest)

    monkeypatch.setattr(server, "messages", broken)
    with Stub() as stub:
        source = start(stub)
        assert len(collect(source)) == 11 and source.failures == {"RuntimeError": 1}


def test_a_text_without_sentences():
    with Stub() as stub:
        source = start(stub, " \n * * * ")
        assert source.done and source.wait(0) and source.expected == 0 and source.poll() == []
        source.close()
