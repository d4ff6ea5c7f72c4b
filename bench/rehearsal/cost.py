"""The least time that an op or a launch can take on an H100: operations, or bytes through memory.

Rates are those of the card's datasheet for products without sparsity, of its memory, and of its
plain fp32 units: floors, which no run reaches.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import flop_registry
from triton.tools.tensor_descriptor import TensorDescriptor

from liftcore.kernels.tiling import Launch

# Operations a second by element size, and bytes a second.
RATES = {1: 1979e12, 2: 989e12, 4: 67e12, 8: 67e12}
BANDWIDTH = 3.35e12
# What a host's turn takes: an op's launch by torch, a Triton kernel's, a graph's.
OP_SECONDS, LAUNCH_SECONDS, REPLAY_SECONDS = 4e-6, 12e-6, 1e-5


def seconds(operations: float, size: int, moved: float) -> float:
    """The floor: `operations` on elements of `size` bytes, and `moved` bytes."""
    return max(operations / RATES.get(size, RATES[4]), moved / BANDWIDTH)


def nbytes(tensors: Sequence[Tensor]) -> int:
    """Bytes that are there: of an expanded tensor those of its storage."""
    return sum(min(t.numel() * t.element_size(), t.untyped_storage().nbytes()) for t in tensors)


def of_op(func: Any, read: Sequence[Tensor], written: Sequence[Tensor]) -> float:
    """Seconds of an op of torch that reads and writes these tensors of the device."""
    count = flop_registry.get(func.overloadpacket)
    operations = 0
    if count is not None and read and written:
        try:
            operations = count(*read, out_val=written[0])
        except (TypeError, ValueError, AssertionError, IndexError):
            operations = 0  # an argument that is no tensor stands between
    size = min((t.element_size() for t in read if t.is_floating_point()), default=4)
    return seconds(operations, size, nbytes(read) + nbytes(written))


def products(launch: Launch) -> list[tuple[int, int]]:
    """(rows · cols · depth, bytes of an element) of a launch's products; none where it has none."""
    a = dict(zip(launch.kernel.arg_names, launch.args, strict=False))
    size = element_size(launch)
    match launch.kernel.__name__:
        case "chain_kernel" | "fp8_chain_kernel" as name:
            area, base = a["rows"] * a["cols"], 1 if name[0] == "f" else size
            long = sum(a[f"depth{i}"] or 0 for i in range(3))
            return [(area * long, base), (area * (a["depth"] or 0), size)]
        case "gate_up_kernel":
            depth = 2 * a["depth"] + a["rank_g"] + a["rank_u"]
            return [(a["rows"] * a["cols"] * depth, size)]
        case "split_kernel" | "own_rows_kernel":
            return [(a["rows"] * a["cols"] * a["depth"], size)]
        case "own_outer_kernel":
            return [(a["rows"] * a["cols"] * a["count"] * a["each"], size)]
        case "logits_kernel" | "product_kernel":
            return [(a["most"] * a["V"] * a["K"], size)]
    return []


def element_size(launch: Launch) -> int:
    """Bytes of an element of a launch's products, but of those in FP8."""
    matrices = [a.base if isinstance(a, TensorDescriptor) else a for a in launch.args]
    kinds = {t.dtype for t in matrices if isinstance(t, Tensor)}
    return 2 if kinds & {torch.bfloat16, torch.float16} else 4


def bytes_of(launch: Launch) -> int:
    """The least that a launch of a Triton kernel moves: each matrix that it names once."""
    matrices = [a.base if isinstance(a, TensorDescriptor) else a for a in launch.args]
    tensors = [t for t in matrices if isinstance(t, Tensor)]
    return nbytes(list({t.untyped_storage()._cdata: t for t in tensors}.values()))


def of_launch(launch: Launch) -> float:
    """Seconds of a launch of a Triton kernel."""
    computing = sum(2 * volume / RATES[size] for volume, size in products(launch))
    return max(computing, bytes_of(launch) / BANDWIDTH)
