"""transformers' Trainer and PEFT, as they are and with liftcore.accelerate: one run, in turns.

Nothing else changes: fp32 adapters, the same batches, order and start. The losses are compared
first; "loss diff" is the largest difference of one step's loss over all rounds. The options are
those of `python -m bench step`.

    python -m bench dropin --device cpu
"""

from __future__ import annotations

from bench.step import main as step

NAMES = ["official", "official-fast", "accelerated", "accelerated-fast"]


def main(argv: list[str]) -> int:
    return step.run("dropin", __doc__, argv, NAMES, own="accelerated")
