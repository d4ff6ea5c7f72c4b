"""The whole step on the device, captured once in a CUDA graph and replayed.

The host sends nothing and reads only a loss now and then: the batch comes from the document on
the device, the learning rates and the step counter live there too.
"""

from __future__ import annotations

import contextlib
from types import SimpleNamespace

import numpy as np
import torch
from torch import Tensor

from liftcore.memory_plan import SHARE, MemoryPlan
from liftcore.optimizer import DeviceAdamW, learning_rate
from liftcore.recompute import recomputed
from liftcore.resident import Resident, rounded
from liftcore.steps import EagerSteps, batch_loss
from liftcore.usage import out_of_memory

# Steps between two losses that are read back; the host runs ahead by at most two times as many.
READ = 10


class DeviceSteps(EagerSteps):
    """EagerSteps without the host: every step is the same work on the same addresses.

    A step of a shape (how many rows are scored, in classes) seen for the first time runs eagerly,
    which warms the kernels up; the second one is captured. Without CUDA, or when a capture
    fails, all steps run eagerly and `why` says the reason.
    """

    def _start(self) -> None:
        device, total = self.losses.device, len(self.order)
        rates = [learning_rate(self.config, n, total) for n in range(total)]
        self.optimizer = DeviceAdamW(
            self.adapter, self.config, torch.tensor(rates, dtype=torch.float32, device=device)
        )
        tables = self.order.normaliser, self.order.normaliser / self.order.weight
        self.normaliser, self.to_mean = (
            torch.from_numpy(t.astype(np.float32)).to(device) for t in tables
        )
        self.step = torch.zeros(1, dtype=torch.int64, device=device)
        self.why = _why_not(device)
        self.stream = None
        if device.type == "cuda":
            self.stream, self.read = torch.cuda.Stream(device), _Reader(self.losses)
            self.stream.wait_stream(torch.cuda.current_stream(device))
        self._plan_passes()

    def _plan_passes(self) -> None:
        config, plan = self.config, self.plan
        device = self.losses.device
        self.resident = Resident(
            self.tokens, config, self.prefix, device, plan.micro_batch, self.order
        )
        # A graph keeps its memory to itself: a second shape of step needs as much again.
        free = plan.free_bytes
        two = free is None or 2 * plan.peak_bytes <= SHARE.get(device.type, 0.5) * free
        # The most scored rows of a pass, and of a segment, in each step.
        rows = self.resident.scored.reshape(len(self.order), -1).max(axis=1)
        self.rows_of = _classes(rows, two)
        self.most_of = _classes(self.order.scored.max(axis=1), two)
        self.graphs: dict[tuple[int, int], torch.cuda.CUDAGraph | None] = {}
        self.pool = None
        if self.stream is not None:
            self.stream.wait_stream(torch.cuda.current_stream(device))

    def _run(self, n: int) -> None:
        shape = int(self.rows_of[n]), int(self.most_of[n])
        if self.stream is None:
            return self._step(*shape)
        with torch.cuda.stream(self.stream):
            if self.why or shape not in self.graphs:
                self._step(*shape)
                self.graphs[shape] = None
            elif self.graphs[shape] is not None or self._capture(shape):
                self.graphs[shape].replay()
            else:
                self._step(*shape)
            self.read.ask(n)

    def _capture(self, shape: tuple[int, int]) -> bool:
        graph = torch.cuda.CUDAGraph()
        self.pool = self.pool or torch.cuda.graph_pool_handle()
        self.stream.synchronize()
        try:
            with torch.cuda.graph(
                graph, pool=self.pool, stream=self.stream, capture_error_mode="thread_local"
            ):
                self._step(*shape)
        except Exception as error:
            _give_back(self.losses.device, self.pool)
            if out_of_memory(error):
                raise
            self.why = f"the capture failed: {str(error).splitlines()[0]}"
            self.adapter.grads.zero_()
            return False
        self.graphs[shape] = graph
        return True

    def _step(self, rows: int, most: int) -> None:
        """One step on the device, with at most `rows` scored rows a pass and `most` a segment."""
        loss = torch.zeros(1, device=self.losses.device)
        normaliser = self.normaliser.index_select(0, self.step)
        for _ in range(self.resident.passes):
            made = self.resident.next()
            part = SimpleNamespace(
                input_ids=made.input_ids,
                labels=made.labels,
                weights=made.weights,
                row_index=made.row_index[:rows],
                most=most,
            )
            with recomputed(self.model, self.plan.recompute):
                passed = batch_loss(self.model, self.head, part, normaliser, self.last)
                passed.backward()
            loss += passed.detach()
        # 0, or NaN for a loss that is no number, which then skips the update.
        self.adapter.grads[:1].add_(loss * 0)
        norm = self.optimizer.update()
        mean = loss * self.to_mean.index_select(0, self.step)
        good = torch.isfinite(norm + mean)
        self.losses.index_copy_(0, self.step, torch.where(good, mean, torch.nan))
        self.step.add_(1)

    def use(self, plan: MemoryPlan) -> None:
        self.close()
        super().use(plan)
        self._plan_passes()
        self._go_to(int(self.step))

    def _undo(self) -> None:
        self.close()
        super()._undo()
        self._go_to(int(self.step))

    def close(self) -> None:
        if self.stream is not None:
            self.stream.synchronize()

    def _go_to(self, step: int) -> None:
        self.step.fill_(step)
        self.resident.counter[0] = step * self.resident.passes
        if self.stream is not None:
            self.stream.wait_stream(torch.cuda.current_stream(self.losses.device))

    def latest(self, n: int) -> float:
        return super().latest(n) if self.stream is None else self.read.newest(n)

    def state(self) -> dict[str, Tensor]:
        self.close()
        return super().state()

    def load_state(self, state: dict[str, Tensor], step: int) -> None:
        super().load_state(state, step)
        self._go_to(step)

    @property
    def how(self) -> str:
        graph = "no CUDA graph yet"
        if self.why or any(self.graphs.values()):
            graph = f"no CUDA graph: {self.why}" if self.why else "one CUDA graph a step"
        return f"{super().how}; {graph}"


def _why_not(device: torch.device) -> str:
    """Why no step on the device can be captured; empty when it can."""
    if device.type != "cuda":
        return f"CUDA graphs need a GPU, not {device.type}"
    if torch.cuda.get_device_capability(device) < (8, 0):
        return "the head loss of GPUs before sm_80 waits for the device"
    return ""


def _give_back(device: torch.device, pool) -> None:
    """After a failed capture: takes the allocator off the graph's pool, which torch then forgets
    to do (pytorch#180395)."""
    with contextlib.suppress(Exception):
        torch._C._cuda_endAllocateToPool(device.index or 0, pool)
    with contextlib.suppress(Exception):
        torch._C._cuda_releasePool(device.index or 0, pool)


def _classes(counts: np.ndarray, two: bool) -> np.ndarray:
    """Each count rounded up to the largest, or to the usual one where `two` are allowed."""
    sizes = {rounded(int(counts.max()))}
    sizes = sorted(sizes | {rounded(int(np.median(counts)))} if two else sizes)
    return np.array(sizes)[np.searchsorted(sizes, counts)]


class _Reader:
    """Copies losses to the host now and then, without waiting for the device."""

    def __init__(self, losses: Tensor):
        self.losses, self.value, self.first = losses, None, None
        self.waiting: list[tuple[torch.cuda.Event, Tensor]] = []

    def ask(self, n: int) -> None:
        """Behind the launch of step n: has the losses since the last time copied when it is
        done."""
        begun = self.first is None
        self.first = n if begun else self.first
        if begun or n % READ == 0 or n == len(self.losses) - 1:
            host = torch.empty(n + 1 - self.first, pin_memory=True)
            host.copy_(self.losses[self.first : n + 1], non_blocking=True)
            done = torch.cuda.Event()
            done.record()
            self.waiting.append((done, host))
            self.first = n + 1

    def newest(self, n: int) -> float:
        """The last loss that has arrived, NaN when one before it was; waits only for the first,
        for the last, and when the host is too far ahead."""
        last = n == len(self.losses) - 1
        while self.waiting:
            done, host = self.waiting[0]
            if not (last or self.value is None or len(self.waiting) > 1 or done.query()):
                break
            done.synchronize()
            self.value = float(host[-1]) if host.isfinite().all() else float("nan")
            self.waiting.pop(0)
            if np.isnan(self.value):
                break
        return self.value
