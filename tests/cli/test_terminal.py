"""What reaches the terminal: no escape sequences, and characters that the streams can write."""

import io
import json
import subprocess
import sys
import time

import pytest
from folders import change

from liftcore.cli.main import main

TITLE = "\x1b]0;owned\x07"
SEQUENCES = {
    TITLE: "",
    "\x1b]8;;http://evil\x1b\\link\x1b]8;;\x1b\\": "link",
    "\x1b[31mred\x1b[0m": "red",
    "\x1b[2J\x1b[1;1Hgone": "gone",
    "\x9b31mred": "red",
    "\x9d0;owned\x9c!": "!",
    "\x1bPq#0\x1b\\sixel": "sixel",
    "\x1bc\x1b7\x1b(0reset": "reset",
    "over\rwritten\b\x00\x7f\x85": "overwritten",
    "\u202eright to left\u2066": "right to left",
    "line\nline\r\nline\tend": "line\nline\nline\tend",
    "\x1b]0;unfinished": "0;unfinished",
    "naïve 中文 🦩 é": "naïve 中文 🦩 é",
}


@pytest.mark.parametrize("text", SEQUENCES)
def test_plain_text_steers_no_terminal(text):
    from liftcore.terminal import plain

    assert plain(f"a{text}z") == f"a{SEQUENCES[text]}z"
    assert plain(plain(text)) == plain(text)


@pytest.mark.parametrize("piece", ["\x1b", "\x1b]", "\x1b[", "\x1b[0", "\x1bP0", "\x9b0 ", "\x9d"])
def test_stripping_is_linear(piece):
    from liftcore.terminal import plain

    started = time.perf_counter()
    plain(piece * 200_000)
    assert time.perf_counter() - started < 20


def test_random_bytes_leave_nothing_that_steers(rng):
    from liftcore.terminal import plain

    pieces = [*map(chr, range(0xA0)), "[", "]0;", "m", "\x1b", "\x1b", "\x9d", "x"]
    for _ in range(200):
        text = plain("".join(rng.choice(pieces, size=60)))
        assert not any((c < " " and c not in "\n\t") or "\x7f" <= c <= "\x9f" for c in text)


def escaped(captured):
    return [c for c in captured.out + captured.err if c < " " and c not in "\n\t"]


def test_titles_questions_and_answers_are_plain(memory_folder, monkeypatch, capsys):
    from liftcore.memory import Memory

    info = json.loads((memory_folder / "liftcore.json").read_text())
    change(
        memory_folder / "liftcore.json", document={**info["document"], "title": f"Bees{TITLE}\nx"}
    )
    assert main(["report", str(memory_folder)]) == 0
    out = capsys.readouterr()
    assert out.out.startswith("Bees x: ") and not escaped(out)
    monkeypatch.setattr(Memory, "ask", lambda *a, **k: f"two\nlines\x1b[31m{TITLE}")
    assert main(["ask", str(memory_folder), f"Who{TITLE}?", "Where?", "--device", "cpu"]) == 0
    out = capsys.readouterr()
    assert "Q: Who?\ntwo\nlines\n" in out.out and not escaped(out)


def test_errors_are_plain(tmp_path, capsys):
    name = tmp_path / f"no{TITLE}file\n.txt"
    for words in (
        ["absorb", str(name)],
        ["ask", str(name)],
        ["report", str(name)],
        ["ask", str(tmp_path), "--debug"],
        ["absorb", "x.txt", "--model", f"no{TITLE}body"],
        ["absorb", "x.txt", "--device", f"cpu{TITLE}"],
    ):
        assert main(words) in (1, 2)
        out = capsys.readouterr()
        assert not escaped(out) and "owned" not in out.err
        assert out.err.count("\n") == 1 or "--debug" in words
    with pytest.raises(SystemExit):
        main(["ask", "m", f"--nope{TITLE}"])
    assert not escaped(capsys.readouterr())


def test_what_a_server_says_is_plain(tiny_folder, tmp_path, monkeypatch, capsys):
    from stub_server import Stub

    monkeypatch.setenv("LIFTCORE_CACHE", str(tmp_path / "cache"))
    file = tmp_path / "bees.txt"
    file.write_text("Marta Quellin kept bees. Her hives stood by the river for years.")
    words = ["absorb", str(file), "--model", str(tiny_folder), "--device", "cpu", "--rank", "4"]
    words += [
        "--objective",
        "qa",
        "--adapter-init",
        "random",
        "--epochs",
        "1",
        "--out",
        str(tmp_path / "m"),
    ]
    with Stub(lambda *_: (403, f"no{TITLE}\x1b[31m entry", {})) as stub:
        code = main([*words, "--qa-server", stub.url, "--qa-model", "m"])
    out = capsys.readouterr()
    assert code == 1 and "403" in out.err and not escaped(out)


def test_warnings_are_plain_lines(memory_folder, monkeypatch, capsys, recwarn):
    import warnings

    from liftcore.memory import Memory

    def warns(*args, **options):
        text = warnings.formatwarning(UserWarning(f"odd{TITLE}"), UserWarning, "f.py", 3)
        sys.stderr.write(text)
        return "yes"

    monkeypatch.setattr(Memory, "ask", warns)
    assert main(["ask", str(memory_folder), "Who?", "--device", "cpu"]) == 0
    assert "liftcore: warning: odd\n" in capsys.readouterr().err


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252", "utf-8"])
def test_a_stream_that_lacks_characters_gets_others(memory_folder, monkeypatch, encoding):
    from liftcore.memory import Memory

    answer = "Zoë “中文” \ud800 █…"
    monkeypatch.setattr(Memory, "ask", lambda *a, **k: answer)
    streams = [io.TextIOWrapper(io.BytesIO(), encoding=encoding) for _ in range(2)]
    monkeypatch.setattr(sys, "stdout", streams[0])
    monkeypatch.setattr(sys, "stderr", streams[1])
    assert main(["ask", str(memory_folder), "Who?", "--device", "cpu"]) == 0
    assert main(["report", str(memory_folder)]) == 0
    streams[0].flush()
    lines = streams[0].buffer.getvalue().decode(encoding).splitlines()
    if encoding == "ascii":
        assert lines[0] == 'Zo\\xeb "\\u4e2d\\u6587" \\ud800 #...'
        assert any(line.startswith("start |") for line in lines)
    if encoding == "utf-8":
        assert lines[0] == "Zoë “中文” \\ud800 █…"
    assert streams[0].errors == "strict", "as it was before"


def test_help_fits_an_ascii_terminal():
    run = subprocess.run(
        [sys.executable, "-m", "liftcore", "ask", "--help"],
        env={"PYTHONIOENCODING": "ascii", "PYTHONPATH": ":".join(sys.path)},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    assert "cuda:1, ..." in run.stdout


def test_a_reader_that_goes_away_ends_the_run_without_a_word(memory_folder):
    command = f"{sys.executable} -m liftcore report {memory_folder} | true; exit ${{PIPESTATUS[0]}}"
    run = subprocess.run(
        ["bash", "-c", command],
        env={"PYTHONPATH": ":".join(sys.path), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
    )
    assert run.returncode in (0, 141) and run.stderr == ""
