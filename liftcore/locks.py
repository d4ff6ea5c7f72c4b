"""Locks between processes. A kill gives a lock back; where the system has none there is none."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from liftcore.errors import LiftError


@contextmanager
def saving(folder: Path, wait: bool = False) -> Generator[None]:
    """Within it no other process saves into the folder. Raises LiftError when one does already and
    is not waited for."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        if not _lock(handle, wait):
            raise LiftError(f"another process is saving into {folder}")
        yield
    finally:
        os.close(handle)


@contextmanager
def making(file: Path | None) -> Generator[None]:
    """Within it no other process makes what is kept in `file`, so that what one has made the next
    can read, and all go on with the same. Waits. None, or a folder that cannot be written: no lock,
    since nothing will be kept there either."""
    handle = None
    if file is not None:
        with contextlib.suppress(OSError):
            file.parent.mkdir(parents=True, exist_ok=True)
            handle = os.open(file.with_name(f".{file.name}.lock"), os.O_RDWR | os.O_CREAT, 0o666)
    try:
        if handle is not None:
            _lock(handle, wait=True)
        yield
    finally:
        if handle is not None:
            os.close(handle)


def _lock(handle: int, wait: bool) -> bool:
    """Whether the lock is held, or the system has none."""
    with contextlib.suppress(ImportError):
        import fcntl

        try:
            fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            return False
        except OSError:
            pass
    return True
