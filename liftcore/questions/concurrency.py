"""How many requests a server gets at once: fewer when it cannot keep up."""

from __future__ import annotations

import threading
import time
from contextlib import contextmanager

from liftcore.questions.client import ServerError


class Slots:
    """At most `allowed` requests under way, half as many after each wave of time-outs.

    A server that takes requests one after the other lets most of many time out, each time they are
    asked again; with as many as it answers in time none does.
    """

    def __init__(self, most: int):
        self.allowed = most
        self._busy, self._halved = 0, 0.0
        self._free = threading.Condition()

    @contextmanager
    def one(self):
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
