"""Fits of cost against length, the line of a way with its fits, and where two costs cross."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from liftcore.config import SCHEDULES, LiftConfig

ANSWER = 32  # tokens of an answer
EPOCHS = (1, LiftConfig().epochs)


@dataclass(frozen=True)
class Fit:
    """cost(n) = Σ coefficients[i] · n^i, with the share of the spread that it explains."""

    coefficients: tuple[float, ...]
    r2: float

    @property
    def degree(self) -> int:
        return len(self.coefficients) - 1

    def __call__(self, n: float | np.ndarray) -> np.ndarray:
        powers = (np.asarray(n, dtype=float) ** i for i in range(len(self.coefficients)))
        return sum((c * p for c, p in zip(self.coefficients, powers, strict=True)), np.zeros(()))


@dataclass
class Line:
    """One way over all lengths."""

    way: str
    rows: list[dict]  # that ran, by length
    oom: int | None  # the first length that did not fit the memory
    first: Fit | None = None  # seconds to read the document
    question: Fit | None = None
    token: Fit | None = None
    memory: Fit | None = None
    lengths: list[int] = field(default_factory=list)

    @property
    def is_lift(self) -> bool:
        return self.way in SCHEDULES

    def cost(self, questions: int, epochs: int = 1) -> Fit:
        """cost() of this way, which has its three fits."""
        assert self.first and self.question and self.token
        return cost(self.first, self.question, self.token, questions, epochs)


def fit(lengths: Sequence[float], values: Sequence[float], degree: int) -> Fit:
    """Least squares of the relative errors, so that short documents count as much as long ones.

    Raises ValueError with fewer points than coefficients.
    """
    n, y = np.asarray(lengths, dtype=float), np.asarray(values, dtype=float)
    if len(n) <= degree:
        raise ValueError(f"{len(n)} points do not determine a polynomial of degree {degree}")
    scale = n.max()
    powers = (n[:, None] / scale) ** np.arange(degree + 1)  # [points, degree + 1]
    coefficients, *_ = np.linalg.lstsq(powers / y[:, None], np.ones_like(y), rcond=None)
    left, spread = ((powers @ coefficients - y) ** 2).sum(), ((y - y.mean()) ** 2).sum()
    r2 = 1.0 - left / spread if spread else 1.0
    return Fit(tuple(float(c / scale**i) for i, c in enumerate(coefficients)), float(r2))


def combine(*terms: tuple[float, Fit]) -> Fit:
    """Σ factor · fit; its r2 is the worst of its terms."""
    size = max(len(f.coefficients) for _, f in terms)
    total = np.zeros(size)
    for factor, f in terms:
        total[: len(f.coefficients)] += factor * np.array(f.coefficients)
    return Fit(tuple(total), min(f.r2 for _, f in terms))


def constant(value: float) -> Fit:
    return Fit((float(value),), 1.0)


def cost(first: Fit, question: Fit, token: Fit, questions: int, epochs: int = 1) -> Fit:
    """Seconds for a document and `questions` answers of 32 tokens; 0 questions: the first token
    of the first answer."""
    asked, tokens = (1, 0) if questions == 0 else (questions, questions * (ANSWER - 1))
    return combine((epochs, first), (asked, question), (tokens, token))


def crossing(ours: Fit, theirs: Fit) -> float | None:
    """The length from which on `theirs` costs more than `ours`: 0 when it always does, None when
    it never does for long documents."""
    difference = combine((1, theirs), (-1, ours))
    coefficients = np.trim_zeros(np.array(difference.coefficients), "b")
    if not len(coefficients) or coefficients[-1] < 0:
        return None
    roots = np.roots(coefficients[::-1])
    real = roots.real[
        (np.abs(roots.imag) < 1e-9 * np.maximum(1, np.abs(roots.real))) & (roots.real > 0)
    ]
    return float(real.max()) if len(real) else 0.0
