"""How a long job goes, on stderr: one self-updating line on a terminal, else plain lines.

Without a terminal a line is printed at each tenth of the way, and whenever the last one is a
minute old, even while nothing is heard of the job.
"""

from __future__ import annotations

import contextlib
import shutil
import sys
import threading
import time

import torch

from liftcore.device_memory import gib, peak_bytes
from liftcore.training.log import Progress

# Seconds after which silence is broken where there is no terminal.
SILENCE = 60.0


class ProgressLine:
    """What a job does, and epoch, loss, tokens/s, memory and time left of a training run.

    Nothing at all unless `enabled`.
    """

    def __init__(
        self, epochs: int = 1, device: torch.device | None = None, *, enabled: bool = True
    ) -> None:
        self.epochs, self.device = epochs, device or torch.device("cpu")
        self.enabled = enabled and sys.stderr is not None
        self.terminal = self.enabled and sys.stderr.isatty()
        self.drawn = 0.0
        self.first: Progress | None = None
        self._text, self._said, self._tenth = "", time.monotonic(), ("", 0)
        self._printing, self._over = threading.Lock(), threading.Event()
        self._watch: threading.Thread | None = None

    def __enter__(self) -> ProgressLine:
        if self.enabled and not self.terminal:
            self._said = time.monotonic()
            self._watch = threading.Thread(target=self._break_silence, daemon=True)
            self._watch.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._over.set()
        if self._watch is not None:
            self._watch.join()
        if self.enabled and self.terminal:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()

    def update(self, at: Progress) -> None:
        """Shows a step of training: at most ten times a second, or when a line is due."""
        due = self.terminal and time.perf_counter() - self.drawn >= 0.1
        due = due or (not self.terminal and self._due("training", at.step, at.steps))
        self.first = self.first or at
        if not self.enabled or not due:
            return
        self.drawn = time.perf_counter()
        done = at.step - self.first.step + 1
        left = at.seconds / done * (at.steps - at.step)
        share = "" if self.terminal else f"{at.step / at.steps:4.0%}  "
        self.say(
            f"{share}epoch {at.epoch + 1}/{self.epochs}  loss {at.loss:.3f}  "
            f"{at.tokens / at.seconds:,.0f} tokens/s  peak {gib(peak_bytes(self.device))}  "
            f"{int(left) // 60}:{int(left) % 60:02d} left"
        )

    def count(self, what: str, done: int, of: int, more: str = "") -> None:
        """Shows how many of the parts of a job are done, when a line is due."""
        if self.terminal or self._due(what, done, of):
            self.say(f"{what}: {done} of {of}{more}")

    def say(self, text: str) -> None:
        """Replaces the line; without a terminal prints it."""
        if not self.enabled:
            return
        if self.terminal:
            width = shutil.get_terminal_size().columns
            sys.stderr.write("\r\x1b[K" + text[: width - 1])
            sys.stderr.flush()
            return
        with self._printing:
            self._text = text
            self._print(text)

    def _due(self, what: str, done: int, of: int) -> bool:
        """Whether a plain line is due: another tenth is reached, or the last line is old."""
        tenth = (what, 10 * done // max(1, of))
        new = tenth != self._tenth and tenth[1] > 0
        self._tenth = tenth
        return new or time.monotonic() - self._said >= SILENCE

    def _break_silence(self) -> None:
        while not self._over.wait(max(0.05, self._said + SILENCE - time.monotonic())):
            with self._printing:
                if time.monotonic() - self._said >= SILENCE:
                    self._print(f"still working ({self._text or 'no step is finished yet'})")

    def _print(self, text: str) -> None:
        self._said = time.monotonic()
        # A reader that went away must not end a run that goes well.
        with contextlib.suppress(OSError, ValueError):
            print(f"liftcore: {text}", file=sys.stderr, flush=True)
