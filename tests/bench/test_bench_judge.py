"""The judge against a stub of an OpenAI-compatible server."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from bench.evaluations import judge
from bench.evaluations.judge import Judge, judge_rows
from liftcore.errors import LiftError
from liftcore.questions import client as chat


class Stub(BaseHTTPRequestHandler):
    """Answers from `replies` (a status, or the message's text), and keeps what it was sent."""

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.asked.append((self.path, dict(self.headers), body))
        replies = self.server.replies
        reply = replies(body) if callable(replies) else replies.pop(0)
        status, text = (reply, "no") if isinstance(reply, int) else (200, reply)
        answer = json.dumps({"choices": [{"message": {"content": text}}]}).encode()
        self.send_response(status)
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_):
        pass


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(judge, "PAUSE", 0)
    for name in chat.KEYS:
        monkeypatch.delenv(name, raising=False)
    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Stub)
    httpd.asked, httpd.replies = [], []
    httpd.url = f"http://127.0.0.1:{httpd.server_port}/v1"
    thread = threading.Thread(target=httpd.serve_forever, args=(0.01,))
    thread.start()
    yield httpd
    httpd.shutdown()
    thread.join()
    httpd.server_close()


def test_same_reads_one_word(server):
    server.replies = ['{"same": true}', " false.", "TRUE because", "I cannot say", "untrue", ""]
    ask = Judge(server.url, "m").same
    assert [ask("q {}", "a", "b") for _ in range(6)] == [1, 0, 1, None, None, None]
    path, headers, body = server.asked[0]
    assert path == "/v1/chat/completions" and "Authorization" not in headers
    assert body["model"] == "m" and body["temperature"] == 0
    asked = body["messages"][0]["content"]
    assert asked.endswith("Question: q {}\nReference: a\nCandidate: b")
    assert '{"same": true}' in asked


def test_grade_reads_a_number(server):
    server.replies = ['{"grade": 85}', "Score: 7 of 100", "none", "250"]
    ask = Judge(server.url, "m").grade
    assert [ask("a", "b") for _ in range(4)] == [0.85, 0.07, None, 1.0]
    assert '{"grade": 50}' in server.asked[0][2]["messages"][0]["content"]


def test_the_key_is_sent_and_never_shown(server, monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    server.replies = ["True", 401]
    judge = Judge(server.url, "m")
    rows = judge_rows([row("1")], tmp_path / "verdicts.jsonl", judge)
    assert server.asked[0][1]["Authorization"] == "Bearer sk-secret"
    with pytest.raises(LiftError, match="HTTP 401") as error:
        judge.same("q", "a", "b")
    shown = [str(error.value), repr(rows), *capsys.readouterr()]
    assert not any("secret" in s for s in [*shown, (tmp_path / "verdicts.jsonl").read_text()])


def test_a_busy_server_is_asked_again_and_a_broken_one_is_an_error(server):
    server.replies = [503, 429, "True"]
    assert Judge(server.url, "m").same("q", "a", "b") == 1
    server.replies = [500] * judge.TRIES
    with pytest.raises(LiftError, match="the judge cannot be asked: HTTP 500"):
        Judge(server.url, "m").same("q", "a", "b")
    assert len(server.asked) == 3 + judge.TRIES
    server.replies = [403]  # is not tried again
    with pytest.raises(LiftError, match="HTTP 403"):
        Judge(server.url, "m").same("q", "a", "b")
    with pytest.raises(LiftError, match="connection refused"):
        Judge("http://127.0.0.1:1/v1", "m", timeout=1).same("q", "a", "b")
    with pytest.raises(LiftError, match="not the address of a server"):
        Judge("ftp://somewhere", "m")


def row(case, judged_as="same", answer="b", scores=True):
    return {
        "case": case,
        "method": "lift",
        "question": f"question {case}",
        "answers": ["a"],
        "answer": answer,
        "scores": {"token_f1": 0.5} if scores else None,
        "judged_as": judged_as,
    }


def test_rows_are_judged_once_and_keep_their_verdicts(server, tmp_path):
    rows = [row("1"), row("2", "grade"), row("3", None), row("4", answer=None, scores=False)]
    file = tmp_path / "verdicts.jsonl"
    server.replies = lambda body: "90" if "summary" in body["messages"][0]["content"] else "True"
    wanted = [1.0, 0.9, None, None]
    for asked in (2, 2):  # the second time all is known
        judged = judge_rows(rows, file, Judge(server.url, "m"))
        assert [(r["scores"] or {}).get("judge") for r in judged] == wanted
        assert len(server.asked) == asked
    assert [(r["scores"] or {}).get("judge") for r in judge_rows(rows, file, None)] == wanted
    assert [r["scores"] for r in rows[:1]] == [{"token_f1": 0.5}]  # the given rows stay
    other = {**rows[0], "answer": "c"}, {**rows[0], "question": "another"}
    for changed in (*other, {**rows[0], "answers": ["d"]}):
        assert judge_rows([changed], file, None)[0]["scores"] == {"token_f1": 0.5}
        assert judge_rows([changed], file, Judge(server.url, "m"))[0]["scores"]["judge"] == 1
    assert len(server.asked) == 5
    # A run that was killed goes on with what is missing.
    file.write_text(file.read_text().splitlines()[0] + '\n{"case": "2", "me')
    judge_rows(rows, file, Judge(server.url, "m"))
    assert len(server.asked) == 6
    assert [json.loads(line)["case"] for line in file.read_text().splitlines()] == ["1", "2"]


def test_another_judge_gives_verdicts_of_its_own(server, tmp_path):
    file = tmp_path / "verdicts.jsonl"
    server.replies = lambda body: "True" if body["model"] == "kind" else "False"
    for model, verdict in (("kind", 1), ("strict", 0), ("kind", 1)):
        (judged,) = judge_rows([row("1")], file, Judge(server.url, model))
        assert judged["scores"]["judge"] == verdict
    assert len(server.asked) == 2
    (judged,) = judge_rows([row("1")], file, None)
    assert judged["scores"]["judge"] == 0  # the last that was asked


def test_a_judge_can_be_tried_before_the_run(server):
    server.replies = ["anything", 401]
    Judge(server.url, "m").check()
    with pytest.raises(LiftError, match="the judge cannot be asked"):
        Judge(server.url, "m").check()
