"""Where the time of a training step goes: forward, head, backward, optimizer."""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import nn

NAMES = ("forward", "head", "backward", "optimizer")
# A pause of the device before a step, so that the launches of the host are not what is measured.
LONGEST_PAUSE, CYCLES = 1.0, 2e9


class Stages:
    """Seconds of each stage, summed over the steps between two calls of take().

    The decoder's forward and the head's part of a step mark themselves; a variant calls mark() at
    the end of the backward and of the optimizer. The time of the host on a CPU; on a GPU that of
    the device between events, behind a pause.
    """

    def __init__(self, device: torch.device):
        self.device, self.on, self.pause = device, False, 0.0
        self.marks: list[tuple[str | None, Any]] = []

    def watch(self, body: nn.Module) -> None:
        """Marks the start and end of the body's forward, and the end of the head's backward."""
        body.register_forward_pre_hook(self._before_body)
        body.register_forward_hook(self._after_body)

    def _before_body(self, *_: object) -> None:
        # A step of several passes comes here straight from a backward.
        if self.marks and self.marks[-1][0] == "head":
            return self.mark("backward")
        if self.on and self.device.type == "cuda":
            torch.cuda._sleep(int(CYCLES * min(self.pause, LONGEST_PAUSE)))
        self.mark(None)

    def _after_body(self, module: nn.Module, args: tuple, output: Any) -> None:
        if self.on:
            self.mark("forward")
            output.last_hidden_state.register_hook(lambda gradient: self.mark("head"))

    def mark(self, stage: str | None) -> None:
        """What ran since the last mark belongs to `stage`; to none when it is None."""
        if not self.on:
            return
        if self.device.type == "cuda":
            now = torch.cuda.Event(enable_timing=True)
            now.record()
        else:
            now = time.perf_counter()
        self.marks.append((stage, now))

    def take(self) -> dict[str, float]:
        """Seconds by stage since the last call."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        seconds = dict.fromkeys(NAMES, 0.0)
        for (_, before), (stage, now) in zip(self.marks, self.marks[1:], strict=False):
            if stage is not None:
                on_gpu = self.device.type == "cuda"
                seconds[stage] += before.elapsed_time(now) / 1e3 if on_gpu else now - before
        self.marks.clear()
        return seconds
