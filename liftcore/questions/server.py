"""Pairs from an OpenAI-compatible server, made while training already runs.

Threads ask about every sentence of the document; poll() gives what has arrived, in the document's
order. A request that fails is tried again; a window whose tries are used up is lost and counted,
and the others go on.
"""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from collections.abc import Generator
from contextlib import contextmanager
from itertools import count
from pathlib import Path

from liftcore.errors import UsageError
from liftcore.questions.cache import QaCache
from liftcore.questions.client import ChatServer, ServerError
from liftcore.questions.pairs import Deduplicator, Pair
from liftcore.questions.prompt import BadAnswerError, accept, messages, read_answer
from liftcore.questions.windows import BEFORE, Window, every_sentence

LONGEST_WAIT = 300.0  # seconds; a server that asks for more loses the window
LONGEST_BACKOFF = 60.0
GIVE_UP = 8  # windows in a row that nobody answered for


class _Slots:
    """At most `allowed` requests under way, half as many after each wave of time-outs.

    A server that takes requests one after the other lets most of many time out, each time they are
    asked again; with as many as it answers in time none does.
    """

    def __init__(self, most: int):
        self.allowed = most
        self._busy, self._halved = 0, 0.0
        self._free = threading.Condition()

    @contextmanager
    def one(self) -> Generator[float]:
        """A place among the requests under way, as soon as there is one; gives the time."""
        with self._free:
            self._free.wait_for(lambda: self._busy < self.allowed)
            self._busy += 1
        begun = time.monotonic()
        try:
            yield begun
        except ServerError as error:
            # Those of one wave began before it was cut down.
            if error.reason == "time-out" and begun > self._halved:
                self.allowed, self._halved = max(1, self.allowed // 2), time.monotonic()
            raise
        finally:
            with self._free:
                self._busy -= 1
                self._free.notify()


class ServerPairs:
    """Question-answer pairs about a text, made by a server from every sentence.

    url, model    such as "http://127.0.0.1:8000/v1" and what it is called there; the key comes
                  from the environment (see client.py)
    concurrency   requests under way at once; fewer when they time out
    timeout       seconds for one request
    retries       further tries of a request; the waits between them grow from `backoff` seconds,
                  twofold each time, and are at least what the server asks for
    cache         a folder: what is answered there is not asked again
    per_window    pairs of a sentence at most; before: characters shown before it

    It starts at once, in background threads that end with the process. See PairSource for the
    rest; besides, `stopped` says why it gave up early ("": it did not) and `summary()` all there
    is to tell. Raises UsageError for an argument or an environment that cannot work.
    """

    def __init__(
        self,
        text: str,
        title: str,
        url: str,
        model: str,
        *,
        concurrency: int = 64,
        timeout: float = 120.0,
        retries: int = 4,
        backoff: float = 1.0,
        cache: str | Path | None = None,
        per_window: int = 10,
        before: int = BEFORE,
        temperature: float = 0.5,
        max_tokens: int = 1024,
    ):
        if concurrency < 1 or per_window < 1 or max_tokens < 1 or retries < 0 or timeout <= 0:
            raise UsageError(
                "concurrency, per_window, max_tokens and timeout must be above 0, retries not below"
            )
        self._server = ChatServer(url, model, temperature=temperature, max_tokens=max_tokens)
        self._parameters = {"model": model, "temperature": temperature, "max_tokens": max_tokens}
        self._cache = QaCache(cache) if cache is not None else None
        windows = every_sentence(text, before)
        self._waiting = iter(windows)
        self._title, self._per_window = title, per_window
        self._timeout, self._retries, self._backoff = timeout, retries, backoff
        self.stopped = ""
        self.failures: Counter[str] = Counter()
        self.rejected: Counter[str] = Counter()
        self._lock = threading.Lock()
        self._results: list[list[Pair] | None] = [None] * len(windows)
        self._settled = self._polled = self._failed = self._cached = 0
        self._made = self._delivered = 0  # pairs
        self._silent = 0  # windows in a row that nobody answered for
        self._heard = 0.0  # when the server last answered
        self._slots = _Slots(concurrency)
        self._resume_at = 0.0  # no request before this time: the server asked for a pause
        self._seen = Deduplicator()
        self._random = random.Random()  # the global one is the user's
        self._halt, self._finished = threading.Event(), threading.Event()
        self._start = self._end = time.monotonic()
        if not windows:
            self._finished.set()
        for n in range(min(concurrency, len(windows))):
            threading.Thread(target=self._work, name=f"liftcore-qa-{n}", daemon=True).start()

    def poll(self) -> list[Pair]:
        with self._lock:
            ready: list[Pair] = []
            while self._polled < len(self._results):
                if (pairs := self._results[self._polled]) is None:
                    break
                ready += pairs
                self._results[self._polled] = []
                self._polled += 1
            fresh = self._seen.fresh(ready)
            self.rejected += Counter(duplicate=len(ready) - len(fresh))
            self._delivered += len(fresh)
            return fresh

    @property
    def done(self) -> bool:
        with self._lock:
            return self._polled == len(self._results)

    @property
    def expected(self) -> int:
        with self._lock:
            waiting = sum(len(r) for r in self._results[self._polled :] if r)
            answered = self._settled - self._failed
            mean = self._made / answered if answered else self._per_window / 2
            open_windows = len(self._results) - self._settled
            return self._delivered + waiting + round(mean * open_windows)

    @property
    def seconds(self) -> float:
        """From the start to the last answer, or till now."""
        return (self._end if self._finished.is_set() else time.monotonic()) - self._start

    def wait(self, timeout: float | None = None) -> bool:
        """Waits till every window is answered or lost; False when the time was too short."""
        return self._finished.wait(timeout)

    def close(self) -> None:
        """Asks nothing more; what has arrived can still be polled."""
        self._stop("closed")

    def summary(self) -> dict:
        """Counts of everything, for a report: every window is in answered, failed or open."""
        with self._lock:
            return {
                "windows": len(self._results),
                "answered": self._settled - self._failed,
                "failed": self._failed,
                "open": len(self._results) - self._settled,
                "cached": self._cached,
                "requests": self._server.requests,
                "pairs": self._delivered,
                "rejected": dict(+self.rejected),
                "failures": dict(self.failures),
                "seconds": round(self.seconds, 3),
                "stopped": self.stopped,
                "cache_problem": self._cache.problem if self._cache else "",
            }

    def _work(self) -> None:
        while (window := self._next()) is not None:
            try:
                items = self._answer(window)
            except ServerError as error:
                self._lost(window, error)
            except Exception as error:  # a defect must cost its window, not the run
                self._lost(window, ServerError(type(error).__name__, retry=False))
            else:
                self._answered(window, items)

    def _next(self) -> Window | None:
        with self._lock:
            return None if self._halt.is_set() else next(self._waiting, None)

    def _answer(self, window: Window) -> list:
        """The server's items for a window, from the cache or after as many tries as it takes."""
        chat = messages(window, self._title, self._per_window)
        request = {**self._parameters, "messages": chat}
        if self._cache and (kept := self._cache.get(request)) is not None:
            with self._lock:
                self._cached += 1
            return kept
        # Where the windows before found nobody, one try tells whether that is still so.
        tries = 1 + (self._retries if self._silent < 2 else 0)
        for attempt in count():
            # Not all threads at the very end of a pause that the server asked for.
            self._pause((self._resume_at - time.monotonic()) * self._random.uniform(1.0, 1.1))
            try:
                items = self._ask(chat)
                break
            except ServerError as error:
                if attempt + 1 == tries or not error.retry:
                    raise
                wait = self._wait(attempt, error)
            self._pause(wait)
        if self._cache:
            self._cache.put(request, items)
        return items

    def _ask(self, chat: list[dict[str, str]]) -> list:
        with self._slots.one() as begun:
            answered = True
            try:
                return read_answer(self._server.ask(chat, self._timeout))
            except BadAnswerError as error:
                raise ServerError(str(error)) from None
            except ServerError as error:
                answered = not error.silent
                # A server that answered others meanwhile is not gone.
                error.silent &= begun > self._heard
                raise
            finally:
                if answered:
                    with self._lock:
                        self._silent, self._heard = 0, time.monotonic()

    def _wait(self, attempt: int, error: ServerError) -> float:
        """Seconds before the next try; a pause that the server asks for holds for all threads."""
        wait = min(LONGEST_BACKOFF, self._backoff * 2**attempt) * self._random.uniform(0.5, 1.5)
        if error.after is None:
            return wait
        if error.after > LONGEST_WAIT:
            raise error
        with self._lock:
            self._resume_at = max(self._resume_at, time.monotonic() + error.after)
        return wait

    def _pause(self, seconds: float) -> None:
        """Waits; raises ServerError when the run stops meanwhile."""
        if seconds > 0 and self._halt.wait(seconds):
            raise ServerError(self.stopped or "closed", retry=False)

    def _answered(self, window: Window, items: list) -> None:
        rejected: Counter[str] = Counter()
        pairs = accept(items, window, self._per_window, rejected)
        with self._lock:
            if self._results[window.number] is None:
                self.rejected += rejected
                self._made += len(pairs)
                self._settle(window.number, pairs)

    def _lost(self, window: Window, error: ServerError) -> None:
        with self._lock:
            self._silent += error.silent
            silent, answered = self._silent, self._settled - self._failed
            if self._results[window.number] is None:
                self._lose(window.number, error.reason)
        if silent >= GIVE_UP:
            self._stop(f"the server does not answer ({error})")
        elif error.denied and not answered:
            self._stop(f"the server refuses to answer ({error})")

    def _stop(self, why: str) -> None:
        """Loses every window that is still open and asks nothing more."""
        with self._lock:
            if self._halt.is_set():
                return
            self._halt.set()
            still_open = [n for n, result in enumerate(self._results) if result is None]
            if still_open:
                self.stopped = why
            for number in still_open:
                self._lose(number, "not asked any more")
        self._server.close()

    def _lose(self, number: int, reason: str) -> None:
        self._failed += 1
        self.failures[reason] += 1
        self._settle(number, [])

    def _settle(self, number: int, pairs: list[Pair]) -> None:
        self._results[number] = pairs
        self._settled += 1
        if self._settled == len(self._results):
            self._end = time.monotonic()
            self._finished.set()
