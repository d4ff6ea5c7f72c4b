"""A language model behind an OpenAI-compatible server as the judge of answers.

The key comes from the environment alone, as liftcore.questions.client says.
"""

from __future__ import annotations

import hashlib
import json
import re
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from bench.common import append, read_lines
from liftcore.errors import LiftError
from liftcore.questions.client import ChatServer, ServerError

AT_ONCE, TRIES, PAUSE, LONGEST_PAUSE = 8, 5, 1.0, 60.0
SAME = """\
You get a question, its reference answer and a candidate answer. Does the candidate mean the same
as the reference? Reply as JSON: {{"same": true}} or {{"same": false}}.

Question: {question}
Reference: {answer}
Candidate: {candidate}"""
GRADE = """\
You get a reference summary and a candidate summary of one paper. Grade the candidate against the
reference for completeness, consistency, fluency and grammar, from 0 (worst) to 100. Reply as JSON:
{{"grade": 50}}.

Reference: {answer}
Candidate: {candidate}"""


class Judge:
    """Asks a model at a server's address (".../v1") whether answers are right.

    Raises UsageError for an address that is none.
    """

    def __init__(self, url: str, model: str, timeout: float = 60.0):
        self.server = ChatServer(url, model, temperature=0, max_tokens=32)
        self.timeout = timeout

    def same(self, question: str, answer: str, candidate: str) -> float | None:
        """1 or 0: whether the candidate answers the question as the reference does.

        None when the judge says neither. Raises LiftError when the server cannot be asked.
        """
        reply = self._ask(SAME.format(question=question, answer=answer, candidate=candidate))
        said = re.search(r"\b(true|false)\b", reply, re.IGNORECASE)
        return float(said.group().lower() == "true") if said else None

    def grade(self, answer: str, candidate: str) -> float | None:
        """How good a summary is against the reference, from 0 to 1; None without a number."""
        number = re.search(r"\d+", self._ask(GRADE.format(answer=answer, candidate=candidate)))
        return min(100, int(number.group())) / 100 if number else None

    def check(self) -> None:
        """Asks for one verdict. Raises LiftError when the server cannot be asked."""
        self.same("What is one and one?", "two", "2")

    def _ask(self, text: str) -> str:
        attempt = 0
        while True:
            attempt += 1
            try:
                return self.server.ask([{"role": "user", "content": text}], self.timeout)
            except ServerError as error:
                if error.reason == "empty answer":
                    return ""
                if attempt == TRIES or not error.retry:
                    raise LiftError(f"the judge cannot be asked: {error}") from None
                time.sleep(min(LONGEST_PAUSE, (error.after or 0) + PAUSE * 2 ** (attempt - 1)))


def judge_rows(rows: list[dict], file: Path, judge: Judge | None) -> list[dict]:
    """Rows with the score "judge" added where they have a verdict.

    Verdicts are kept in `file`, a line each. Each judge is asked once for a verdict on the same
    question, reference and answer; without a judge none is asked for, and the verdicts are those
    of the judge of the file's last line. A row is judged when it has an answer and its
    "judged_as" is "same" or "grade".
    """
    lines = read_lines(file)
    model = judge.server.model if judge else lines[-1]["model"] if lines else None
    known = {
        (v["case"], v["method"], v.get("digest")): v["verdict"]
        for v in lines
        if v["model"] == model
    }
    if judge is not None:
        wanted = [r for r in rows if r.get("judged_as") and r["answer"] is not None]
        _ask_for([r for r in wanted if _key(r) not in known], file, judge, known)
    return [_with_verdict(row, known) for row in rows]


def _key(row: dict) -> tuple[str, str, str]:
    """(case, method, digest of all that a verdict depends on beside the judge)"""
    judged = json.dumps([row.get(k) for k in ("judged_as", "question", "answers", "answer")])
    return row["case"], row["method"], hashlib.sha256(judged.encode()).hexdigest()[:16]


def _ask_for(rows: list[dict], file: Path, judge: Judge, known: dict) -> None:
    def verdict(row: dict) -> float | None:
        if row["judged_as"] == "grade":
            return judge.grade(row["answers"][0], row["answer"])
        return judge.same(row["question"], row["answers"][0], row["answer"])

    pool = ThreadPoolExecutor(AT_ONCE)
    try:
        for row, verdict_given in zip(rows, pool.map(verdict, rows), strict=True):
            line = dict(zip(("case", "method", "digest"), key := _key(row), strict=True))
            append(file, {**line, "verdict": verdict_given, "model": judge.server.model})
            known[key] = verdict_given
    finally:
        # After a failure the requests that wait are not worth waiting for.
        pool.shutdown(wait=False, cancel_futures=True)


def _with_verdict(row: dict, known: dict) -> dict:
    if row["scores"] is None or (key := _key(row)) not in known:
        return row
    return {**row, "scores": {**row["scores"], "judge": known[key]}}
