"""Ctrl-C within a run: it ends behind a step, so that what is saved is whole."""

from __future__ import annotations

import signal
import threading
import time
from typing import Any

# Seconds within which a rank takes a second Ctrl-C for the first, and leaves the end to rank 0.
PATIENCE = 10.0


class Interrupt:
    """Ctrl-C and SIGTERM wait for the end of a step, so that the saved state is whole: within it a
    first signal only sets `asked`; a second one interrupts at once, but within `patience` seconds
    of the first. Of several ranks each gets Ctrl-C twice, from the terminal and from who started
    them."""

    def __init__(self, patience: float = 0.0) -> None:
        self.asked, self._at, self._patience = False, 0.0, patience
        self._old: dict[int, Any] = {}

    def __enter__(self) -> Interrupt:
        # Only the main thread may set handlers; elsewhere signals are not ours to catch.
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._old[number] = signal.signal(number, self._ask)
        return self

    def __exit__(self, *exc: object) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)

    def _ask(self, number: int, frame: object) -> None:
        if not self.asked:
            self.asked, self._at = True, time.monotonic()
        elif self._seconds >= self._patience:
            raise KeyboardInterrupt

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
