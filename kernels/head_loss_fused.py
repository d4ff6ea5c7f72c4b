"""Launches of the Triton head loss: a chunk of rows at a time, never a wait for the device.

The rows are found on the device and every chunk up to the last possible row is launched; a chunk
behind the last scored row costs its launches only. The kernels are in head_loss_triton.py.
"""

from __future__ import annotations

import torch
import triton
from torch import Tensor

from liftcore.kernels.head_loss_triton import (
    compact_kernel,
    finish_kernel,
    logits_kernel,
    product_kernel,
    scale_rows_kernel,
    scatter_kernel,
)
from liftcore.kernels.launch import launch, record
from liftcore.kernels.lora_triton import can_use_tma, describe
from liftcore.kernels.tiles import CompileCase, Tile, architecture, head_tiles, processors

# Memory of one chunk of rows: exponentials, statistics and partial sums.
CHUNK_BYTES = 256 * 2**20
PART_BYTES = 16 * 2**20  # partial sums of a few rows may take this much
MAX_SPLITS = 12
COMPACT_BLOCK = 1024
FINISH_BLOCK = 4096
TARGET_BLOCK = 1024
ROW_BLOCK = 1024


def find_rows(w: Tensor, row_index: Tensor | None) -> tuple[Tensor, Tensor]:
    """The rows of w [T] that are not 0, in order, padded with row 0; and their number [1].

    Only rows of `row_index`, where there is one; −1 in it is no row.
    """
    entries = w.shape[0] if row_index is None else row_index.shape[0]
    index = torch.zeros(entries, dtype=torch.int32, device=w.device)
    count = torch.empty(1, dtype=torch.int32, device=w.device)
    rows = w if row_index is None else row_index.contiguous()
    constexprs = {"ROWS": row_index is not None, "BLOCK": COMPACT_BLOCK}
    launch(compact_kernel, (1,), (w, rows, index, count, entries), constexprs)
    return index, count


def scale_rows(grad: Tensor, factor: Tensor) -> Tensor:
    """grad [T, K] with row t multiplied by factor [T], in the dtype of grad."""
    out = torch.empty_like(grad)
    t, k = grad.shape
    if grad.numel():
        args = (grad, factor.contiguous(), out, k)
        launch(scale_rows_kernel, (t,), args, {"BLOCK": _row_block(k)})
    return out


def head_loss(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    w: Tensor,
    row_index: Tensor | None,
    softcap: float | None,
    logit_scale: float,
    want_hidden: bool,
) -> tuple[Tensor, Tensor | None]:
    """w_t · nll_t [T] fp32 and, if wanted, the gradient of their sum, dhidden [T, K].

    hidden [T, K], weight [V, K], labels [T], w [T] fp32, row_index [M] or None.
    """
    (t, k), v = hidden.shape, weight.shape[0]
    weight, labels = _rows_contiguous(weight), labels.contiguous()
    loss = torch.zeros(t, dtype=torch.float32, device=hidden.device)
    dhidden = hidden.new_zeros(t, k) if want_hidden else None
    index, count = find_rows(w, row_index)
    entries = index.shape[0] if t else 0
    size = hidden.element_size()
    aligned = not any(n % 16 for n in (weight.data_ptr(), weight.stride(0) * size, k * size))
    tile, product_tile = head_tiles(architecture(hidden.device), size, aligned, softcap is not None)
    tiles_v = triton.cdiv(v, tile.bn)
    width = triton.cdiv(v, 64) * 64  # rows of e start on a 128-byte line whatever V is
    row_bytes = (want_hidden * width + k) * size + 8 * tiles_v + want_hidden * 16 * k
    chunk = max(1, CHUNK_BYTES // row_bytes // tile.bm) * tile.bm
    m = min(chunk, max(1, triton.cdiv(entries, tile.bm)) * tile.bm)
    e = hidden.new_empty(m if want_hidden else 1, width)[:, :v]
    stats = torch.empty(2, m, tiles_v, dtype=torch.float32, device=hidden.device)
    capacity = max(4 * m, min(MAX_SPLITS * m, PART_BYTES // (4 * k))) if want_hidden else 0
    part = torch.empty(capacity, k, dtype=torch.float32, device=hidden.device)
    flags = {"CAP": softcap is not None, "KEEP": want_hidden}
    numbers = (float(logit_scale), float(softcap or 1.0))
    for start in range(0, entries, m):
        h = hidden.index_select(0, index[start : start + m])  # [m, K]
        _logits(h, weight, labels, index, count, e, stats, start, numbers, flags, tile)
        launch(
            finish_kernel,
            (h.shape[0],),
            (
                e, *stats, h, weight, labels, w, index, count, loss, start, v, k, *numbers,
                e.stride(0), h.stride(0), weight.stride(0), tiles_v,
            ),
            {"BN": tile.bn, "BK": TARGET_BLOCK, "TILES": max(1, FINISH_BLOCK // tile.bn), **flags},
            warps=8,
        )  # fmt: skip
        if want_hidden:
            _product(e, weight, part, dhidden, index, count, start, h.shape[0], product_tile)
    return loss, dhidden


def _logits(h, weight, labels, index, count, e, stats, start, numbers, flags, tile):
    """e [m, V] and its statistics [2, m, tiles] of the rows h [m, K]."""
    (m, k), v = h.shape, weight.shape[0]
    tma = can_use_tma(architecture(h.device), h, weight, e)
    strides = (h.stride(0), weight.stride(0), e.stride(0), stats.shape[2])
    matrices = (h, weight, e)
    if tma:
        blocks = ((tile.bm, tile.bk), (tile.bn, tile.bk), (tile.bm, tile.bn))
        matrices = [describe(x, *block) for x, block in zip(matrices, blocks, strict=True)]
    launch(
        logits_kernel,
        (min(triton.cdiv(m, tile.bm) * triton.cdiv(v, tile.bn), processors(h.device)),),
        (
            *matrices[:2], labels, index, count, matrices[2], *stats,
            start, m, v, k, *numbers, *strides,
        ),
        {**_shape(tile), **flags, "TMA": tma},
        tile.warps,
        tile.stages,
    )  # fmt: skip


def _product(dz, weight, part, dhidden, index, count, start, m, tile):
    """dhidden[index] = dz W for the m rows from `start` on, as far as they are scored."""
    v, k = weight.shape
    sms = processors(dz.device)
    tma = can_use_tma(architecture(dz.device), dz, weight)
    split = {"SMS": sms, "SPLITS": MAX_SPLITS}
    strides = (dz.stride(0), weight.stride(0), part.shape[0])
    matrices = (dz, weight)
    if tma:
        matrices = describe(dz, tile.bm, tile.bk), describe(weight, tile.bk, tile.bn)
    launch(
        product_kernel,
        (min(triton.cdiv(m, tile.bm) * triton.cdiv(k, tile.bn) * MAX_SPLITS, sms),),
        (*matrices, part, count, start, m, v, k, *strides),
        {**_shape(tile), **split, "TMA": tma},
        tile.warps,
        tile.stages,
    )
    block = _row_block(k)
    launch(
        scatter_kernel,
        (m, triton.cdiv(k, block)),
        (part, dhidden, index, count, start, m, k, dhidden.stride(0), part.shape[0]),
        {"BM": tile.bm, "BN": tile.bn, **split, "BLOCK": block},
    )


def _shape(tile: Tile) -> dict[str, int]:
    return {"BM": tile.bm, "BN": tile.bn, "BK": tile.bk, "GROUP": tile.group}


def _row_block(k: int) -> int:
    return min(ROW_BLOCK, triton.next_power_of_2(k))


def _rows_contiguous(x: Tensor) -> Tensor:
    return x if x.stride(1) == 1 else x.contiguous()


def example_inputs(
    t: int, k: int, v: int, dtype: torch.dtype = torch.bfloat16
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """hidden, weight, labels and weights of the meta device, for recording launches."""
    hidden, weight = (torch.empty(n, k, dtype=dtype, device="meta") for n in (t, v))
    labels = torch.empty(t, dtype=torch.int64, device="meta")
    return hidden, weight, labels, torch.empty(t, device="meta")


def compile_cases(arch: int) -> list[CompileCase]:
    """The launches of Llama-3-8B and SmolLM2-135M in bf16, at 8192 and 512 tokens.

    Also those of fp32, and of rows that are not aligned.
    """

    def run():
        for t in (8192, 512):
            for k, v in ((4096, 128256), (576, 49152)):
                inputs = example_inputs(t, k, v)
                rows = torch.empty(t, dtype=torch.int64, device="meta")
                head_loss(*inputs, rows, None, 1.0, True)
                head_loss(*inputs, None, 30.0, 1.0, True)
                head_loss(*inputs, None, None, 1.0, False)
                scale_rows(inputs[0], inputs[3])
        for k, dtype in ((576, torch.float32), (4095, torch.bfloat16)):
            inputs = example_inputs(512, k, 49153, dtype)
            for cap in (None, 30.0):
                head_loss(*inputs, None, cap, 1.0, True)
            scale_rows(inputs[0], inputs[3])

    return record(arch, run)
