"""Times variants of a training step in turns, says whether their losses agree, and what the floor
is: the operations that a step needs, at the rate of one large product."""

from __future__ import annotations

import dataclasses
import gc
import statistics
import time
from collections.abc import Callable, Sequence

import torch

from bench.step.case import Case
from bench.step.variants import build
from liftcore import device_memory as usage

# The product whose rate is the floor: rows of a square, by device.
PRODUCTS = {"cpu": 2048, "cuda": 8192}
PRODUCT_REPEATS = 7
NO_MEMORY = "out of memory"
FIRST_TOLERANCE, MEAN_TOLERANCE = 0.01, 0.02


@dataclasses.dataclass
class Outcome:
    """What became of a variant; `how` is how it ran, `note` why it did not."""

    losses: list[list[float]] = dataclasses.field(default_factory=list)  # by round
    seconds: list[float] = dataclasses.field(default_factory=list)  # by timed round
    split: dict[str, float] = dataclasses.field(default_factory=dict)  # seconds of a step
    peak_bytes: int = 0
    how: str = ""
    note: str = ""

    @property
    def ran(self) -> bool:
        return bool(self.seconds) and not self.note


def measure(case: Case, names: Sequence[str], rounds: int, deadline: float) -> dict[str, Outcome]:
    """Builds the variants, runs each once, then times them in turns: `rounds` rounds, or as many
    as fit before the deadline, but one at least.

    Those for which memory ends beside what the others hold are timed once more, each alone.
    """
    outcomes = in_turns(case, names, rounds, deadline)
    for name in [n for n in names if outcomes[n].note == NO_MEMORY and len(names) > 1]:
        gc.collect()
        outcomes[name] = alone = in_turns(case, [name], rounds, deadline)[name]
        if alone.ran:
            alone.how = "; ".join(filter(None, (alone.how, "timed alone, for memory")))
    return outcomes


def in_turns(case: Case, names: Sequence[str], rounds: int, deadline: float) -> dict[str, Outcome]:
    """measure() with all variants in memory at once."""
    outcomes, built = {name: Outcome() for name in names}, {}
    on_gpu = case.device.type == "cuda"
    shared = torch.cuda.memory_allocated(case.device) if on_gpu else 0

    def attempt(run: Callable[[str], None], name: str) -> None:
        try:
            return run(name)
        except Exception as error:
            outcomes[name].note = reason(error)
        # Outside of the handler: its traceback would keep what the variant had allocated.
        built.pop(name, None)
        gc.collect()
        if on_gpu:
            torch.cuda.empty_cache()

    def first(name: str) -> None:
        before = torch.cuda.memory_allocated(case.device) if on_gpu else 0
        usage.reset_peak(case.device)
        built[name] = build(name, case)
        outcomes[name].losses.append(built[name].epoch(0))
        if on_gpu:
            outcomes[name].peak_bytes = usage.peak_bytes(case.device) - before + shared

    def timed(name: str) -> None:
        outcomes[name].losses.append(built[name].epoch(len(outcomes[name].losses)))
        outcomes[name].seconds.append(built[name].seconds / case.steps)

    def split(name: str) -> None:
        variant, steps = built[name], case.steps
        if on_gpu:
            variant.stages.on, variant.stages.pause = True, 2 * min(outcomes[name].seconds)
            variant.epoch(len(outcomes[name].losses))
            parts = variant.stages.take()
        else:
            parts, steps = variant.stages.take(), steps * len(outcomes[name].seconds)
        outcomes[name].how = variant.how
        outcomes[name].split = {stage: s / steps for stage, s in parts.items()}

    for name in names:
        attempt(first, name)
    for variant in built.values():
        # Marks cost nothing on a CPU, where the split is that of the timed steps.
        variant.stages.on = not on_gpu
    for done in range(rounds):
        if done and time.perf_counter() > deadline:
            break
        for name in list(built):
            attempt(timed, name)
    for name in list(built):
        attempt(split, name)
    return outcomes


def reason(error: Exception) -> str:
    """Why something did not run, in one line."""
    if isinstance(error, torch.cuda.OutOfMemoryError):
        return NO_MEMORY
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]


def disagreement(outcomes: dict[str, Outcome], own: str = "liftcore") -> dict[str, str]:
    """Why a variant's losses are not those of `own`: the first step's closely, the mean of every
    round within 2 %."""
    wrong, ours = {}, outcomes[own]
    for name, outcome in outcomes.items():
        if outcome.ran and ours.ran and name != own:
            pairs = [(outcome.losses[0][0], ours.losses[0][0], FIRST_TOLERANCE)]
            # What was timed alone may have had fewer rounds.
            for a, b in zip(outcome.losses, ours.losses, strict=False):
                pairs.append((statistics.mean(a), statistics.mean(b), MEAN_TOLERANCE))
            bad = [(a, b) for a, b, bound in pairs if not abs(a - b) <= bound * abs(b)]
            if bad:
                wrong[name] = "loss {:.4f} where liftcore has {:.4f}".format(*bad[0])
    return wrong


def loss_difference(outcome: Outcome, ours: Outcome) -> float:
    """The largest difference of two losses of one step, over the rounds of both."""
    rounds = zip(outcome.losses, ours.losses, strict=False)
    return max(abs(x - y) for a, b in rounds for x, y in zip(a, b, strict=True))


def peak_rate(device: torch.device, dtype: torch.dtype, size: int | None = None) -> float:
    """Operations a second of a square product of random numbers, the best of seven."""
    n = size or PRODUCTS[device.type]
    a, b = (torch.randn(n, n, device=device, dtype=torch.float32).to(dtype) for _ in range(2))
    torch.mm(a, b)
    seconds = []
    for _ in range(PRODUCT_REPEATS):
        if device.type == "cuda":
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            torch.mm(a, b)
            end.record()
            end.synchronize()
            seconds.append(begin.elapsed_time(end) / 1e3)
        else:
            start = time.perf_counter()
            torch.mm(a, b)
            seconds.append(time.perf_counter() - start)
    return 2.0 * n**3 / min(seconds)
