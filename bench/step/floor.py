"""The floor of a training step: the operations it needs, at the rate of one large product."""

from __future__ import annotations

import time

import torch
from torch import nn

from liftcore.cost import needed_flops

SIZES = {"cpu": 2048, "cuda": 8192}
REPEATS = 7


def step_flops(model: nn.Module, span: int, rank: int, tokens: int, scored: int) -> float:
    """Operations of a step of `tokens` tokens in segments of `span`, of which `scored` are
    scored: frozen products forward and dX, LoRA forward, dX, dA and dB, the head on scored rows,
    causal attention."""
    return tokens * needed_flops(model, span, rank, scored / tokens)


def peak_rate(device: torch.device, dtype: torch.dtype, size: int | None = None) -> float:
    """Operations a second of a square product of random numbers, the best of seven."""
    n = size or SIZES[device.type]
    a, b = (torch.randn(n, n, device=device, dtype=torch.float32).to(dtype) for _ in range(2))
    torch.mm(a, b)
    seconds = []
    for _ in range(REPEATS):
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
