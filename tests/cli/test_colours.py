"""Colours and tables: on a terminal alone, and never in the way of what is printed."""

import io
import re
import sys

import pytest

from liftcore.cli.main import main
from liftcore.terminal import RECALL, coloured, show, table

ESCAPES = re.compile(r"\x1b\[[\d;]*m")
MARKUP = "[bold]not bold[/bold] :smile: {x} 中文 C:\\new"


class Terminal(io.StringIO):
    encoding = "utf-8"

    def isatty(self):
        return True


@pytest.fixture
def terminal(monkeypatch):
    """A terminal that knows colours, as standard output and standard error."""
    pytest.importorskip("rich")
    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "COLUMNS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    made = Terminal()

    def use():
        """pytest has its own streams until the test begins."""
        monkeypatch.setattr(sys, "stdout", made)
        monkeypatch.setattr(sys, "stderr", made)

    made.use = use
    return made


def test_what_is_coloured_says_the_same(terminal):
    text = f"recall 97.1% of {MARKUP}\nstart |█▇▄▁ ·| end" + " and a long line" * 40
    out = coloured(text, RECALL, terminal)
    assert ESCAPES.sub("", out) == text and len(ESCAPES.findall(out)) > 6
    assert coloured(text, {}, terminal) == text
    assert coloured(text, RECALL, io.StringIO()) == text


@pytest.mark.parametrize("without", ["colour", "rich"])
def test_no_colour_where_none_is_wanted_or_possible(terminal, monkeypatch, without):
    if without == "colour":
        monkeypatch.setenv("NO_COLOR", "1")
    else:
        monkeypatch.setitem(sys.modules, "rich.console", None)
    terminal.use()
    show("recall 97.1%", RECALL)
    table("a 1\nb 2", ("", ""), [("a", "1"), ("b", "2")], {"1": "red"})
    assert "\x1b" not in terminal.getvalue()
    assert re.search(r"recall 97\.1%\n *\n? *a +1 *\n *b +2", terminal.getvalue())


def test_a_table_is_drawn_on_a_terminal_alone(terminal, monkeypatch):
    rows = [("+ yes", MARKUP), ("- no\x1b[2J", "x")]
    terminal.use()
    table("as text", ("one", "two"), rows, {r"^\+ .*": "green"})
    drawn = terminal.getvalue()
    assert "\x1b[32m+ yes" in drawn and MARKUP in drawn and "as text" not in drawn
    assert "─" in drawn and "\x1b[2J" not in drawn
    piped = io.StringIO()
    monkeypatch.setattr(sys, "stdout", piped)
    table("as text", ("one", "two"), rows, {})
    assert piped.getvalue() == "as text\n"


def test_commands_say_the_same_on_a_terminal(memory_folder, terminal, monkeypatch):
    terminal.use()
    assert main(["report", str(memory_folder)]) == 0
    seen = terminal.getvalue()
    piped = io.StringIO()
    monkeypatch.setattr(sys, "stdout", piped)
    assert main(["report", str(memory_folder)]) == 0
    assert ESCAPES.sub("", seen) == piped.getvalue() and "\x1b[1m" in seen
    assert main(["report", str(memory_folder / "no")]) == 1
    assert "\x1b[1;31mliftcore: error:" in terminal.getvalue()
