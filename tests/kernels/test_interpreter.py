"""The Triton kernels on the CPU, in one process of their own: Triton reads its switch on import."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from liftcore.kernels.device import HAS_TRITON

HERE = Path(__file__).resolve().parents[1]


@pytest.mark.skipif(not HAS_TRITON, reason="no Triton that the kernels can use")
def test_kernels_in_the_interpreter():
    files = {p.name for p in (HERE / "interpreter").glob("test_*.py")}
    command = [sys.executable, "-m", "pytest", "-v", "--tb=short", str(HERE / "interpreter")]
    env = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run(command, env=env, cwd=HERE.parent, capture_output=True, text=True)
    print(done.stdout[-8000:], done.stderr[-2000:])
    assert done.returncode == 0
    passed = {line.split("::")[0] for line in done.stdout.splitlines() if " PASSED" in line}
    assert {Path(file).name for file in passed} == files
