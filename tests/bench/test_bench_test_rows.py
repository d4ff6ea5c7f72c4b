"""The rows of a pytest run: written as tests end, and left out when they had passed."""

import json
import os
import subprocess
import sys

from bench.gpu import ROOT

TESTS = """
import os, pytest

@pytest.mark.parametrize("i", range(3))
def test_good(i):
    pass

def test_bad():
    assert os.environ.get("MENDED"), "a reason"

def test_absent():
    pytest.skip("no such card")
"""


def test_a_row_for_each_test_and_a_run_that_goes_on(tmp_path):
    (tmp_path / "test_some.py").write_text(TESTS)
    rows = tmp_path / "rows.jsonl"
    # This test may itself run in a worker of xdist.
    outside = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")}

    def run(*options, **environment):
        command = [sys.executable, "-m", "pytest", "-q", "-p", "bench.test_rows", "--rows", rows]
        command += ["-p", "no:cacheprovider", *options, "test_some.py"]
        done = subprocess.run(
            command, cwd=tmp_path, capture_output=True, text=True,
            env={**outside, "PYTHONPATH": str(ROOT), **environment},
        )  # fmt: skip
        written = [json.loads(line) for line in rows.read_text().splitlines()]
        return done.returncode, [(r["test"].split("::")[1], r["outcome"]) for r in written], written

    code, names, written = run("-n", "2")
    assert code == 1 and len(names) == 5 and ("test_good[2]", "passed") in names
    why = {outcome: r.get("why") for (_, outcome), r in zip(names, written, strict=True)}
    assert "a reason" in why["failed"] and "no such card" in why["skipped"]
    assert all(r["seconds"] >= 0 for r in written)
    code, names, _ = run("--resume", MENDED="1")
    assert code == 0 and sorted(names[5:]) == [("test_absent", "skipped"), ("test_bad", "passed")]
    # What is left skips: nothing to run is no failure.
    code, names, _ = run("--resume", "-k", "test_good")
    assert code == 0 and len(names) == 7
    code, names, _ = run("-k", "test_good")
    assert code == 0 and len(names) == 3, "without --resume the rows begin anew"
