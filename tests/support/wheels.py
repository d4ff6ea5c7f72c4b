"""Wheels of this checkout, for the tests of packaging."""

import os
import subprocess
import sys
from pathlib import Path

import liftcore

ROOT = Path(liftcore.__file__).resolve().parent.parent
CLEAN = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "LIFTCORE_CUDA")}


def copy_source(target: Path) -> Path:
    """The files of the checkout that git does not ignore, so that no build folder is left in it."""
    names = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout.split("\0")  # fmt: skip
    for name in filter(None, names):
        if (ROOT / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            (target / name).write_bytes((ROOT / name).read_bytes())
    return target


def build(source: Path, out: Path, **env) -> tuple[subprocess.CompletedProcess, Path | None]:
    """(what pip said, the wheel or None)."""
    command = [sys.executable, "-m", "pip", "wheel", "-v", "--no-deps", "--no-build-isolation"]
    done = subprocess.run(
        [*command, "-w", str(out), str(source)],
        capture_output=True, text=True, env={**CLEAN, **env},
    )  # fmt: skip
    return done, next(out.glob("*.whl"), None)
