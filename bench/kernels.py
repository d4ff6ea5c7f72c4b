"""The LoRA ops and the head loss, forward and backward, against plain PyTorch and the peers.

    python -m bench kernels                       everything that this machine can run
    python -m bench kernels --op head --model llama-3-8b --tokens 8192
    python -m bench kernels --compile-only        registers, spills, shared memory; needs no GPU

Each variant is first checked against fp32 truth: its error may be twice that of plain PyTorch in
the same dtype; a loss may differ by 3 %, since some peers return it in bf16. One that fails is
timed but never compared. "base products" are the frozen products alone, the floor. Rows go to
bench/results/ as they are measured.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import time

import torch

from bench import head_variants, lora_variants
from bench.common import RESULTS, Rows, Timer, device_name, peak_mib, relative_error, slug, table


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
OPS = ("linear", "qkv", "gate_up", "head")
MASKED = (0.0, 0.375, 0.625)
CHECK_TOKENS = 512
LOSS_TOLERANCE = 0.03
TINY = {torch.bfloat16: 2e-3, torch.float16: 5e-4, torch.float32: 1e-5}
COLUMNS = (
    "op", "model", "shape", "tokens", "masked", "rank", "dtype", "variant", "milliseconds",
    "peak_mib", "error", "plain_error", "correct", "note",
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
    def variants(self):
        return (head_variants if self.op == "head" else lora_variants).VARIANTS

    def problem(self, tokens, rank, device, dtype):
        torch.manual_seed(tokens)
        if self.op == "head":
            return head_variants.HeadProblem(
                tokens, self.k, self.widths[0], self.masked, device, dtype
            )
        return lora_variants.LoraProblem(
            self.op, tokens, self.k, list(self.widths), rank, device, dtype
        )


def cases(ops, models):
    """Every shape that occurs in the models, each once a model."""
    for name in models:
        m = MODELS[name]
        found = [
            Case("linear", name, "q/o", m.hidden, (m.hidden,)),
            Case("linear", name, "k/v", m.hidden, (m.kv,)),
            Case("linear", name, "gate/up", m.hidden, (m.mlp,)),
            Case("linear", name, "down", m.mlp, (m.hidden,)),
            Case("qkv", name, "q+k+v", m.hidden, (m.hidden, m.kv, m.kv)),
            Case("gate_up", name, "gate+up", m.hidden, (m.mlp, m.mlp)),
            *(Case("head", name, f"{s:.1%} masked", m.hidden, (m.vocab,), s) for s in MASKED),
        ]
        yield from (c for c in found if c.op in ops)


def check(case, rank, device, dtype, tokens):
    """By variant (error, plain's error, correct, reason why not run), at a small T."""
    problem = case.problem(min(tokens, CHECK_TOKENS), rank, device, dtype)
    truth = [t.detach() for t in problem.truth()]
    found, rival = {}, None
    # plain torch comes first: its error is the bound of all others.
    for name in sorted(case.variants, key=lambda n: n != "plain torch"):
        if name == "base products":
            found[name] = ("", "", True, "")
            continue
        try:
            got = case.variants[name](problem)()
            errors = [
                relative_error(a.detach().reshape(b.shape), b)
                for a, b in zip(got, truth, strict=True)
            ]
        except Exception as error:
            found[name] = ("", "", False, _reason(error))
            continue
        rival = rival or errors
        bounds = [
            2 * r + (LOSS_TOLERANCE if t.ndim == 0 else TINY[dtype])
            for r, t in zip(rival, truth, strict=True)
        ]
        fine = all(e <= bound for e, bound in zip(errors, bounds, strict=True))
        found[name] = (f"{max(errors):.2e}", f"{max(rival):.2e}", fine, "")
    return found


def measure(case, tokens, args, checks, timer, rows):
    """Median milliseconds by variant; one row of the file for every variant, run or not."""
    problem = case.problem(tokens, args.rank, timer.device, args.dtype)
    notes = {name: why for name, (_, _, _, why) in checks.items()}
    running, peaks = {}, {}
    for name, build in case.variants.items():
        if notes[name]:
            continue
        try:
            running[name] = build(problem)
            peaks[name] = peak_mib(running[name], timer.device)
        except Exception as error:
            running.pop(name, None)
            notes[name] = _reason(error)
    times = {name: 1e3 * s for name, s in timer.compare(running).items()}
    for name, (error, plain_error, correct, _) in checks.items():
        rows.add(
            op=case.op,
            model=case.model,
            shape=case.name,
            tokens=tokens,
            masked=case.masked if case.op == "head" else "",
            rank="" if case.op == "head" else args.rank,
            dtype=str(args.dtype).removeprefix("torch."),
            variant=name,
            milliseconds=f"{times[name]:.4f}" if name in times else "",
            peak_mib="" if peaks.get(name) is None else f"{peaks[name]:.1f}",
            error=error,
            plain_error=plain_error,
            correct=correct if name in times else "",
            note=f"not run: {notes[name]}" if notes[name] else "",
        )
    return times, notes


def _reason(error: Exception) -> str:
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0] if text else ''}"[:160]


def print_tables(results, not_run):
    """A table for each op: milliseconds of each variant, and what could not run."""
    for op in OPS:
        found = [(c, t, times, ok) for c, t, times, ok in results if c.op == op]
        if not found:
            continue
        names = [n for n in found[0][0].variants if any(n in times for _, _, times, _ in found)]
        lines = [[f"{op}, ms", "tokens", *names, "ours best / base"]]
        for case, tokens, times, correct in found:
            cells = [
                f"{times[n]:.3f}{'' if correct[n] else ' wrong'}" if n in times else "-"
                for n in names
            ]
            best = min((times[n] for n in times if n[:4] == "ours" and correct[n]), default=None)
            ratio = f"{best / times['base products']:.2f}" if best else "-"
            lines.append([f"{case.model} {case.name}", str(tokens), *cells, ratio])
        print("\n" + table(lines))
        for name, why in sorted(not_run.get(op, {}).items()):
            print(f"not run: {name} ({why})")


def compile_only() -> int:
    """The table of what every kernel uses of a GPU, compiled without one."""
    from liftcore.kernels.compile_check import SHARED_LIMIT, compile_all

    lines = [["kernel", "sm", "warps", "stages", "registers", "spilled", "shared", "product"]]
    bad = 0
    for u in compile_all():
        numbers = (u.arch, u.warps, u.stages, u.registers, u.spilled, u.shared)
        lines.append([u.kernel, *map(str, numbers), u.error or u.matrix])
        bad += bool(u.error) or u.spilled > 0 or u.shared > SHARED_LIMIT[u.arch]
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
    parser.add_argument("--compile-only", action="store_true")
    args = parser.parse_args(argv)
    if args.compile_only:
        return compile_only()
    args.dtype = getattr(torch, args.dtype)
    device = torch.device(args.device)
    gpu = device.type == "cuda"
    models = args.model or (list(MODELS) if gpu else ["smollm2-135m"])
    lengths = args.tokens or ((512, 2048, 8192, 16384) if gpu else (128, 512))
    timer = Timer(device, args.seconds, (5, 50) if gpu else (3, 9))
    print(f"{device_name(device)}, {args.dtype}, rank {args.rank}")
    if not gpu:
        print("no GPU: small shapes on the CPU; these are CPU figures and say nothing of a GPU")
    stem = RESULTS / f"kernels-{slug(device)}"
    rows = Rows(stem.with_suffix(".csv"), device, COLUMNS)
    results, not_run, late, wrong = [], {}, [], 0
    deadline = time.monotonic() + 60 * args.minutes
    for case in cases(args.op, models):
        if time.monotonic() > deadline:
            late.append(f"{case.op} {case.model} {case.name}")
            continue
        checks = check(case, args.rank, device, args.dtype, max(lengths))
        correct = {name: ok for name, (_, _, ok, _) in checks.items()}
        for tokens in lengths:
            times, notes = measure(case, tokens, args, checks, timer, rows)
            results.append((case, tokens, times, correct))
            not_run.setdefault(case.op, {}).update({n: w for n, w in notes.items() if w})
            wrong += sum(n[:4] == "ours" and not correct[n] for n in times)
            print(f"{case.op} {case.model} {case.name} {tokens}", file=sys.stderr, flush=True)
    print_tables(results, not_run)
    if late:
        print(f"\nnot run within {args.minutes:g} minutes: {', '.join(late)}")
    print(f"\nrows: {rows.path}")
    if not results:
        return 1
    try:
        from bench.kernel_plot import plot
    except ImportError as error:
        print(f"no plot: {error}")
    else:
        print(f"plot: {plot(results, stem.with_suffix('.png'), device_name(device), args.dtype)}")
    if wrong:
        print(f"{wrong} of our own timings have wrong numbers")
    return 1 if wrong else 0
