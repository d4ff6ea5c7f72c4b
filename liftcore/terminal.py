"""What the command line prints: text from outside may not steer the terminal, nor end the run."""

from __future__ import annotations

import codecs
import contextlib
import os
import re
import sys
import warnings
from collections.abc import Generator, Sequence
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

Styles = dict[str, str]  # regular expression -> style of rich's
FAILED: Styles = {r"^liftcore: error:": "bold red", r"^liftcore: warning:": "bold yellow"}
# The strip of a report, whose heights say the same.
RECALL: Styles = {
    r"^recall [\d.]+%": "bold",
    **{"[▆▇█]": "blue", "[▃▄▅]": "yellow", "[▁▂]": "red"},
}


def plain(text: str) -> str:
    """The text without terminal escape sequences and control characters; line breaks stay."""
    return _CONTROLS.sub("", _ESCAPES.sub("", text.replace("\r\n", "\n")))


def one_line(text: str) -> str:
    """plain() with single spaces for line breaks."""
    return " ".join(plain(text).split())


def show(text: str = "", styles: Styles | None = None) -> None:
    """Prints on standard output what may hold text from outside; `styles` as in coloured()."""
    print(coloured(plain(text), styles or {}, sys.stdout))


def note(text: str, styles: Styles | None = None) -> None:
    """Prints on standard error what may hold text from outside; nowhere when that is closed."""
    if sys.stderr is not None:
        print(coloured(plain(text), styles or {}, sys.stderr), file=sys.stderr)


def coloured(text: str, styles: Styles, stream: Any) -> str:
    """Plain text with what each regular expression matches in a style of rich's, for a stream that
    is a terminal; as it stands for any other, without rich, and where NO_COLOR is set."""
    if not styles or os.environ.get("NO_COLOR") or (made := _console(stream)) is None:
        return text
    from rich.text import Text

    painted = Text(text)
    for pattern, style in styles.items():
        painted.highlight_regex(re.compile(pattern, re.MULTILINE), style)
    with made.capture() as capture:
        made.print(painted, soft_wrap=True, end="")
    return capture.get()


def table(text: str, head: Sequence[str], rows: Sequence[Sequence[str]], styles: Styles) -> None:
    """Prints rows of cells as a table of rich's where standard output is a terminal, and else the
    text, which says the same."""
    made = _console(sys.stdout)
    if made is None:
        show(text)
        return
    from rich import box
    from rich.table import Table
    from rich.text import Text

    drawn = Table(*head, box=box.SIMPLE, show_header=any(head), pad_edge=False)
    for row in rows:
        cells = [Text(one_line(cell)) for cell in row]
        for cell in cells:
            for pattern, style in styles.items():
                cell.highlight_regex(re.compile(pattern), style)
        drawn.add_row(*cells)
    made.print(drawn)


def _console(stream: Any) -> Any:
    """rich's console for a terminal; None for what is none, and without rich."""
    if stream is None or not stream.isatty():
        return None
    try:
        from rich.console import Console
    except ImportError:
        return None
    return Console(file=stream, highlight=False, markup=False, emoji=False)


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
    """Within it no character is one that the streams cannot write, and warnings are plain lines
    about what a user can see to."""
    streams: tuple[Any, ...] = (sys.stdout, sys.stderr)
    before = [(stream, stream.errors) for stream in streams if hasattr(stream, "reconfigure")]
    form = warnings.formatwarning
    for stream, _ in before:
        stream.reconfigure(errors=ERRORS)
    warnings.formatwarning = _one_line_warning  # ty: ignore[invalid-assignment] a type of one function
    try:
        with warnings.catch_warnings():
            # It tells programmers, of libraries that call each other.
            warnings.simplefilter("ignore", FutureWarning)
            yield
    finally:
        warnings.formatwarning = form
        for stream, errors in before:
            with contextlib.suppress(ValueError, OSError):
                stream.reconfigure(errors=errors)


def _one_line_warning(
    message: Warning | str, category: type, filename: str, lineno: int, line: str | None = None
) -> str:
    return coloured(f"liftcore: warning: {one_line(str(message))}\n", FAILED, sys.stderr)


def _plain_characters(error: UnicodeError) -> tuple[str, int]:
    """What a stream writes in place of what its encoding lacks."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    lacking = error.object[error.start : error.end]
    written = (_PLAIN.get(c) or c.encode("ascii", "backslashreplace").decode() for c in lacking)
    return "".join(written), error.end


codecs.register_error(ERRORS, _plain_characters)
