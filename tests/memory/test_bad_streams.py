"""Text from a pipe or the keyboard that is odd or wrong: it works, or one line says what to do."""

import io
import json
import subprocess
import sys

from bees import TEXT

from liftcore.cli.main import main
from liftcore.cli.options import text_file

FAST = ["--segment-length", "16", "--epochs", "1", "--rank", "4", "--device", "cpu"]


def test_blank_lines_among_piped_questions_are_passed_over(memory_folder, monkeypatch, capsys):
    from liftcore.memory import Memory

    monkeypatch.setattr(Memory, "ask", lambda self, text, **_: text.upper())
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n who?\n\n  \nwhere?"))
    assert main(["ask", str(memory_folder), "--device", "cpu"]) == 0
    assert capsys.readouterr().out == "WHO?\nWHERE?\n"


def test_standard_input_that_is_closed_or_no_text(memory_folder, monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdin", None)
    assert main(["ask", str(memory_folder)]) == 2
    assert "standard input is closed" in capsys.readouterr().err
    bad = io.TextIOWrapper(io.BytesIO(b"caf\xe9?\n"), encoding="utf-8")
    monkeypatch.setattr(sys, "stdin", bad)
    assert main(["ask", str(memory_folder), "--device", "cpu"]) == 1
    assert "not UTF-8" in capsys.readouterr().err


def test_a_document_from_a_pipe(tiny_folder, tmp_path):
    assert text_file("-") == text_file("/dev/stdin")
    code = "import sys; from liftcore.cli.main import main; sys.exit(main())"
    words = ["absorb", "-", "--model", tiny_folder, *FAST, "--objective", "segments"]
    # A new home knows no words of the model's own, and making them takes a while.
    words += ["--adapter-init", "random"]
    run = subprocess.run(
        [sys.executable, "-c", code, *map(str, words)],
        input=TEXT.encode(),
        cwd=tmp_path,
        env={"PYTHONPATH": ":".join(sys.path), "HOME": str(tmp_path), "OMP_NUM_THREADS": "1"},
        capture_output=True,
    )
    lines = run.stderr.decode().splitlines()
    assert run.returncode == 0 and all(line.startswith("liftcore: ") for line in lines), lines
    info = json.loads((tmp_path / "stdin-memory" / "liftcore.json").read_text())
    assert info["document"]["tokens"] > 20
