"""llama.cpp's own server, on a free port of this machine, in a process of its own.

Of its own, since torch and llama.cpp bring an OpenMP each, and in one process they may wait for
each other; and since a file that llama.cpp cannot read may end the process that reads it.
"""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
import threading
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from liftcore.errors import LiftError

STARTS = 300.0  # seconds that loading may take


@contextmanager
def served(base: Path, lora: Path | None, *, context: int, threads: int) -> Generator[str]:
    """The address of a server with the base model and, if any, a LoRA: http://127.0.0.1:PORT.

    context   tokens that it reads and writes at once

    Raises LiftError when llama.cpp cannot load them.
    """
    command = [sys.executable, "-m", "liftcore.export.llama_cpp", str(context), str(threads)]
    command += [str(base), *([str(lora)] if lora else [])]
    above = str(Path(importlib.import_module("liftcore").__file__ or "").parents[1])
    paths = [above, os.environ.get("PYTHONPATH", "")]
    pipes: Any = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    server: Any = subprocess.Popen(command, text=True, env=environment, **pipes)
    timer = threading.Timer(STARTS, server.kill)
    timer.start()
    try:
        said = server.stdout.readline()
        timer.cancel()
        if not said.startswith("http://"):
            _, errors = server.communicate()
            lines = [line for line in errors.splitlines() if line.strip()] or ["it gave no reason"]
            raise LiftError(f"llama.cpp cannot load {lora or base} ({lines[-1].strip()[:200]})")
        threading.Thread(target=server.stderr.read, daemon=True).start()
        yield said.strip()
    finally:
        timer.cancel()
        server.kill()
        server.communicate()


def main() -> None:
    xllamacpp: Any = importlib.import_module("xllamacpp")  # it has no types
    context, threads, base, *loras = sys.argv[1:]
    params = xllamacpp.CommonParams()
    params.model.path = base
    params.lora_adapters = [xllamacpp.CommonAdapterLoraInfo(lora, 1.0) for lora in loras]
    params.n_ctx, params.n_parallel, params.warmup = int(context), 1, False
    params.verbosity = 1  # errors alone
    # They spin while they wait: more of them than processors are free would take ages.
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = int(threads)
    server = xllamacpp.Server(params)
    print(server.listening_address, flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main()
