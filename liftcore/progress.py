"""One self-updating line on stderr; nothing when stderr is not a terminal."""

from __future__ import annotations

import shutil
import sys
import time

import torch

from liftcore.training.loop import Progress
from liftcore.usage import gib, peak_bytes


class ProgressLine:
    """epoch, loss, tokens/s, memory and time left of a run."""

    def __init__(self, epochs: int, device: torch.device, *, enabled: bool = True):
        self.epochs, self.device = epochs, device
        self.enabled = enabled and sys.stderr.isatty()
        self.drawn = 0.0
        self.first: Progress | None = None

    def __enter__(self) -> ProgressLine:
        return self

    def __exit__(self, *exc) -> None:
        if self.enabled:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()

    def update(self, at: Progress) -> None:
        """Shows a step; at most ten times a second."""
        if not self.enabled or time.perf_counter() - self.drawn < 0.1:
            return
        self.drawn = time.perf_counter()
        self.first = self.first or at
        done = at.step - self.first.step + 1
        left = at.seconds / done * (at.steps - at.step)
        self.say(
            f"epoch {at.epoch + 1}/{self.epochs}  loss {at.loss:.3f}  "
            f"{at.tokens / at.seconds:,.0f} tokens/s  peak {gib(peak_bytes(self.device))}  "
            f"{int(left) // 60}:{int(left) % 60:02d} left"
        )

    def say(self, text: str) -> None:
        """Replaces the line."""
        if self.enabled:
            width = shutil.get_terminal_size().columns
            sys.stderr.write("\r\x1b[K" + text[: width - 1])
            sys.stderr.flush()
