"""A training batch made on the device from the document's tokens and a step counter.

Segment i of an epoch whose first segment has `first` tokens, S = size:

    start(i) = max(0, first − S + i · stride)      stop(i) = min(L, first + i · stride)

This is every schedule: "overlap" and "trivial" have first = S, "jitter" has stride = S and a
random first each epoch. Behind P prefix tokens, row t of a segment holds its token t − P and
predicts its token t + 1 − P. The host uploads one table for the whole run, which segments a step
takes; nothing else comes from it, and a captured CUDA graph replays every step.

What that is worth: liftcore's own loop fills its buffers from the host instead, 28 bytes a token
a step over pinned memory, hidden behind the graph. The op is for loops that live on the device
alone.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from liftcore.kernels import native, reference

LOSSES = ("all", "new", "mean")


class Tables(NamedTuple):
    """What the ops read: the document and the order of its segments, on one device.

    tokens [L] int64, prefix [P] int64; segments [steps, B] int32, the segments of each step,
    −1 for an empty row; first [steps] int32, the length of segment 0 in the step's epoch.
    """

    tokens: Tensor
    prefix: Tensor
    segments: Tensor
    first: Tensor


class Buffers(NamedTuple):
    """What the op writes, W = P + S.

    input_ids, labels (−100: not scored) [B, W] int64; weights [B, W] fp32;
    row_index [M] int64: the scored rows of the flat batch in order, then a row of weight 0 over
    and over; count [1] int64, the number of scored rows. M must be at least that number.
    """

    input_ids: Tensor
    labels: Tensor
    weights: Tensor
    row_index: Tensor
    count: Tensor


def buffers(tables: Tables, size: int, max_rows: int) -> Buffers:
    """Uninitialised buffers for segments of `size` tokens and at most `max_rows` scored rows."""
    device = tables.tokens.device
    shape = (tables.segments.shape[1], tables.prefix.numel() + size)
    ids, labels = (torch.empty(shape, dtype=torch.int64, device=device) for _ in range(2))
    weights = torch.empty(shape, dtype=torch.float32, device=device)
    rows = torch.empty(max_rows, dtype=torch.int64, device=device)
    count = torch.empty(1, dtype=torch.int64, device=device)
    native.live(tables.tokens)
    return Buffers(ids, labels, weights, rows, count)


def counter(device: torch.device | str, step: int = 0) -> Tensor:
    """A step counter [2] int64: the next step, and a place for the kernel's own use."""
    return torch.tensor([step, 0], dtype=torch.int64, device=device)


@torch.library.custom_op(
    "liftcore::segment_batch",
    mutates_args=("step", "input_ids", "labels", "weights", "row_index", "count"),
)
def _segment_batch(
    tokens: Tensor, prefix: Tensor, segments: Tensor, first: Tensor, step: Tensor,
    input_ids: Tensor, labels: Tensor, weights: Tensor, row_index: Tensor, count: Tensor,
    size: int, stride: int, loss: int,
) -> None:  # fmt: skip
    tables = Tables(tokens, prefix, segments, first)
    out = Buffers(input_ids, labels, weights, row_index, count)
    if not native.live(tokens):
        reference.segment_batch(tables, step, out, size, stride, LOSSES[loss])
        return
    steps, batch = segments.shape
    native.call(
        "liftcore_segment_batch", tokens.device,
        tokens, tokens.numel(), prefix, prefix.numel(), segments, first, steps, batch,
        size, stride, loss, step, input_ids, labels, weights, row_index, row_index.numel(), count,
    )  # fmt: skip


@_segment_batch.register_fake
def _(*_: object) -> None:
    return None


def segment_batch(
    tables: Tables, step: Tensor, out: Buffers, *, size: int, stride: int, loss: str = "all"
) -> None:
    """Writes the batch of step `step[0]` into `out` and counts the step on.

    `size` S and `stride` in tokens, 1 ≤ stride ≤ S; `loss` says what a token counts as a target:
    "all" 1 in every segment, "new" 1 in the first that holds it and 0 elsewhere, "mean" 1 / number
    of segments that hold it. `step` comes from counter(). Beyond the last step the batch is empty
    and the counter stands still. Segment numbers and first lengths are taken as they are: a table
    must name segments that exist. Raises ValueError when shapes, dtypes or devices do not fit.
    Source: LIFT (Mao et al.), equations 2 and 3.
    """
    _check(tables, step, out, size, stride, loss)
    _segment_batch(*tables, step, *out, size, stride, LOSSES.index(loss))


def _check(tables: Tables, step: Tensor, out: Buffers, size: int, stride: int, loss: str) -> None:
    if loss not in LOSSES:
        raise ValueError(f"segment_batch: unknown loss {loss!r}: not one of {', '.join(LOSSES)}")
    if not 1 <= stride <= size:
        raise ValueError(f"segment_batch: stride {stride} is not in 1 to size, {size}")
    if tables.tokens.ndim != 1 or not tables.tokens.numel():
        raise ValueError(f"segment_batch: tokens {list(tables.tokens.shape)} are not [L], L ≥ 1")
    if tables.segments.ndim != 2 or not all(tables.segments.shape):
        raise ValueError(f"segment_batch: segments {list(tables.segments.shape)} are not [N, B]")
    (length,), (steps, batch) = tables.tokens.shape, tables.segments.shape
    shape = (batch, tables.prefix.numel() + size)
    if batch > 65535 or shape[0] * shape[1] >= 2**31:
        raise ValueError(f"segment_batch: a batch of {shape[0]} times {shape[1]} is too large")
    if out.row_index.ndim != 1 or not 1 <= out.row_index.numel() <= shape[0] * shape[1]:
        raise ValueError(
            f"segment_batch: row_index {list(out.row_index.shape)} is not [M] with M in 1 to "
            f"{shape[0] * shape[1]}"
        )
    whole, index = torch.int64, out.row_index.shape
    native.need(
        "segment_batch",
        {
            "tokens": (tables.tokens, whole, (length,)),
            "prefix": (tables.prefix, whole, (tables.prefix.numel(),)),
            "segments": (tables.segments, torch.int32, (steps, batch)),
            "first": (tables.first, torch.int32, (steps,)),
            "step": (step, whole, (2,)),
            "input_ids": (out.input_ids, whole, shape),
            "labels": (out.labels, whole, shape),
            "weights": (out.weights, torch.float32, shape),
            "row_index": (out.row_index, whole, tuple(index)),
            "count": (out.count, whole, (1,)),
        },
        tables.tokens.device,
    )
