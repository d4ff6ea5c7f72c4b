"""Ctrl-C within a run: it ends behind a step, so that what is saved is whole, and at once where no
step is running."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any, TypeVar

T = TypeVar("T")

# Seconds within which a rank takes a second Ctrl-C for the first, and leaves the end to rank 0.
PATIENCE = 10.0


class Interrupt:
    """Ctrl-C and SIGTERM wait for the end of a step, so that the saved state is whole: within it a
    first signal only sets `asked`; a second one interrupts at once, but within `patience` seconds
    of the first. Of several ranks each gets Ctrl-C twice, from the terminal and from who started
    them."""

    def __init__(self, patience: float = 0.0) -> None:
        self.asked, self._at, self._patience = False, 0.0, patience
        self._at_once = False
        self._old: dict[int, Any] = {}

    def __enter__(self) -> Interrupt:
        # Only the main thread may set handlers; elsewhere signals are not ours to catch.
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._old[number] = signal.signal(number, self._ask)
            _running.append(self)
        return self

    def __exit__(self, *exc: object) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)
        if self._old:
            _running.remove(self)

    def _ask(self, number: int, frame: object) -> None:
        if not self.asked:
            self.asked, self._at = True, time.monotonic()
            if self._at_once:
                raise KeyboardInterrupt
        elif self._seconds >= self._patience:
            raise KeyboardInterrupt

    @contextmanager
    def at_once(self) -> Generator[None]:
        """Within it a first signal interrupts at once, and so does one that has come before: for
        what is begun anew by the next run."""
        before, self._at_once = self._at_once, True
        try:
            self.raise_if_asked()
            yield
        finally:
            self._at_once = before

    @property
    def _seconds(self) -> float:
        """Since it was asked for."""
        return time.monotonic() - self._at

    def raise_if_alone(self) -> None:
        """Ends this rank when it was asked to end, and rank 0 was not."""
        if self.asked and self._seconds >= self._patience:
            raise KeyboardInterrupt

    def raise_if_asked(self) -> None:
        if self.asked:
            raise KeyboardInterrupt


# Those that hear signals now, the innermost last.
_running: list[Interrupt] = []


def unless_asked(make: Callable[[], T]) -> T | None:
    """What make() gives; None when a signal has ended it, or came before: the run around it then
    ends behind its step. Without such a run a signal interrupts as it always does."""
    if not _running:
        return make()
    try:
        with _running[-1].at_once():
            return make()
    except KeyboardInterrupt:
        if not _running[-1].asked:
            raise
        return None
