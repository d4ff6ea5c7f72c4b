"""What the command line prints: text from outside may not steer the terminal, nor end the run."""

from __future__ import annotations

import codecs
import contextlib
import re
import sys
import warnings
from collections.abc import Generator
from typing import Any

# None may run into the next, or a text of nothing but beginnings would take for ever.
_ESCAPES = re.compile(
    # Titles, links, strings for devices, with beginnings and ends of one character or two.
    "(?:\x1b[\\]PX^_]|[\x90\x98\x9d-\x9f])[^\x07\x1b\x90\x98\x9c-\x9f]*(?:\x07|\x1b\\\\|\x9c)"
    "|(?:\x1b\\[|\x9b)[0-?]*[ -/]*[@-~]"  # colours, the cursor, the screen
    "|\x1b[ -/]*[0-~]"
)
# Control characters but line breaks and tabs, and those that turn the direction of the writing.
_CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
# What liftcore itself prints beyond ASCII, for a stream that cannot.
_PLAIN = dict(zip("▁▂▃▄▅▆▇█·…“”‘’–—−→", (*"1234567#.", "...", *"\"\"''---", "->"), strict=True))
ERRORS = "liftcore.plain"


def plain(text: str) -> str:
    """The text without terminal escape sequences and control characters; line breaks stay."""
    return _CONTROLS.sub("", _ESCAPES.sub("", text.replace("\r\n", "\n")))


def one_line(text: str) -> str:
    """plain() with single spaces for line breaks."""
    return " ".join(plain(text).split())


def show(text: str = "") -> None:
    """Prints on standard output what may hold text from outside."""
    print(plain(text))


def note(text: str) -> None:
    """Prints on standard error what may hold text from outside; nowhere when that is closed."""
    if sys.stderr is not None:
        print(plain(text), file=sys.stderr)


class Typewriter:
    """Prints pieces of a text from outside as they come, without white space before the first.

    What could be the beginning of an escape sequence waits for its end.
    """

    def __init__(self) -> None:
        self.begun, self.waits = False, ""

    def __call__(self, piece: str) -> None:
        text = self.waits + piece
        at = max(text.rfind("\x1b"), text.rfind("\x9b"))
        # A sequence is short; a longer text behind its mark is none.
        open_end = at >= 0 and len(text) - at < 32 and plain(text[at:] + "m") == ""
        text, self.waits = (text[:at], text[at:]) if open_end else (text, "")
        text = plain(text if self.begun else text.lstrip())
        if text:
            self.begun = True
            print(text, end="", flush=True)


@contextlib.contextmanager
def guarded() -> Generator[None]:
    """Within it no character is one that the streams cannot write, and warnings are plain lines."""
    streams: tuple[Any, ...] = (sys.stdout, sys.stderr)
    before = [(stream, stream.errors) for stream in streams if hasattr(stream, "reconfigure")]
    form = warnings.formatwarning
    for stream, _ in before:
        stream.reconfigure(errors=ERRORS)
    warnings.formatwarning = _one_line_warning  # ty: ignore[invalid-assignment] a type of one function
    try:
        yield
    finally:
        warnings.formatwarning = form
        for stream, errors in before:
            with contextlib.suppress(ValueError, OSError):
                stream.reconfigure(errors=errors)


def _one_line_warning(
    message: Warning | str, category: type, filename: str, lineno: int, line: str | None = None
) -> str:
    return f"liftcore: warning: {one_line(str(message))}\n"


def _plain_characters(error: UnicodeError) -> tuple[str, int]:
    """What a stream writes in place of what its encoding lacks."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    lacking = error.object[error.start : error.end]
    written = (_PLAIN.get(c) or c.encode("ascii", "backslashreplace").decode() for c in lacking)
    return "".join(written), error.end


codecs.register_error(ERRORS, _plain_characters)
