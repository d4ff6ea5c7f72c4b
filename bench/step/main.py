"""A training step of liftcore against PEFT under Trainer (the official recipe) and a plain loop.

One process, the same weights, batches, order and starting adapter; the variants take turns. The
losses are compared first and in every round: no speed-up is printed where they differ. The split
sums to the step; "host" is what no stage accounts for. The floor is the time of the operations a
step needs, at the rate of one large matrix product measured in the same run. Peak memory is that
of a process of its own on a CPU, and without the other variants' tensors on a GPU.

    python -m bench step                       SmolLM2-135M on a CPU; all models on a GPU
    python -m bench step --device cpu --model llama-3-8b --tokens 512 --layers 1
    python -m bench step --minutes 5 --fast    with gradient checkpointing as a fourth variant
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch

from bench import shapes
from bench.common import RESULTS, Rows, device_name, known, results_name, table, versions
from bench.step import stages
from bench.step.case import Case
from bench.step.measure import (
    Outcome,
    disagreement,
    loss_difference,
    measure,
    peak_rate,
    reason,
)
from bench.step.variants import VARIANTS, build, label
from liftcore import device_memory as usage
from liftcore import model as models

DROPIN = """\
transformers' Trainer and PEFT, as they are and with liftcore.accelerate: one run, in turns.

Nothing else changes: fp32 adapters, the same batches, order and start. The losses are compared
first; "loss diff" is the largest difference of one step's loss over all rounds. The options are
those of `python -m bench step`.

    python -m bench dropin --device cpu
"""
COLUMNS = (
    "model", "layers", "tokens", "segment_length", "scored", "rank", "dtype", "variant",
    "tokens_per_second", "slowest", "fastest", "step_ms", "forward_ms", "head_ms", "backward_ms",
    "optimizer_ms", "host_ms", "peak_gib", "floor_ms", "floor_share", "peak_tflops",
    "liftcore_speedup", "first_loss", "last_loss", "loss_difference", "agrees", "note",
)  # fmt: skip


def memory_of(benchmark: str, name: str, model: str, tokens: int, args: argparse.Namespace) -> int:
    """Peak bytes of a process that runs one variant alone."""
    command = [sys.executable, "-m", "bench", benchmark, "--memory-of", name, "--model", model]
    command += ["--tokens", str(tokens), "--steps", str(min(2, args.steps))]
    for option in ("device", "segment_length", "overlap_loss", "rank", "layers"):
        value = getattr(args, option)
        if value is not None:
            command += ["--" + option.replace("_", "-"), str(value)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        return 0
    return json.loads(done.stdout.splitlines()[-1])["peak_bytes"]


def report(
    case: Case, name: str, own: str, outcomes: dict[str, Outcome], rate: float, rows: Rows
) -> tuple[list, bool]:
    """Adds the rows of a case and prints its table; (rows, whether the losses agree). `own` is
    the variant that the others are compared with."""
    wrong = disagreement(outcomes, own)
    layers = case.model.config.get_text_config().num_hidden_layers
    ours, floor_seconds, added = outcomes[own], case.flops / rate, []
    for variant, outcome in outcomes.items():
        row = {
            "model": name, "layers": layers, "tokens": case.tokens,
            "segment_length": case.config.segment_length, "scored": round(case.scored, 1),
            "rank": case.config.rank, "variant": label(variant, case.device),
            "dtype": str(next(case.model.parameters()).dtype).removeprefix("torch."),
            "note": f"not run: {outcome.note}" if not outcome.ran
            else wrong.get(variant, outcome.how),
        }  # fmt: skip
        if outcome.ran:
            step = statistics.median(outcome.seconds)
            # Means, so that the stages and the host sum to a step.
            host = statistics.mean(outcome.seconds) - sum(outcome.split.values())
            row |= {
                "tokens_per_second": round(case.tokens / step, 1),
                "slowest": round(case.tokens / max(outcome.seconds), 1),
                "fastest": round(case.tokens / min(outcome.seconds), 1),
                "step_ms": round(1e3 * step, 2),
                **{f"{k}_ms": round(1e3 * v, 2) for k, v in outcome.split.items()},
                "host_ms": round(1e3 * max(0.0, host), 2),
                "peak_gib": round(outcome.peak_bytes / 2**30, 3) or "",
                "floor_ms": round(1e3 * floor_seconds, 2),
                "floor_share": round(floor_seconds / step, 4),
                "peak_tflops": round(rate / 1e12, 4),
                "first_loss": round(outcome.losses[0][0], 4),
                "last_loss": round(outcome.losses[-1][-1], 4),
                "agrees": variant not in wrong,
            }
            if ours.ran:
                row["loss_difference"] = round(loss_difference(outcome, ours), 5)
            if ours.ran and not wrong and variant != own:
                ratios = [a / b for a, b in zip(outcome.seconds, ours.seconds, strict=True)]
                row["liftcore_speedup"] = round(statistics.median(ratios), 3)
        rows.add(**row)
        added.append(row)
    _print(added, f"{name}, {layers} layers, T {case.tokens}")
    if wrong:
        print("the losses differ: no speed-up is claimed")
    return added, not wrong


def _print(rows: list[dict], title: str) -> None:
    stage_names = [*stages.NAMES, "host"]
    head = [title, "tokens/s (range)", "step, ms", *stage_names, "peak GiB", "of floor"]
    head += ["loss diff", "liftcore is"]
    lines = [head]
    for r in rows:
        if "step_ms" in r:
            spread = f"{r['tokens_per_second']:.0f} ({r['slowest']:.0f} to {r['fastest']:.0f})"
            split = [f"{r[f'{s}_ms']:.0f}" for s in stage_names]
            faster = f"{r['liftcore_speedup']:.2f} x" if "liftcore_speedup" in r else ""
            cells = [spread, f"{r['step_ms']:.0f}", *split, f"{r['peak_gib']}"]
            cells += [f"{r['floor_share']:.0%}", f"{r.get('loss_difference', '')}", faster]
            lines.append([r["variant"], *cells])
    print("\n" + table(lines))
    for r in rows:
        if r["note"]:
            print(f"{r['variant']}: {r['note']}")


def options(
    argv: list[str], benchmark: str = "step", text: str | None = __doc__
) -> tuple[argparse.Namespace, torch.device]:
    """(the parsed options with their defaults, the device)."""
    parser = argparse.ArgumentParser(
        prog=f"python -m bench {benchmark}",
        description=text,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--device")
    parser.add_argument("--model", nargs="+", help=f"{', '.join(shapes.SHAPES)}, or any folder")
    parser.add_argument("--tokens", nargs="+", type=int, help="tokens a step (512 to 16384)")
    parser.add_argument("--segment-length", type=int, help="(256 on a CPU, 1024 on a GPU)")
    parser.add_argument("--overlap-loss", choices=("all", "new"), default="all")
    parser.add_argument("--rank", type=int, default=128)
    parser.add_argument("--layers", type=int, help="of a shape (one of an 8B shape on a CPU)")
    parser.add_argument("--steps", type=int, default=4, help="steps of a round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--minutes", type=float, help="end after about so long (5 on a GPU)")
    parser.add_argument("--fast", action="store_true", help="also with gradient checkpointing")
    parser.add_argument("--out", type=Path, help="folder of the rows (bench/results/DEVICE)")
    parser.add_argument("--append", action="store_true", help="keep the rows that are there")
    parser.add_argument("--resume", action="store_true", help="measure only what has no row yet")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--memory-of", choices=list(VARIANTS), help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    device = torch.device(args.device or models.default_device())
    on_gpu = device.type == "cuda"
    args.model = args.model or (list(shapes.SHAPES) if on_gpu else ["smollm2-135m"])
    args.tokens = args.tokens or ([512, 2048, 8192, 16384] if on_gpu else [512])
    args.minutes = args.minutes or (5.0 if on_gpu else None)
    # The first two steps of a CUDA graph warm up and capture; they must not be timed.
    args.steps = max(3, args.steps) if on_gpu else args.steps
    return args, device


def run(benchmark: str, text: str, argv: list[str], names: list[str], own: str) -> int:
    """A benchmark of steps: the variants `names`, compared with `own`; the exit status."""
    args, device = options(argv, benchmark, text)
    if args.memory_of:
        layers = args.layers or shapes.default_layers(args.model[0], device)
        case = Case(*shapes.build(args.model[0], device, layers), args.tokens[0], args)
        usage.reset_peak(device)
        build(args.memory_of, case).epoch(0)
        print(json.dumps({"peak_bytes": usage.peak_bytes(device)}))
        return 0
    names = [n for n in names if args.fast or not n.endswith("-fast")]
    folder = args.out or RESULTS / results_name(device)
    file = folder / f"{benchmark}.csv"
    measured = known(file, "model", "tokens", "step_ms") if args.resume else set()
    rows = Rows(file, device, COLUMNS, args.append or args.resume)
    print(f"python -m bench {benchmark} {' '.join(argv)}".rstrip() + f"\n{device_name(device)}")
    print(" ".join(f"{k}={v}" for k, v in versions().items()))
    there = {(model, tokens) for model, tokens, milliseconds in measured if milliseconds}
    todo = [(model, tokens) for model in args.model for tokens in args.tokens]
    todo = [(model, tokens) for model, tokens in todo if (model, str(tokens)) not in there]
    end = time.perf_counter() + (60 * args.minutes if args.minutes else np.inf)
    added, ok, current, model = [], True, None, None
    for done, (name, tokens) in enumerate(todo):
        left = end - time.perf_counter()
        if left < 0:
            print(f"{name}, T {tokens}: not run, the time was up")
            rows.add(model=name, tokens=tokens, note="not run: the time was up")
            continue
        deadline = time.perf_counter() + left / (len(todo) - done)
        try:
            if name != current:
                model, current = None, name
                gc.collect()
                layers = args.layers or shapes.default_layers(name, device)
                model = shapes.build(name, device, layers)
            assert model is not None
            case = Case(*model, tokens, args)
        except Exception as error:
            print(f"{name}, T {tokens}: not run: {reason(error)}")
            rows.add(model=name, tokens=tokens, note=f"not run: {reason(error)}")
            current, ok = None, False
            continue
        dtype = next(case.model.parameters()).dtype
        rate = peak_rate(device, dtype)
        outcomes = measure(case, names, args.rounds, deadline)
        # Something else may have run beside the first one.
        rate = max(rate, peak_rate(device, dtype))
        if device.type == "cpu":
            for variant, outcome in outcomes.items():
                if outcome.ran:
                    outcome.peak_bytes = memory_of(benchmark, variant, name, tokens, args)
        new, agrees = report(case, name, own, outcomes, rate, rows)
        added, ok = added + new, ok and agrees
        del case, outcomes
        gc.collect()
    print(f"\nrows: {rows.path}")
    if args.json:
        print(json.dumps({"device": device_name(device), "versions": versions(), "rows": added}))
    return 0 if ok else 1


def main(argv: list[str]) -> int:
    names = ["official", "official-fast", "plain", "liftcore"]
    return run("step", __doc__, argv, names, own="liftcore")


def dropin(argv: list[str]) -> int:
    names = ["official", "official-fast", "accelerated", "accelerated-fast"]
    return run("dropin", DROPIN, argv, names, own="accelerated")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
