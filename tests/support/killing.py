"""Processes that another one started, to be killed in the middle of their work."""

import time

from bench.kills import children, kill

__all__ = ["children", "kill", "wait_for"]


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
