"""Relative error and fresh random numbers, for all kernel tests."""

import torch
from torch import Tensor


def rel(a: Tensor, b: Tensor) -> float:
    """‖a − b‖ / ‖b‖; NaN in a gives NaN, which is under no bound."""
    a, b = a.detach().double(), b.detach().double()
    return ((a - b).norm() / b.norm().clamp_min(1e-30)).item()


def fresh_seed() -> torch.Generator:
    seed = int(torch.seed() % 2**31)
    print("seed", seed)
    return torch.Generator().manual_seed(seed)
