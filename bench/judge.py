"""A language model behind an OpenAI-compatible server as the judge of answers.

The key is read from the environment (LIFTCORE_JUDGE_KEY, else OPENAI_API_KEY), sent to the server
that was named, and never written anywhere.
"""

from __future__ import annotations

import json
import os
import re
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from bench.cases import append, read_lines
from liftcore.errors import LiftError

KEYS = ("LIFTCORE_JUDGE_KEY", "OPENAI_API_KEY")
AT_ONCE, ATTEMPTS, PAUSE = 8, 5, 1.0
RETRIED = (408, 409, 429, 500, 502, 503, 504)
SAME = (
    "You are given a question, a reference answer and a candidate answer. Decide whether the "
    "candidate means the same as the reference. Reply with one word: True or False."
)
GRADE = (
    "You are given a reference summary and a candidate summary of one paper. Grade the candidate "
    "against the reference for completeness, consistency, fluency and grammar, from 0 to 100. "
    "Reply with the number alone."
)


class Judge:
    """Asks a model at URL (".../v1") whether answers are right."""

    def __init__(self, url: str, model: str, timeout: float = 60.0):
        if not re.match(r"https?://", url):
            raise LiftError(f"the judge's address must begin with http:// or https://: {url}")
        self.url = f"{url.rstrip('/')}/chat/completions"
        self.model, self.timeout = model, timeout
        self._key = next((os.environ[k] for k in KEYS if os.environ.get(k)), None)

    def same(self, question: str, answer: str, candidate: str) -> float | None:
        """1 or 0: whether the candidate answers the question as the reference does.

        None when the judge says neither. Raises LiftError when the server cannot be asked.
        """
        text = f"Question: {question}\nReference: {answer}\nCandidate: {candidate}"
        word = re.search(r"\b(true|false)\b", self._ask(SAME, text), re.IGNORECASE)
        return float(word.group(1).lower() == "true") if word else None

    def grade(self, answer: str, candidate: str) -> float | None:
        """How good a summary is against the reference, from 0 to 1; None without a number."""
        reply = self._ask(GRADE, f"Reference: {answer}\nCandidate: {candidate}")
        number = re.search(r"\d+", reply)
        return min(100, int(number.group())) / 100 if number else None

    def _ask(self, task: str, text: str) -> str:
        messages = [{"role": "system", "content": task}, {"role": "user", "content": text}]
        body = {"model": self.model, "messages": messages, "temperature": 0, "max_tokens": 16}
        headers = {"Content-Type": "application/json"}
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        request = urllib.request.Request(self.url, json.dumps(body).encode(), headers)
        for attempt in range(ATTEMPTS):
            if attempt:
                time.sleep(PAUSE * 2 ** (attempt - 1))
            try:
                with urllib.request.urlopen(request, timeout=self.timeout) as reply:
                    return json.load(reply)["choices"][0]["message"]["content"] or ""
            except urllib.error.HTTPError as error:
                failed = f"HTTP {error.code}"
                error.close()
                if error.code not in RETRIED:
                    break
            except (OSError, TimeoutError) as error:
                failed = str(getattr(error, "reason", error))
            except (ValueError, KeyError, IndexError, TypeError) as error:
                raise LiftError(f"{self.url} does not answer as an OpenAI server does") from error
        raise LiftError(f"the judge at {self.url} cannot be asked: {failed}")


def judge_rows(rows: list[dict], file: Path, judge: Judge | None) -> list[dict]:
    """Rows with the score "judge" added where they have a verdict.

    Verdicts are kept in `file`, a line each, and asked for once; without a judge none is asked
    for. A row is judged when it has an answer and its "judged_as" is "same" or "grade".
    """
    known = {(v["case"], v["method"]): v["verdict"] for v in read_lines(file) if "case" in v}
    if judge is not None:
        wanted = [r for r in rows if r.get("judged_as") and r["answer"] is not None]
        _ask_for([r for r in wanted if (r["case"], r["method"]) not in known], file, judge, known)
    return [_with_verdict(row, known) for row in rows]


def _ask_for(rows: list[dict], file: Path, judge: Judge, known: dict) -> None:
    def verdict(row: dict) -> float | None:
        if row["judged_as"] == "grade":
            return judge.grade(row["answers"][0], row["answer"])
        return judge.same(row["question"], row["answers"][0], row["answer"])

    with ThreadPoolExecutor(AT_ONCE) as pool:
        for row, found in zip(rows, pool.map(verdict, rows), strict=True):
            line = {"case": row["case"], "method": row["method"], "verdict": found}
            append(file, {**line, "model": judge.model})
            known[row["case"], row["method"]] = found


def _with_verdict(row: dict, known: dict) -> dict:
    key = (row["case"], row["method"])
    if key not in known or row["scores"] is None:
        return row
    return {**row, "scores": {**row["scores"], "judge": known[key]}}
