"""python -m bench NAME [options]: runs one benchmark."""

import importlib
import sys

# Name -> module with a main().
BENCHMARKS = {
    "demo": "bench.demo",
    "dropin": "bench.step.dropin",
    "estimate": "bench.estimate",
    "families": "bench.families.main",
    "gpu": "bench.gpu",
    "kernels": "bench.kernels.main",
    "longbench": "bench.evaluations.longbench",
    "loogle": "bench.evaluations.loogle",
    "niah": "bench.evaluations.niah",
    "readme": "bench.readme.main",
    "recall": "bench.recall.main",
    "scaling": "bench.scaling.main",
    "step": "bench.step.main",
    "understand": "bench.understand.main",
}


def main(argv: list[str]) -> int:
    if not argv or argv[0] not in BENCHMARKS:
        print(f"usage: python -m bench {{{','.join(BENCHMARKS)}}} [options]", file=sys.stderr)
        return 2
    return importlib.import_module(BENCHMARKS[argv[0]]).main(argv[1:])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
