"""Errors that a user can act on: one line, no traceback needed."""

from __future__ import annotations


class LiftError(RuntimeError):
    """Something failed that the message explains; the command line exits with 1."""


class NothingToLearnError(LiftError):
    """A run had no sample to train on."""


class UsageError(LiftError, ValueError):
    """A setting or an argument is not valid; the command line exits with 2."""


class LostError(LiftError):
    """Another process of the run has ended, or cannot be reached any more."""


class ElsewhereError(LiftError):
    """What failed in another process of the run, which says so itself."""


def first_line(error: BaseException) -> str:
    """What an error of somebody else's code says, in short."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
