"""The rehearsal of what runs on a card, in a process of its own: the stand-in takes torch.cuda's
place, and what other tests left in torch's compiler would stay in its way."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from liftcore.kernels.device import HAS_TRITON, INTERPRET

TESTS = Path(__file__).resolve().parents[1]


@pytest.mark.skipif(not HAS_TRITON or INTERPRET, reason="no Triton that compiles")
def test_a_card_is_rehearsed():
    command = [sys.executable, "-m", "pytest", "-q", str(TESTS / "support" / "rehearsed.py")]
    env = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")}
    done = subprocess.run(command, env=env, cwd=TESTS.parent, capture_output=True, text=True)
    print(done.stdout[-8000:], done.stderr[-2000:])
    assert done.returncode == 0 and "4 passed" in done.stdout
