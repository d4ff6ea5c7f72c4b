"""The head loss in every way that can be had: ours, plain PyTorch and the peers.

As in lora_variants.py a variant is built from a problem and returns (loss, dhidden). The loss is
a sum over the scored rows, unweighted, since the peers know labels of −100 only.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from liftcore.kernels.head_loss import linear_cross_entropy

IGNORE = -100
TRUTH_ROWS = 1024
Run = Callable[[], Any]


class HeadProblem:
    """hidden [T, K], a frozen head [V, K], and labels [T] of which a share is not scored."""

    def __init__(
        self, tokens: int, k: int, v: int, masked: float, device: torch.device, dtype: torch.dtype
    ):
        self.hidden = torch.randn(tokens, k, device=device).to(dtype).requires_grad_()
        self.weight = (torch.randn(v, k, device=device) * 2 * k**-0.5).to(dtype)
        self.labels = torch.randint(0, v, (tokens,), device=device)
        # The overlap of a segment is its head: the first rows are the ones not scored.
        self.skipped = int(masked * tokens)
        self.labels[: self.skipped] = IGNORE
        self.rows = torch.arange(self.skipped, tokens, device=device)

    def differentiated(self, forward: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Run:
        def run() -> tuple[Tensor, ...]:
            loss = forward(self.hidden, self.weight, self.labels)
            return loss, *torch.autograd.grad(loss, self.hidden)

        return run

    def truth(self) -> tuple[Tensor, Tensor]:
        """Loss and gradient of the plain formula in fp32, over the scored rows, block by block."""
        total = torch.zeros((), device=self.hidden.device)
        blocks = [torch.zeros_like(self.hidden[: self.skipped], dtype=torch.float32)]
        weight = self.weight.float()
        rows = self.hidden.detach()[self.skipped :], self.labels[self.skipped :]
        for hidden, labels in zip(*(t.split(TRUTH_ROWS) for t in rows), strict=True):
            h = hidden.float().requires_grad_()
            loss = F.cross_entropy(h @ weight.T, labels, reduction="sum")
            blocks.append(torch.autograd.grad(loss, h)[0])
            total = total + loss.detach()
        return total, torch.cat(blocks)


Build = Callable[[HeadProblem], Run]


def base(p: HeadProblem) -> Run:
    """The floor: the two products of the scored rows, 512 of them at a time."""
    h = p.hidden.detach()[p.skipped :]

    def run() -> None:
        for part in h.split(512):
            z = part @ p.weight.T
            z @ p.weight

    return run


def plain(p: HeadProblem) -> Run:
    def forward(h: Tensor, w: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(F.linear(h, w).float(), labels, ignore_index=IGNORE, reduction="sum")

    return p.differentiated(forward)


def torch_op(chunked: bool) -> Build:
    def build(p: HeadProblem) -> Run:
        op = getattr(F, "linear_cross_entropy", None)
        if op is None:
            raise RuntimeError(f"torch {torch.__version__} has no F.linear_cross_entropy")
        options = torch.nn.LinearCrossEntropyOptions() if chunked else None
        return p.differentiated(
            lambda h, w, y: op(h, w, y, ignore_index=IGNORE, reduction="sum", options=options)
        )

    return build


def ours(way: str | None, with_rows: bool) -> Build:
    def build(p: HeadProblem) -> Run:
        rows = p.rows if with_rows else None
        return p.differentiated(
            lambda h, w, y: linear_cross_entropy(h, w, y, reduction="sum", row_index=rows, way=way)
        )

    return build


def on_gpu(build: Build) -> Build:
    """The variant, refused on a CPU, where it would be another name for the plain path."""

    def checked(p: HeadProblem) -> Run:
        if p.hidden.device.type != "cuda":
            raise RuntimeError("needs a GPU")
        return build(p)

    return checked


def liger(p: HeadProblem) -> Run:
    from liger_kernel.transformers.functional import liger_fused_linear_cross_entropy as op  # ty: ignore[import-not-found]

    return p.differentiated(lambda h, w, y: op(h, w, y, ignore_index=IGNORE, reduction="sum"))


def cce(p: HeadProblem) -> Run:
    from cut_cross_entropy import linear_cross_entropy as op  # ty: ignore[import-not-found]

    return p.differentiated(lambda h, w, y: op(h, w, y, ignore_index=IGNORE, reduction="sum"))


def quack(p: HeadProblem) -> Run:
    from quack.linear_cross_entropy import chunked_linear_cross_entropy as op  # ty: ignore[import-not-found]

    return p.differentiated(lambda h, w, y: op(h, w, y, ignore_index=IGNORE, reduction="sum"))


VARIANTS = {
    "base products": base,
    "plain torch": plain,
    "ours, rows known": ours(None, True),
    "ours, rows found": ours(None, False),
    "ours triton, rows known": on_gpu(ours("triton", True)),
    "ours cublas, all rows": on_gpu(ours("cublas", False)),
    "torch op": torch_op(False),
    "torch op chunked": torch_op(True),
    "Liger": on_gpu(liger),
    "CCE": on_gpu(cce),
    "QuACK": on_gpu(quack),
}
