"""Kills processes in the middle of their work, and counts what is lost: nothing may be.

python -m bench kills --ranks 60 --workers 30 --ray 10
python -m bench kills --ranks 0 --workers 20 --ray 0 --together 3

Ranks are the two processes of one run under torchrun's agent, which starts them again; workers
those of `corpus`; Ray's the actors of `corpus --ray`. A tiny random model is trained, and what is
made is compared with what is made when nobody is killed: bit for bit, and where documents are
trained together up to rounding.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import os
import random
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from transformers import LlamaConfig, LlamaForCausalLM

from bench.common import RESULTS
from liftcore.adapter import WEIGHTS
from liftcore.config import LiftConfig
from liftcore.corpus import pool
from liftcore.corpus.jobs import Plan
from liftcore.corpus.run import corpus
from liftcore.fiction.documents import fictional_document
from liftcore.model import load_tokenizer

FORK: Any = multiprocessing.get_context("fork")
# An odd number of rows a step, so that the ranks never have the same.
# A large eps: Adam would turn rounding in a gradient near 0 into a whole step.
CONFIG = LiftConfig(segment_length=32, batch_size=3, rank=4, epochs=20, eps=1e-2)
NEAR = 1e-3
DOCUMENTS, WORDS, EPOCHS = 6, 250, "60"


def children(pid: int) -> list[int]:
    """The numbers of the living processes that `pid` started, oldest first."""
    begun = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError, ValueError):
            number = int(entry.name)
            after = (entry / "stat").read_text().rpartition(")")[2].split()
            if int(after[1]) == pid and after[0] != "Z":
                begun.append((int(after[19]), number))
    return [number for _, number in sorted(begun)]


def below(pid: int) -> list[int]:
    """All living processes that come from `pid`."""
    mine = children(pid)
    return mine + [each for child in mine for each in below(child)]


def named(pid: int) -> str:
    """What a process calls itself."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace")
    return ""


def kill(pid: int) -> None:
    """Ends a process at once, if it is there."""
    with contextlib.suppress(OSError):
        os.kill(pid, signal.SIGKILL)


def free_port() -> int:
    """A port that nobody listens at."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def torchrun(argv: list[str], restarts: int) -> None:
    """What torchrun does with two processes, which are forked so that nothing is imported again."""
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    settings = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=2,
        monitor_interval=0.1,
        max_restarts=restarts,
        start_method="fork",
        rdzv_backend="static",
        rdzv_configs={"rank": 0},
        rdzv_endpoint=f"127.0.0.1:{free_port()}",
    )
    elastic_launch(settings, _verb)(argv)
    os._exit(0)


def _verb(argv: list[str]) -> None:
    from liftcore.cli.main import main

    sys.exit(main(argv))


def hunt(alive: Callable[[], bool], victims: Callable[[], list[int]], most: int, gap: float) -> int:
    """Kills one of the victims now and then, while there is something alive; how many."""
    killed, rng = 0, random.Random(0)
    while alive() and killed < most:
        time.sleep(rng.uniform(0.3, 1.0) * gap)
        if there := victims():
            kill(rng.choice(there))
            killed += 1
    return killed


def ranks(place: Path, model: Path, kills: int, gap: float) -> dict:
    """One document under torchrun's agent."""
    document = place / "one.txt"
    document.write_text(fictional_document(0, WORDS).text)
    settings = ["--preset", "plain", "--rank", "4", "--dtype", "fp32"]
    settings += ["--segment-length", "32", "--batch-size", "3"]
    done = runs = lost = 0
    while done < kills or not runs:
        # The first is not disturbed.
        out = place / (f"killed {runs}" if runs else "whole")
        argv = ["absorb", str(document), "--model", str(model), "--out", str(out), *settings]
        agent = FORK.Process(target=torchrun, args=([*argv, "--epochs", EPOCHS], 10 * kills))
        agent.start()
        if runs:
            done += hunt(agent.is_alive, partial(at_work, agent.pid, out), kills - done, gap)
        agent.join()
        lost += agent.exitcode != 0 or differing(place / "whole", out)
        runs += 1
    return {"kills": done, "lost": lost, "runs": runs - 1}


def at_work(pid: int, out: Path, ray: bool = False) -> list[int]:
    """The processes below `pid` that train, once the state of a run stands in `out`."""
    if not list(out.glob("**/training_state.safetensors")):
        return []
    if ray:
        return [each for each in below(pid) if named(each).startswith("ray::Worker.make")]
    return children(pid)


def workers(
    place: Path, model: Path, kills: int, gap: float, together: int, *, ray: bool = False
) -> dict:
    """A folder of documents, again and again until enough have been killed."""
    documents = place / "documents"
    documents.mkdir()
    for n in range(DOCUMENTS):
        (documents / f"{n}.txt").write_text(fictional_document(n, WORDS).text)
    plan = Plan(str(model), CONFIG, device="cpu", dtype="float32", together=together)
    # Without Ray, whose threads would not live on in the processes that are forked below.
    made(documents, place / "whole", plan, ray=False)
    done = lost = runs = again = 0
    while done < kills:
        out, runs = place / f"killed {runs}", runs + 1
        while True:
            one = FORK.Process(target=made, args=(documents, out, plan, ray))
            one.start()
            victims = partial(at_work, one.pid, out, ray)
            done += hunt(one.is_alive, victims, kills - done, gap)
            one.join()
            if one.exitcode == 0:
                break
            again += 1  # a document was given up, which the next run makes
        folders = sorted(p.name for p in (place / "whole").iterdir() if p.is_dir())
        index = json.loads((out / "memories.json").read_text())["memories"]
        there = sorted(p.name for p in out.iterdir() if p.is_dir())
        lost += not sorted(e["folder"] for e in index) == there == folders
        near = NEAR if together > 1 else 0.0
        lost += sum(differing(place / "whole" / name, out / name, near) for name in folders)
    return {"kills": done, "lost": lost, "runs": runs, "started_again": again}


def made(documents: Path, out: Path, plan: Plan, ray: bool) -> None:
    """Ends with 0 when every document has its memory."""
    pool.START = "fork"
    torch.set_num_threads(1)
    how: dict[str, Any] = dict(ray="", cpus_per_worker=1) if ray else dict(workers=2)
    summary = corpus(documents, out, plan, progress=False, **how)
    if multiprocessing.parent_process() is not None:
        os._exit(len(summary.failed))


def differing(right: Path, ours: Path, near: float = 0.0) -> int:
    """Whether the weights of two memories differ by more than `near` of their norm, or one is not
    there."""
    try:
        one, two = (
            torch.cat([t.flatten() for _, t in sorted(load_file(p / WEIGHTS).items())])
            for p in (right, ours)
        )
    except OSError:
        return 1
    return int(one.shape != two.shape or bool((one - two).norm() > near * one.norm()))


def tiny(folder: Path) -> Path:
    """A random model with the embedded model's tokenizer."""
    tokenizer = load_tokenizer("smollm2-135m")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=48,
        intermediate_size=80,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench kills", description=__doc__)
    for name, count in (("ranks", 60), ("workers", 30), ("ray", 10)):
        parser.add_argument(f"--{name}", type=int, default=count, metavar="N")
    parser.add_argument("--together", type=int, default=1, help="documents at once a worker")
    parser.add_argument("--gap", type=float, default=1.5, help="seconds between two kills, at most")
    parser.add_argument("--out", type=Path, default=RESULTS / "cpu-epyc")
    args = parser.parse_args(argv)
    os.environ.update(
        **dict(LIFTCORE_SAVE_SECONDS="0.1", RAY_worker_niceness="0", OMP_NUM_THREADS="1")
    )
    torch.set_num_threads(1)
    file, command = args.out / "kills.json", f"python -m bench kills {' '.join(argv)}".strip()
    # What is not asked for stays as it was counted before.
    result: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {}
    with tempfile.TemporaryDirectory() as folder:
        model = tiny(Path(folder) / "model")
        for name in ("ranks", "workers", "ray"):
            if not (count := getattr(args, name)):
                continue
            place, started = Path(folder) / name, time.perf_counter()
            place.mkdir()
            if name == "ranks":
                counted = ranks(place, model, count, args.gap)
            else:
                ray = name == "ray"
                gap = args.gap * (10 if ray else 1)
                counted = workers(place, model, count, gap, args.together, ray=ray)
            if name != "ranks" and args.together > 1:
                name += f", {args.together} documents at once"
            seconds = round(time.perf_counter() - started, 1)
            result[name] = {**counted, "seconds": seconds, "command": command}
            print(name, json.dumps(result[name]), flush=True)
    args.out.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(result, indent=1) + "\n")
    return int(any(part["lost"] for part in result.values()))
