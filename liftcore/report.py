"""What was absorbed, and where: greedy recall along the document."""

from __future__ import annotations

import logging
import os
import textwrap
import warnings
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from liftcore.answer import greedy
from liftcore.errors import LiftError
from liftcore.files import reason

PROBES = 64
PROMPT = 32
NEW = 32
TITLE = 80  # letters of a title that fit above the picture
BLOCKS = " ▁▂▃▄▅▆▇█"


@dataclass(frozen=True)
class Report:
    """Greedy recall at random places: the share of `new_tokens` generated tokens that equal the
    document's, after a prompt of `prompt_tokens` tokens of it and nothing else. None, and no
    positions, when it could not be measured."""

    recall: float | None
    length: int  # tokens of the document
    positions: list[int]  # start of each prompt, sorted
    shares: list[float]  # share of equal tokens of each probe
    prompt_tokens: int
    new_tokens: int
    # Rise of the loss on held-out own words of the base model, in nats a token; None where that
    # has none yet.
    forgotten: float | None = None
    # Of the frozen weights beneath: "model", as they were loaded, "fp8", or the package that
    # quantised them.
    base_dtype: str = "model"

    def strip(self, width: int = 60) -> str:
        """Recall along the document as one character a place: █ all of it, a blank none of it,
        · where no probe fell."""
        return "".join(
            "·" if np.isnan(v) else BLOCKS[round(v * (len(BLOCKS) - 1))] for v in self.bins(width)
        )

    def bins(self, width: int) -> np.ndarray:
        """Mean recall of the generated tokens that fall into each of `width` equal parts of the
        document, float64 [width]; NaN where none fell."""
        total, hits = np.zeros(width), np.zeros(width)
        for position, share in zip(self.positions, self.shares, strict=True):
            start = position + self.prompt_tokens
            places = np.arange(start, start + self.new_tokens) * width // self.length
            np.add.at(total, places, 1)
            np.add.at(hits, places, share)
        return np.divide(hits, total, out=np.full(width, np.nan), where=total > 0)

    def text(self, width: int = 60) -> str:
        """The numbers, and the strip."""
        if not self.positions:
            return "\n".join(["recall was not measured", *self._further()])
        worst = sorted(zip(self.shares, self.positions, strict=True))[:3]
        weak = ", ".join(f"token {p} ({s:.0%})" for s, p in worst if s < 0.9)
        lines = [
            f"recall {self.recall:.1%} ({len(self.positions)} probes: {self.prompt_tokens} tokens "
            f"of the document in, {self.new_tokens} out, compared one by one)",
            f"start |{self.strip(width)}| end   (█ recalled, blank not, · not probed)",
        ]
        return "\n".join([*lines, *([f"weakest at {weak}"] if weak else []), *self._further()])

    def _further(self) -> list[str]:
        lines = []
        if self.base_dtype != "model":
            by = "in FP8 (e4m3)" if self.base_dtype == "fp8" else f"quantised by {self.base_dtype}"
            lines.append(f"trained and measured on a base {by}")
        if self.forgotten is None:
            return lines
        return [
            *lines,
            f"forgotten {self.forgotten:.2f} nats (rise of the loss on replies that the model gave "
            "before, to questions of its own)",
        ]

    def png(self, file: Path, title: str) -> None:
        """Draws the strip, with the title as it stands: no formulas in it, and a box for a letter
        that the font lacks. Raises LiftError when matplotlib is not installed, and when nothing
        was measured."""
        if not self.positions:
            raise LiftError("recall was not measured: there is nothing to draw")
        with _quiet_matplotlib() as matplotlib, matplotlib.rc_context({"text.usetex": False}):
            self._draw(file, title)

    def _draw(self, file: Path, title: str) -> None:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        figure = Figure(figsize=(8, 1.9), layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.add_subplot()
        image = axes.imshow(
            self.bins(min(120, self.length))[None],
            aspect="auto",
            cmap="viridis",
            vmin=0,
            vmax=1,
            extent=(0, self.length, 0, 1),
            interpolation="nearest",
        )
        axes.set_facecolor("0.85")
        axes.set_yticks([])
        axes.set_xlabel("position in the document (tokens); grey: not probed")
        title = textwrap.shorten(title, TITLE, placeholder=" …")
        title = f"{title}: greedy recall {self.recall:.1%}"
        axes.set_title(title, loc="left", fontsize=11, parse_math=False)
        bar = figure.colorbar(image, ax=axes, pad=0.01)
        bar.set_label("share recalled", fontsize=8)
        figure.savefig(file, dpi=150, format="png")


@contextmanager
def _quiet_matplotlib() -> Generator[Any]:
    """matplotlib, whatever MPLBACKEND says, and without its notices on fonts and folders."""
    logger = logging.getLogger("matplotlib")
    level, backend = logger.level, os.environ.pop("MPLBACKEND", None)
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                import matplotlib
            except ImportError as error:
                raise LiftError(
                    "the picture needs matplotlib: pip install 'liftcore[plot]'"
                ) from error
            yield matplotlib
    finally:
        logger.setLevel(level)
        if backend is not None:
            os.environ["MPLBACKEND"] = backend


def unmeasured(length: int) -> Report:
    """The report of a document whose recall could not be measured."""
    return Report(None, length, [], [], PROMPT, NEW)


def try_measuring(model: nn.Module, tokens: np.ndarray, *, prefix: list[int]) -> None:
    """Raises LiftError when measure() would fail for this model."""
    try:
        measure(model, tokens, prefix=prefix, probes=1, new=2)
    except Exception as error:
        raise LiftError(
            f"{type(model).__name__} cannot be asked what it recalls, so it is not trained: "
            f"{reason(error)}"
        ) from error


def places(length: int) -> int:
    """How many probes measure() has for a document of `length` tokens."""
    return min(PROBES, _probe(length, NEW)[2] + 1)


def _probe(length: int, new: int) -> tuple[int, int, int]:
    """(tokens of the prompt, tokens after it, the last place where both fit) in a document of
    `length` tokens."""
    prompt = min(PROMPT, length // 2)
    new = min(new, length - prompt)
    return prompt, new, length - prompt - new


def measure(
    model: nn.Module,
    tokens: np.ndarray,
    *,
    prefix: list[int],
    probes: int = PROBES,
    new: int = NEW,
    seed: int = 0,
) -> Report:
    """Greedy recall of the model as it stands (adapter on or off) over tokens int64 [L].

    Probe positions are uniform over the document and depend on the seed alone. A document that
    has no more places than `probes` is probed once at each, one shorter than 64 tokens with
    shorter prompts.
    """
    length = len(tokens)
    prompt, new, last = _probe(length, new)
    if last < probes:
        positions = np.arange(last + 1)
    else:
        positions = np.sort(np.random.default_rng([seed, 64]).integers(0, last + 1, size=probes))
    rows = positions[:, None] + np.arange(prompt + new)
    text = torch.from_numpy(tokens[rows])  # [probes, prompt + new]
    start = torch.tensor(prefix, dtype=torch.int64).expand(len(positions), -1)
    device = next(model.parameters()).device
    out = greedy(model, torch.cat([start, text[:, :prompt]], dim=1).to(device), new).cpu()
    shares = (out == text[:, prompt:]).double().mean(1)
    return Report(
        recall=shares.mean().item(),
        length=length,
        positions=positions.tolist(),
        shares=[round(s, 4) for s in shares.tolist()],
        prompt_tokens=prompt,
        new_tokens=new,
    )
