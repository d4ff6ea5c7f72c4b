"""python -m bench NAME [options]: runs one benchmark."""

import importlib
import sys

NAMES = (
    "demo",
    "dropin",
    "estimate",
    "families",
    "gpu",
    "kernels",
    "longbench",
    "loogle",
    "niah",
    "readme",
    "recall",
    "scaling",
    "step",
    "understand",
)


def main(argv: list[str]) -> int:
    if not argv or argv[0] not in NAMES:
        print(f"usage: python -m bench {{{','.join(NAMES)}}} [options]", file=sys.stderr)
        return 2
    return importlib.import_module(f"bench.{argv[0]}").main(argv[1:])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
