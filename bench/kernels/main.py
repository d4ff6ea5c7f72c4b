"""The LoRA ops, also over FP8, and the head loss, forward and backward, against plain PyTorch and
the peers.

    python -m bench kernels                       everything that this machine can run
    python -m bench kernels --op head --model llama-3-8b --tokens 8192
    python -m bench kernels --compile-only        registers, spills, shared memory; needs no GPU

Each variant is first checked at each T against fp32 truth: its error may be twice that of plain
PyTorch in the same dtype; the loss of a peer that returns it in 16 bits may differ by 3 %. One
that fails is timed but never compared, and neither is one without a bound, where plain PyTorch
could not run. "base products" are the frozen products alone, the floor. Rows go to
bench/results/DEVICE/ as they are measured, options that change what is measured into the name of
the file.
"""

from __future__ import annotations

import argparse
import dataclasses
import re
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from bench.common import (
    RESULTS,
    Rows,
    Timer,
    device_name,
    known,
    peak_mib,
    results_name,
    table,
    versions,
)
from bench.kernels import fp8_variants, head_variants, lora_variants
from bench.kernels.check import DeadDevice, Outcome, check, reason_of


@dataclasses.dataclass(frozen=True)
class Model:
    """Widths of a model's layers."""

    hidden: int
    kv: int
    mlp: int
    vocab: int


MODELS = {
    "llama-3-8b": Model(4096, 1024, 14336, 128256),
    "qwen3-8b": Model(4096, 1024, 12288, 151936),
    "smollm2-135m": Model(576, 192, 1536, 49152),
}
COMPUTED = """Computed, not measured (bench/kernels/computed.py): programs that fit on a processor,
instructions of the product's loop, products that may be pending, L2 traffic against the least,
microseconds of the first launch of the kernel on an H100, and the floor of these."""
OPS = ("linear", "qkv", "gate_up", "head", "fp8")
MASKED = (0.0, 0.375, 0.625)
COLUMNS = (
    "op", "model", "shape", "k", "n", "v", "tokens", "masked", "rank", "dtype", "variant",
    "milliseconds", "peak_mib", "error", "plain_error", "correct", "note",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Case:
    """One op at one shape: k features into each of `widths`, or a head of widths[0] classes."""

    op: str
    model: str
    name: str
    k: int
    widths: tuple[int, ...]
    masked: float = 0.0

    @property
    def variants(self) -> dict[str, Any]:
        return {"head": head_variants, "fp8": fp8_variants}.get(self.op, lora_variants).VARIANTS

    def problem(
        self, tokens: int, rank: int, device: torch.device, dtype: torch.dtype
    ) -> head_variants.HeadProblem | lora_variants.LoraProblem:
        torch.manual_seed(tokens)
        if self.op == "head":
            return head_variants.HeadProblem(
                tokens, self.k, self.widths[0], self.masked, device, dtype
            )
        problem = fp8_variants.Fp8Problem if self.op == "fp8" else lora_variants.LoraProblem
        return problem(self.op, tokens, self.k, list(self.widths), rank, device, dtype)


def cases(ops: Sequence[str], models: Sequence[str]) -> Iterator[Case]:
    """Every shape that occurs in the models, each once a model."""
    for name in models:
        m = MODELS[name]
        shapes = [
            Case("linear", name, "q/o", m.hidden, (m.hidden,)),
            Case("linear", name, "k/v", m.hidden, (m.kv,)),
            Case("linear", name, "gate/up", m.hidden, (m.mlp,)),
            Case("linear", name, "down", m.mlp, (m.hidden,)),
            Case("qkv", name, "q+k+v", m.hidden, (m.hidden, m.kv, m.kv)),
            Case("gate_up", name, "gate+up", m.hidden, (m.mlp, m.mlp)),
            *(Case("head", name, f"{s:.1%} masked", m.hidden, (m.vocab,), s) for s in MASKED),
            Case("fp8", name, "q/o", m.hidden, (m.hidden,)),
            Case("fp8", name, "q+k+v", m.hidden, (m.hidden, m.kv, m.kv)),
            Case("fp8", name, "down", m.mlp, (m.hidden,)),
        ]
        yield from (c for c in shapes if c.op in ops)


def measure(
    case: Case, tokens: int, args: argparse.Namespace, timer: Timer, rows: Rows
) -> dict[str, Outcome]:
    """Outcome by variant; one row of the file for every variant, run or not."""
    device = timer.device
    problem = case.problem(tokens, args.rank, device, args.dtype)
    running, outcomes = check(case.variants, problem, device, args.dtype)
    for name in list(running):
        try:
            outcomes[name].peak_mib = peak_mib(running[name], device)
        except Exception as error:
            outcomes[name].note = reason_of(error, device, name)
            del running[name]
    times, failed = timer.compare(running)
    for name, seconds in times.items():
        outcomes[name].milliseconds = 1e3 * seconds
    for name, error in failed.items():
        outcomes[name].note = reason_of(error, device, name)
    for name in case.variants:
        _add_row(rows, case, tokens, args, name, outcomes[name])
    return outcomes


def _add_row(
    rows: Rows, case: Case, tokens: int, args: argparse.Namespace, name: str, outcome: Outcome
) -> None:
    head, ran = case.op == "head", outcome.milliseconds is not None
    rows.add(
        op=case.op,
        model=case.model,
        shape=case.name,
        k=case.k,
        n="" if head else "+".join(map(str, case.widths)),
        v=case.widths[0] if head else "",
        tokens=tokens,
        masked=case.masked if head else "",
        rank="" if head else args.rank,
        dtype=str(args.dtype).removeprefix("torch."),
        variant=name,
        milliseconds=f"{outcome.milliseconds:.4f}" if ran else "",
        peak_mib="" if outcome.peak_mib is None else f"{outcome.peak_mib:.1f}",
        error=outcome.error,
        plain_error=outcome.plain_error,
        correct="" if outcome.correct is None or not ran else outcome.correct,
        note=outcome.note if ran else f"not run: {outcome.note}",
    )


def print_tables(results: list[tuple[Case, int, dict[str, Outcome]]]) -> None:
    """A table for each op: milliseconds of each variant, and what could not run."""
    for op in OPS:
        measured = [r for r in results if r[0].op == op]
        if not measured:
            continue
        ran = {
            n for _, _, all_of in measured for n, o in all_of.items() if o.milliseconds is not None
        }
        names = [n for n in measured[0][0].variants if n in ran]
        lines = [[f"{op}, ms", "tokens", *names, "ours best / base"]]
        for case, tokens, outcomes in measured:
            cells = [_cell(outcomes[n], n) for n in names]
            times = {n: o.milliseconds for n, o in outcomes.items() if o.milliseconds is not None}
            best = min(
                (t for n, t in times.items() if n[:4] == "ours" and outcomes[n].correct),
                default=None,
            )
            base = times.get("base products")
            lines.append(
                [
                    f"{case.model} {case.name}",
                    str(tokens),
                    *cells,
                    f"{best / base:.2f}" if best and base else "-",
                ]
            )
        print("\n" + table(lines))
        notes = {
            n: o.note
            for _, _, all_of in measured
            for n, o in all_of.items()
            if o.milliseconds is None
        }
        for name, why in sorted(notes.items()):
            print(f"not run: {name} ({why})")


def _cell(outcome: Outcome, name: str) -> str:
    if outcome.milliseconds is None:
        return "-"
    word = {True: "", False: " wrong", None: "" if name == "base products" else " no bound"}
    return f"{outcome.milliseconds:.3f}{word[outcome.correct]}"


def compile_only(archs: Sequence[int]) -> int:
    """The table of what every kernel uses of a GPU, compiled without one."""
    from bench.kernels.compile_check import SHARED_LIMIT, compile_all

    lines = [["kernel", "sm", "warps", "stages", "registers", "spilled", "shared", "programs",
              "loop", "pending", "traffic", "us", "floor", "product"]]  # fmt: skip
    bad = 0
    for u in compile_all(archs):
        numbers = (u.arch, u.warps, u.stages, u.registers, u.spilled, u.shared, u.programs, u.loop)
        times = [f"{1e6 * s:.1f}" if u.arch == 90 else "" for s in (u.seconds, u.floor)]
        more = [str(u.pending or ""), f"{u.traffic:.1f}" if u.traffic else "", *times]
        lines.append([u.kernel, *map(str, numbers), *more, u.error or u.matrix])
        bad += bool(u.error) or u.spilled > 0 or u.shared > SHARED_LIMIT[u.arch]
    print(f"triton {versions()['triton']}. " + COMPUTED)
    print(table(lines))
    print(f"{len(lines) - 1} kernels compiled, {bad} with an error, a spill or too much memory")
    return 1 if bad else 0


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench kernels",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--op", nargs="+", choices=OPS, default=OPS)
    parser.add_argument("--model", nargs="+", choices=MODELS)
    parser.add_argument("--tokens", nargs="+", type=int)
    parser.add_argument("--rank", type=int, default=128)
    parser.add_argument("--dtype", choices=("bfloat16", "float16", "float32"), default="bfloat16")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--seconds", type=float, default=0.15, help="for each variant and shape")
    parser.add_argument("--minutes", type=float, default=9.0, help="no new shape after this long")
    parser.add_argument("--out", type=Path, help="folder of the rows (bench/results/DEVICE)")
    parser.add_argument("--resume", action="store_true", help="measure only what has no row yet")
    parser.add_argument("--compile-only", action="store_true")
    parser.add_argument("--arch", nargs="+", type=int, default=[80, 89, 90, 100, 120])
    args = parser.parse_args(argv)
    if args.compile_only:
        return compile_only(args.arch)
    names = changed(args, parser)
    args.dtype = getattr(torch, args.dtype)
    device = torch.device(args.device)
    gpu = device.type == "cuda"
    models = args.model or (list(MODELS) if gpu else ["smollm2-135m"])
    lengths = args.tokens or ((512, 2048, 8192, 16384) if gpu else (128, 512))
    timer = Timer(device, args.seconds, (5, 50) if gpu else (3, 9))
    name = device_name(device)
    print(f"{name}, {args.dtype}, rank {args.rank}")
    if not gpu:
        print("no GPU: small shapes on the CPU; these are CPU figures and say nothing of a GPU")
    stem = (args.out or RESULTS / results_name(device)) / "-".join(["kernels", *names])
    file = stem.with_name(stem.name + ".csv")
    measured = known(file, "op", "model", "shape", "tokens", "masked") if args.resume else set()
    rows = Rows(file, device, COLUMNS, args.resume)
    results, late, dead = [], [], None
    deadline = time.monotonic() + 60 * args.minutes
    for case in cases(args.op, models):
        if time.monotonic() > deadline or dead:
            late.append(f"{case.op} {case.model} {case.name}")
            continue
        for tokens in lengths:
            key = (case.op, case.model, case.name, tokens, case.masked if case.op == "head" else "")
            if tuple(map(str, key)) in measured:
                continue
            try:
                results.append((case, tokens, measure(case, tokens, args, timer, rows)))
            except DeadDevice as error:
                dead = f"{case.op} {case.model} {case.name} {tokens}: the GPU died of {error}"
                break
            except Exception as error:  # inputs or truth without room, say
                late.append(
                    f"{case.op} {case.model} {case.name} {tokens} ({reason_of(error, device)})"
                )
            print(f"{case.op} {case.model} {case.name} {tokens}", file=sys.stderr, flush=True)
    print_tables(results)
    if late:
        print(f"\nnot run, at most {args.minutes:g} minutes: {', '.join(late)}")
    if dead:
        print(dead)
    print(f"\nrows: {rows.path}")
    if not results:
        return 0 if measured and not late else 1
    try:
        from bench.kernels.plot import plot
    except ImportError as error:
        print(f"no plot: {error}")
    else:
        picture = stem.with_name(stem.name + ".png")
        print(f"plot: {plot(results, picture, name, args.dtype)}")
    wrong = [
        n
        for _, _, outcomes in results
        for n, o in outcomes.items()
        if n[:4] == "ours" and o.correct is False
    ]
    if wrong:
        print(f"{len(wrong)} of our own timings have wrong numbers")
    return 1 if wrong or dead else 0


def changed(args: argparse.Namespace, parser: argparse.ArgumentParser) -> list[str]:
    """The options that are not the defaults, for the name of the results: but where, and when to
    stop."""
    usual, silent = vars(parser.parse_args([])), ("device", "out", "minutes", "resume", "arch")
    given = {k: v for k, v in vars(args).items() if k not in silent and v != usual[k]}
    return [re.sub(r"[^a-z0-9.]+", "-", f"{k}-{v}".lower()).strip("-") for k, v in given.items()]
