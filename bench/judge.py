"""A language model behind an OpenAI-compatible server as the judge of answers.

The key comes from the environment alone, as liftcore.objectives.chat says.
"""

from __future__ import annotations

import re
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from bench.json_lines import append, read_lines
from liftcore.errors import LiftError
from liftcore.objectives.chat import ChatServer, ServerError

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

    def _ask(self, text: str) -> str:
        for attempt in range(TRIES):
            try:
                return self.server.ask([{"role": "user", "content": text}], self.timeout)
            except ServerError as error:
                if error.reason == "empty answer":
                    return ""
                if attempt + 1 == TRIES or not error.retry:
                    raise LiftError(f"the judge cannot be asked: {error}") from None
                time.sleep(min(LONGEST_PAUSE, (error.after or 0) + PAUSE * 2**attempt))


def judge_rows(rows: list[dict], file: Path, judge: Judge | None) -> list[dict]:
    """Rows with the score "judge" added where they have a verdict.

    Verdicts are kept in `file`, a line each, and asked for once; without a judge none is asked
    for. A row is judged when it has an answer and its "judged_as" is "same" or "grade".
    """
    known = {(v["case"], v["method"]): v["verdict"] for v in read_lines(file)}
    if judge is not None:
        wanted = [r for r in rows if r.get("judged_as") and r["answer"] is not None]
        _ask_for([r for r in wanted if (r["case"], r["method"]) not in known], file, judge, known)
    return [_with_verdict(row, known) for row in rows]


def _ask_for(rows: list[dict], file: Path, judge: Judge, known: dict) -> None:
    def verdict(row: dict) -> float | None:
        if row["judged_as"] == "grade":
            return judge.grade(row["answers"][0], row["answer"])
        return judge.same(row["question"], row["answers"][0], row["answer"])

    pool = ThreadPoolExecutor(AT_ONCE)
    try:
        for row, found in zip(rows, pool.map(verdict, rows), strict=True):
            line = {"case": row["case"], "method": row["method"], "verdict": found}
            append(file, {**line, "model": judge.server.model})
            known[row["case"], row["method"]] = found
    finally:
        # After a failure the requests that wait are not worth waiting for.
        pool.shutdown(wait=False, cancel_futures=True)


def _with_verdict(row: dict, known: dict) -> dict:
    key = (row["case"], row["method"])
    if key not in known or row["scores"] is None:
        return row
    return {**row, "scores": {**row["scores"], "judge": known[key]}}
