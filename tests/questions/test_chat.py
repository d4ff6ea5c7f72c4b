"""What a server's failures cost: each is asked again where that helps, and given up where not."""

import threading
import time

import pytest
from stub_server import Stub, collect, good, number, sentence_of, start

from liftcore.questions import client as chat


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    for name in chat.KEYS:
        monkeypatch.delenv(name, raising=False)


TRANSIENT = {
    "HTTP 500": (500, "oh no", {}),
    "HTTP 429": (429, "slow down", {"Retry-After": "0"}),
    "HTTP 503": (503, "", {}),
    "time-out": "hang",
    "connection lost": "drop",
    "half an answer": "cut",
    "invalid JSON": "I would rather not.",
    "wrong schema": '[{"frage": "Wer?", "antwort": "Ann"}]',
    "not a chat completion": (200, '{"choices": []}', {}),
    "empty answer": " ",
}


REASON = {"half an answer": "connection lost"}


@pytest.mark.parametrize("kind", TRANSIENT)
def test_what_fails_once_is_asked_again(kind):
    def behave(n, request, count):
        fails = number(request) in (1, 5) and count == 1
        return TRANSIENT[kind] if fails else good(sentence_of(request))

    with Stub(behave) as stub:
        source = start(stub, timeout=0.5 if kind == "time-out" else 5.0)
        assert [p.window for p in collect(source)] == list(range(12))
        assert source.summary()["failed"] == 0 and not source.failures and source.stopped == ""
        assert len(stub.requests) == 14


@pytest.mark.parametrize("kind", TRANSIENT)
def test_what_fails_for_good_costs_its_window_alone(kind):
    def behave(n, request, count):
        return TRANSIENT[kind] if number(request) == 5 else good(sentence_of(request))

    with Stub(behave) as stub:
        source = start(stub, retries=2, timeout=0.3 if kind == "time-out" else 5.0)
        pairs = collect(source)
        assert [p.window for p in pairs] == [n for n in range(12) if n != 5]
        assert source.failures == {REASON.get(kind, kind): 1} and source.summary()["failed"] == 1
        assert sum(number(r) == 5 for r in stub.requests) == 3


def test_a_server_that_answers_one_after_the_other_gets_as_many_as_it_can_answer():
    one = threading.Lock()

    def behave(n, request, count):
        if not one.acquire(timeout=0.4):  # the client has gone
            return "drop"
        time.sleep(0.04)
        one.release()
        return good(sentence_of(request))

    text = " ".join(f"Sentence {n} tells of ship {n} in the harbour." for n in range(60))
    with Stub(behave) as stub:
        source = start(stub, text, timeout=0.4)
        assert (
            len(collect(source, 60)) == 60
            and source.summary()["failed"] == 0
            and not source.stopped
        )
        assert source._slots.allowed < 16


def test_an_answer_begins_the_count_of_silent_windows_anew():
    def behave(n, request, count):
        return good(sentence_of(request)) if number(request) % 6 == 5 else "drop"

    text = " ".join(f"Sentence {n} tells of ship {n} in the harbour." for n in range(30))
    with Stub(behave) as stub:
        source = start(stub, text, retries=0, concurrency=1)
        assert len(collect(source)) == 5 and source.summary()["failed"] == 25 and not source.stopped


def test_a_server_that_drips_is_cut_off_in_time():
    with Stub(lambda *_: "drip") as stub:
        source = start(stub, "One sentence.", timeout=0.4, retries=0)
        assert source.wait(5) and source.failures == {"time-out": 1}


def test_retry_after_holds_all_requests_back():
    def behave(n, request, count):
        return (429, "", {"Retry-After": "0.6"}) if n == 0 else good(sentence_of(request))

    with Stub(behave) as stub:
        source = start(stub, concurrency=1)
        assert len(collect(source)) == 12 and source.summary()["failed"] == 0
        assert stub.times[1] - stub.times[0] >= 0.6
    with Stub(lambda *_: (429, "", {"Retry-After": "86400"})) as stub:
        source = start(stub, "One sentence.")
        assert source.wait(5) and source.failures == {"HTTP 429": 1}
        assert len(stub.requests) == 1


def test_retry_after_may_be_a_date():
    assert chat._seconds("Wed, 21 Oct 2015 07:28:00 GMT") == 0.0
    assert 80 < chat._seconds(time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime(
        time.time() + 90))) <= 90  # fmt: skip
    assert chat._seconds("soon") is None and chat._seconds("1.5") == 1.5


def test_optional_parameters_that_are_refused_are_left_out():
    def strict(n, request, count):
        if "response_format" in request:
            return 422, '{"detail": "Unexpected fields in the request: {\'response_format\'}"}', {}
        if "max_tokens" in request:
            return 400, '{"error": {"message": "use max_completion_tokens, not max_tokens"}}', {}
        return good(sentence_of(request))

    with Stub(strict) as stub:
        source = start(stub, concurrency=3, max_tokens=77)
        assert len(collect(source)) == 12 and source.summary()["failed"] == 0
        assert stub.requests[-1]["max_completion_tokens"] == 77
        assert "temperature" in stub.requests[-1]
        assert len(stub.requests) <= 12 + 2 * 3, "each thread learns it once at most"


def test_a_refusal_that_cannot_be_helped_is_not_asked_again():
    with Stub(lambda *_: (400, '{"error": {"message": "context too long"}}', {})) as stub:
        source = start(stub)
        assert collect(source) == [] and source.failures == {"HTTP 400": 12}
        assert all(c <= 2 for c in stub.counts.values()), "once with response_format, once without"


def test_a_server_that_refuses_everything_is_asked_no_more():
    with Stub(lambda *_: (401, '{"error": {"message": "bad key"}}', {})) as stub:
        source = start(stub, concurrency=2)
        assert collect(source) == [] and source.summary()["failed"] == 12
        assert len(stub.requests) <= 3
        assert "refuses" in source.stopped and "HTTP 401: bad key" in source.stopped


def test_redirects_are_not_followed(monkeypatch):
    monkeypatch.setenv("LIFTCORE_QA_KEY", "sk-secret")
    with Stub() as other, Stub(lambda *_: (307, "", {"Location": other.url})) as stub:
        source = start(stub)
        assert collect(source) == [] and "HTTP 307" in source.stopped
        assert not other.requests


def test_a_server_that_is_gone_is_given_up_soon():
    stub = Stub()
    stub.close()
    text = " ".join(f"Sentence {n} is here." for n in range(200))
    source = start(stub, text, concurrency=4)
    assert collect(source) == [] and source.summary()["failed"] == 200
    assert "does not answer" in source.stopped and "connection refused" in source.stopped
    assert source.failures["connection refused"] < 20
    assert source.failures["not asked any more"] > 180
