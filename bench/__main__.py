"""python -m bench NAME [options]: runs one benchmark."""

import importlib
import sys

# Name -> module, and the function in it where that is not main().
BENCHMARKS = {
    "decode": "bench.decode",
    "demo": "bench.demo",
    "dropin": "bench.step.main:dropin",
    "estimate": "bench.estimate",
    "families": "bench.families.main",
    "gpu": "bench.gpu",
    "kernels": "bench.kernels.main",
    "longbench": "bench.evaluations.longbench",
    "kills": "bench.kills",
    "loogle": "bench.evaluations.loogle",
    "many": "bench.many",
    "niah": "bench.evaluations.niah",
    "profile": "bench.profile",
    "ranks": "bench.ranks",
    "readme": "bench.readme.main",
    "recall": "bench.recall.main",
    "rehearse": "bench.rehearsal.main",
    "scale": "bench.scale",
    "scaling": "bench.scaling.main",
    "selection": "bench.selection",
    "short": "bench.short",
    "step": "bench.step.main",
    "tune": "bench.tune",
    "understand": "bench.understand.main",
}


def main(argv: list[str]) -> int:
    if not argv or argv[0] not in BENCHMARKS:
        print(f"usage: python -m bench {{{','.join(BENCHMARKS)}}} [options]", file=sys.stderr)
        return 2
    module, _, function = BENCHMARKS[argv[0]].partition(":")
    return getattr(importlib.import_module(module), function or "main")(argv[1:])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
