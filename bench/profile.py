"""Which kernels the time of liftcore's training step goes into, and what holds the hottest one up.

The kernels of a few steps by torch's profiler, on a GPU those of replayed CUDA graphs. "busy" is
the share of the wall time in which a kernel ran. Where Nsight Compute (ncu) is on the path, it
looks at one launch of the hottest kernel, in a process of its own over two layers of the model.

    python -m bench profile                      llama-3-8b, 8192 tokens, on a GPU
    python -m bench profile --device cpu --model smollm2-135m --tokens 512
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from bench import shapes
from bench.common import RESULTS, Rows, device_name, results_name, table
from bench.step.case import Case
from bench.step.variants import Liftcore, build
from liftcore import model as models
from liftcore.training.loop import prepared

COLUMNS = ("model", "layers", "tokens", "kernel", "launches", "milliseconds", "share")
SHOWN = 20
NCU_LAYERS = 2


def kernels(variant: Liftcore, epoch: int) -> tuple[list[tuple[str, int, float]], float]:
    """([(name, launches, seconds)], wall seconds) of an epoch, the longest first; ops on a CPU."""
    on_gpu = variant.device.type == "cuda"
    activity = ProfilerActivity.CUDA if on_gpu else ProfilerActivity.CPU
    # What is compared before the first step is no part of one.
    with (
        prepared(variant.adapter, variant.config.segment_length),
        profile(activities=[activity]) as watched,
    ):
        start = variant.now()
        for step in variant.case.epoch(epoch):
            variant.runner.run(step)
        wall = variant.now() - start
    spent = [
        (e.key, e.count, (e.self_device_time_total if on_gpu else e.self_cpu_time_total) / 1e6)
        for e in watched.key_averages()
    ]
    return sorted((s for s in spent if s[2]), key=lambda s: -s[2]), wall


def function_name(kernel: str) -> str:
    """The bare name of a kernel: no return type, namespace or template."""
    name = re.split(r"[<(]", kernel.removeprefix("void "), maxsplit=1)[0]
    return name.split("::")[-1].strip()


def ncu(kernel: str, args: argparse.Namespace, folder: Path, seconds: float) -> str:
    """Writes ncu.txt of one launch of a kernel; what came of it, in a line."""
    tool, file = shutil.which("ncu"), folder / "ncu.txt"
    if tool is None:
        return "ncu is not on the path"
    command = [tool, "--clock-control", "none", "--graph-profiling", "node", "--set", "full"]
    command += ["--kernel-name", f"regex:^{re.escape(function_name(kernel))}$"]
    command += ["--launch-count", "1", sys.executable, "-m", "bench", "profile", "--once"]
    command += ["--model", args.model, "--tokens", str(args.tokens), "--layers", str(NCU_LAYERS)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=max(1, seconds))
    except subprocess.TimeoutExpired:
        return f"ncu did not end within {seconds:.0f} s"
    file.write_text(done.stdout + done.stderr)
    return f"ncu: {file}" if not done.returncode else f"ncu failed, see {file}"


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench profile",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--device", type=torch.device, default=torch.device(models.default_device())
    )
    parser.add_argument("--model", default="llama-3-8b", help=", ".join(shapes.SHAPES))
    parser.add_argument("--tokens", type=int, default=8192, help="of a step (%(default)s)")
    parser.add_argument("--layers", type=int, help="of the shape (one of an 8B shape on a CPU)")
    parser.add_argument("--segment-length", type=int, help="(256 on a CPU, 1024 on a GPU)")
    parser.add_argument("--rank", type=int, default=128)
    parser.add_argument("--steps", type=int, default=3, help="that are watched (%(default)s)")
    parser.add_argument("--minutes", type=float, default=3.0, help="for everything (%(default)s)")
    parser.add_argument("--out", type=Path, help="folder of the results (bench/results/DEVICE)")
    parser.add_argument("--once", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    end = time.monotonic() + 60 * args.minutes
    args.overlap_loss, args.rounds = "all", 1
    layers = args.layers or shapes.default_layers(args.model, args.device)
    case = Case(*shapes.build(args.model, args.device, layers), args.tokens, args)
    variant = build("liftcore", case)
    assert isinstance(variant, Liftcore)
    variant.epoch(0)  # on a GPU it warms up and captures
    if args.once:
        return 0
    spent, wall = kernels(variant, 1)
    busy = sum(seconds for *_, seconds in spent)
    folder = args.out or RESULTS / results_name(args.device)
    rows = Rows(folder / "profile.csv", args.device, COLUMNS)
    depth = case.model.config.get_text_config().num_hidden_layers
    lines = [["kernel", "launches", "ms a step", "share"]]
    for name, count, seconds in spent:
        each = 1e3 * seconds / args.steps
        rows.add(
            model=args.model, layers=depth, tokens=case.tokens, kernel=name,
            launches=count / args.steps, milliseconds=f"{each:.4f}", share=f"{seconds / wall:.4f}",
        )  # fmt: skip
        lines.append(
            [name[:60], f"{count / args.steps:.0f}", f"{each:.3f}", f"{seconds / wall:.1%}"]
        )
    print(f"{device_name(args.device)}\n{args.model}, {depth} layers, T {case.tokens}")
    print(table(lines[: SHOWN + 1]))
    print(f"a step takes {1e3 * wall / args.steps:.1f} ms, busy {busy / wall:.0%}; {variant.how}")
    print(f"rows: {rows.path}")
    if args.device.type == "cuda" and spent:
        print(ncu(spent[0][0], args, folder, end - time.monotonic()))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
