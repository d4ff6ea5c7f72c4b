"""Whether a variant of the kernel benchmark computes what it should, and why it does not run."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch

from bench.common import relative_error

LOSS_TOLERANCE, ROUNDED_LOSS_TOLERANCE = 1e-3, 0.03
TINY = {torch.bfloat16: 2e-3, torch.float16: 5e-4, torch.float32: 1e-5}


@dataclasses.dataclass
class Outcome:
    """What became of a variant; `correct` is None without a check, `note` says why not run."""

    correct: bool | None = None
    error: str = ""
    plain_error: str = ""
    milliseconds: float | None = None
    peak_mib: float | None = None
    note: str = ""


class DeadDevice(RuntimeError):
    """The GPU answers nothing any more: a variant broke the process's context."""


def check(
    variants: dict[str, Callable[[Any], Callable[[], Any]]],
    problem: Any,
    device: torch.device,
    dtype: torch.dtype,
) -> tuple[dict[str, Callable[[], Any]], dict[str, Outcome]]:
    """(what to run, Outcome) by variant; only what ran once is to be run."""
    truth = [t.detach() for t in problem.truth()]
    running, outcomes, rival = {}, {}, None
    # plain torch comes first: its error is the bound of all others.
    for name in sorted(variants, key=lambda n: n != "plain torch"):
        outcomes[name] = outcome = Outcome()
        try:
            run = variants[name](problem)
            result = run()
            if name != "base products":
                values = [a.detach().reshape(b.shape) for a, b in zip(result, truth, strict=True)]
                errors = [relative_error(a, b) for a, b in zip(values, truth, strict=True)]
                rival = errors if name == "plain torch" else rival
                outcome.error = f"{max(errors, key=_nan_last):.2e}"
                if rival is None:
                    outcome.note = "no bound: plain torch did not run"
                else:
                    outcome.plain_error = f"{max(rival, key=_nan_last):.2e}"
                    bounds = [
                        2 * r + _slack(name, a, dtype) for r, a in zip(rival, values, strict=True)
                    ]
                    outcome.correct = all(e <= b for e, b in zip(errors, bounds, strict=True))
            running[name] = run
        except Exception as error:
            outcome.note = reason_of(error, device, name)
        result = values = None
    return {n: running[n] for n in variants if n in running}, outcomes


def _nan_last(error: float) -> float:
    return float("inf") if error != error else error


def _slack(name: str, result: torch.Tensor, dtype: torch.dtype) -> float:
    if result.ndim:
        return TINY[dtype]
    rounded = result.element_size() == 2 and not name.startswith("ours")
    return ROUNDED_LOSS_TOLERANCE if rounded else LOSS_TOLERANCE


def reason_of(error: Exception, device: torch.device, name: str = "") -> str:
    """One line about an error; raises DeadDevice when the GPU does not live on."""
    lines = str(error).strip().splitlines()
    text = f"{type(error).__name__}: {lines[0] if lines else ''}"[:160]
    if device.type == "cuda":
        try:
            torch.cuda.synchronize(device)
            torch.cuda.empty_cache()
        except RuntimeError as dead:
            raise DeadDevice(f"{name}: {text}") from dead
    return text
