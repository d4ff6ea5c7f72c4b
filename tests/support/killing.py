"""Processes that another one started, to be killed in the middle of their work."""

import contextlib
import os
import signal
import time
from pathlib import Path


def children(pid):
    """The numbers of the living processes that `pid` started, oldest first."""
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError, ValueError):
            number = int(entry.name)
            after = (entry / "stat").read_text().rpartition(")")[2].split()
            if int(after[1]) == pid and after[0] != "Z":
                found.append((int(after[19]), number))
    return [number for _, number in sorted(found)]


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


def kill(pid):
    with contextlib.suppress(OSError):
        os.kill(pid, signal.SIGKILL)
