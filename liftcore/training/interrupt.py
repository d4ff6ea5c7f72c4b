"""Ctrl-C and SIGTERM wait for the end of a step, so that the saved state is whole."""

from __future__ import annotations

import signal
import threading


class Interrupt:
    """Within it a first signal only sets `asked`; a second one interrupts at once."""

    def __init__(self):
        self.asked = False
        self._old = {}

    def __enter__(self) -> Interrupt:
        # Only the main thread may set handlers; elsewhere signals are not ours to catch.
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._old[number] = signal.signal(number, self._ask)
        return self

    def __exit__(self, *exc) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)

    def _ask(self, number, frame) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True

    def raise_if_asked(self) -> None:
        if self.asked:
            raise KeyboardInterrupt
