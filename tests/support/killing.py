"""Processes that another one started, to be killed in the middle of their work."""

import sys
import time
from collections.abc import Callable, Sequence

from bench.kills import FORK, children, kill

__all__ = ["children", "forked", "kill", "wait_for"]


def forked(main: Callable[[Sequence[str]], int], argv: Sequence[str]):
    """A process that does main(argv) and ends with its code; it has what this one imported."""
    process = FORK.Process(target=lambda: sys.exit(main(argv)))
    process.start()
    return process


def wait_for(what, process, seconds=60):
    """What what() gives as soon as that is true; fails when it takes too long, or when `process`,
    of multiprocessing, ends before."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if value := what():
            return value
        assert process.is_alive(), "the process ended"
        time.sleep(0.02)
    raise AssertionError("it took too long")
