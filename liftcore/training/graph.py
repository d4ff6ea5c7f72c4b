"""Steps on CUDA: each pass is a CUDA graph over buffers that the host fills without waiting.

The host makes a batch, copies it from pinned memory into the buffers of its shape and replays the
graph of that shape; it reads a loss now and then. Shapes are rounded up to a few sizes, so that
questions, segments and distillation share few graphs.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from liftcore.device_memory import out_of_memory
from liftcore.errors import first_line
from liftcore.layers.attention import beyond_window
from liftcore.layers.last_layer import WORTH
from liftcore.layers.lora import Adapter
from liftcore.objectives.sample import Sample
from liftcore.training.batch import Batch, Shape, make, shape_of
from liftcore.training.memory_plan import MemoryPlan
from liftcore.training.optimizer import DeviceAdamW
from liftcore.training.parallel import ALONE, Followed, Ranks
from liftcore.training.runner import Runner
from liftcore.training.source import StepSource
from liftcore.training.step import Step

# Steps between two losses that are read back; the host runs ahead by at most two times as many.
READ = 10
# Shapes that get a graph; those that come later run eagerly.
GRAPHS = 16


class GraphRunner(Runner):
    """Runner for a GPU; nothing in a step makes the host wait for the device.

    A pass of a shape seen for the first time runs eagerly, which warms the kernels up; the second
    one is captured on a stream of its own and from then on replayed on the caller's, so that all
    work of a run is in one order. Without CUDA, or when a capture fails, all passes run eagerly and
    `why` says the reason; set, it makes them. No GPU has run this yet.
    """

    def __init__(
        self,
        adapter: Adapter,
        source: StepSource | Followed,
        mark: Callable[[str], None] = lambda part: None,
        ranks: Ranks = ALONE,
    ) -> None:
        self.why = _why_not(adapter.values.device) or waiting_positions(adapter.model)
        if ranks.sharded:
            self.why = self.why or "the layers of a sharded base come and go"
        super().__init__(adapter, source, mark, ranks)

    def _start(self) -> None:
        device = self.losses.device
        # Of the running step, for the graphs to read: normaliser, its share of a mean, rate.
        self.numbers = torch.zeros(3, dtype=torch.float32, device=device)
        self.normaliser, self.to_mean, rate = self.numbers.split(1)
        self.loss = torch.zeros(1, dtype=torch.float32, device=device)
        self.optimizer = DeviceAdamW(self.adapter, self.config, rate)
        self._start_graphs()

    def _start_graphs(self) -> None:
        device = self.losses.device
        self.buffers: dict[Shape, Batch] = {}
        self.graphs: dict[Shape, torch.cuda.CUDAGraph | None] = {}
        self.sums: torch.cuda.CUDAGraph | None = None
        self.summed = False  # once without a graph, which has NCCL make its connections
        self.pool = None
        self.stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self.reader = _Reader() if device.type == "cuda" else None

    def _take(self, step: Step) -> None:
        numbers = [step.normaliser, step.normaliser / step.weight, step.rate]
        self._copy(torch.tensor(numbers, dtype=torch.float32), self.numbers)
        for samples in self.own_passes(step):
            shape = self.shape(samples)
            self._pass(shape, self._filled(shape, make(samples, shape)))
        self.mark("backward")
        # 0, or NaN for a loss that is no number, which then skips the update.
        self.adapter.grads[:1].add_(self.loss * 0)
        self._add_up()
        assert isinstance(self.optimizer, DeviceAdamW)
        norm = self.optimizer.update()
        mean = self.loss * self.to_mean
        good = torch.isfinite(norm + mean)
        at = slice(step.number, step.number + 1)
        self.losses[at] = torch.where(good, mean, torch.nan)
        self.loss.zero_()
        self.mark("optimizer")

    def _add_up(self) -> None:
        """The sums over the ranks: NCCL's, which the second step captures as it does a pass."""
        if self.ranks.size == 1:
            return

        def work() -> None:
            self.ranks.add_up(self.adapter.grads, self.loss)

        # Others than NCCL's wait for the host.
        may = self.summed and not self.why and self.ranks.by_nccl
        graph = self.sums or (self._captured(work) if may else None)
        self.summed = True
        if graph is None or self.why:
            return work()
        self.sums = graph
        graph.replay()

    def shape(self, samples: Sequence[Sample]) -> Shape:
        """The shape of a pass, its sizes rounded up."""
        exact = shape_of(samples, WORTH if self.last is not None else 0.0)
        length = rounded(exact.length, self.length)
        fitting = max(1, self.plan.micro_batch * self.length // length)
        rows = rounded(exact.rows, fitting, 1)
        # One position more than are scored, so that a row of weight 0 can fill the lists up.
        chosen = rounded(exact.chosen + 1, length) if exact.chosen else 0
        every = rows * (chosen or length)
        return replace(
            exact,
            rows=rows,
            length=length,
            chosen=chosen,
            hard=rounded(exact.hard, every) if exact.hard else 0,
            soft=rounded(exact.soft, every) if exact.soft else 0,
        )

    def _filled(self, shape: Shape, batch: Batch) -> Batch:
        """The buffers of the shape, filled with a batch of it."""
        device = self.losses.device
        if shape not in self.buffers:
            self.buffers[shape] = batch.map(lambda t: torch.empty_like(t, device=device))
        batch.copy_to(self.buffers[shape], self._copy)
        return self.buffers[shape]

    def _copy(self, host: Tensor, device: Tensor) -> None:
        # torch gives pinned memory to the next only when the copy out of it is done.
        device.copy_(host.pin_memory() if device.is_cuda else host, non_blocking=True)

    def _pass(self, shape: Shape, batch: Batch) -> None:
        if self.stream is None:
            return self._add(batch)
        graph = self.graphs.get(shape) or self._capture(shape, batch)
        if graph is None:
            return self._aside(self.stream, lambda: self._add(batch))
        graph.replay()

    def _add(self, batch: Batch) -> None:
        """Forward and backward of a pass; its loss is added to the step's."""
        self.loss += self._backward(batch, self.normaliser)

    def _aside(self, stream: torch.cuda.Stream, work: Callable[[], None]) -> None:
        """Does the work on the stream that graphs are captured on, in the caller's order."""
        current = torch.cuda.current_stream(self.losses.device)
        stream.wait_stream(current)
        with torch.cuda.stream(stream):
            work()
        current.wait_stream(stream)

    def _capture(self, shape: Shape, batch: Batch) -> torch.cuda.CUDAGraph | None:
        """The graph of a pass of a shape that has been run before; None when there is none."""
        if self.why or (shape not in self.graphs and len(self.graphs) >= GRAPHS):
            return None
        if beyond_window(self.model, shape.length):
            return None  # its own attention makes masks on the host
        if shape not in self.graphs:
            self.graphs[shape] = None
            return None
        graph = self._captured(lambda: self._add(batch))
        if graph is not None:
            self.graphs[shape] = graph
        return graph

    def _captured(self, work: Callable[[], None]) -> torch.cuda.CUDAGraph | None:
        """The graph of the work; None, and `why`, when it cannot be captured."""
        graph = torch.cuda.CUDAGraph()
        self.pool = self.pool or torch.cuda.graph_pool_handle()
        # What goes wrong inside is kept: the end of a broken capture raises an error of its own.
        reason: Exception | None = None
        try:
            with torch.cuda.graph(
                graph, pool=self.pool, stream=self.stream, capture_error_mode="thread_local"
            ):
                try:
                    work()
                except Exception as error:
                    reason = error
                    raise
        except Exception as error:
            reason = reason or error
            _give_back(self.losses.device, self.pool)
            if out_of_memory(reason):
                raise reason from None
            self.why = f"the capture failed: {first_line(reason)}"
            return None
        return graph

    def use(self, plan: MemoryPlan) -> None:
        super().use(plan)
        self._forget_graphs()

    def _undo(self) -> None:
        super()._undo()
        self.loss.zero_()
        self._forget_graphs()

    def _forget_graphs(self) -> None:
        if self.stream is not None:
            torch.cuda.synchronize(self.losses.device)
        self.graphs.clear()
        self.buffers.clear()
        # torch takes a pool whose graphs are all gone, and some of whose memory is not, no more.
        self.sums = self.pool = None

    def _latest(self, step: Step) -> float:
        if self.reader is None:
            return super()._latest(step)
        return self.reader.newest(self.losses, step.number)

    @property
    def how(self) -> str:
        count = sum(graph is not None for graph in self.graphs.values())
        graphs = f"CUDA graphs of {count} shapes" if count else "no CUDA graph yet"
        return f"{super().how}; {f'no CUDA graph: {self.why}' if self.why else graphs}"


def rounded(size: int, most: int, multiple: int = 16) -> int:
    """`size` rounded up to one of a few sizes below `most`: it, 3/4, 1/2, 3/8, 1/4 … of it, each a
    multiple of `multiple` where that is not more than `most`. Beyond `most` a multiple."""
    if size > most:
        return -(-size // multiple) * multiple
    fitting, power = most, most
    while power >= size:
        for part in (power, power * 3 // 4):
            part = min(most, -(-part // multiple) * multiple)
            if part >= size:
                fitting = min(fitting, part)
        power //= 2
    return fitting


def _why_not(device: torch.device) -> str:
    """Why no step on the device can be captured; empty when it can."""
    if device.type != "cuda":
        return f"CUDA graphs need a GPU, not {device.type}"
    if torch.cuda.get_device_capability(device) < (8, 0):
        return "the head loss of GPUs before sm_80 waits for the device"
    return ""


def waiting_positions(model: nn.Module) -> str:
    """Why the model's rotary positions cannot be captured; empty when they can.

    "dynamic" and "longrope" choose their frequencies by the longest position. Some versions of
    transformers do so on the host, which waits for the device.
    """
    for module in model.modules():
        kinds = getattr(module, "rope_type", None)
        for layer, kind in (kinds if isinstance(kinds, dict) else {None: kinds}).items():
            if isinstance(kind, str) and ("dynamic" in kind or kind == "longrope"):
                place = next(model.parameters())
                positions = torch.arange(2, device=place.device)[None]
                with _HostReads() as reads, torch.no_grad():
                    module(place.new_zeros(1, 2, 1), positions, *[layer] * (layer is not None))
                if reads.seen:
                    return f"rotary positions of the kind {kind!r} wait for the device"
    return ""


class _HostReads(TorchDispatchMode):
    """Within it `seen` tells whether the host has read a number of a tensor."""

    seen = False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        self.seen |= func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


def _give_back(device: torch.device, pool: Any) -> None:
    """After a failed capture: takes the allocator off the graph's pool, which torch then forgets
    to do (pytorch#180395)."""
    with contextlib.suppress(Exception):
        torch._C._cuda_endAllocateToPool(device.index or 0, pool)
    with contextlib.suppress(Exception):
        torch._C._cuda_releasePool(device.index or 0, pool)


class _Reader:
    """Copies losses to the host now and then, without waiting for the device."""

    def __init__(self) -> None:
        self.value, self.next = float("nan"), 0
        self.waiting: list[tuple[torch.cuda.Event, Tensor]] = []
        self.first = True

    def newest(self, losses: Tensor, number: int) -> float:
        """Behind the launch of step `number`: the last loss that has arrived, NaN when one before
        it was; waits only for the first, and when the host is too far ahead."""
        if self.first:
            self.next = number
        if self.first or number % READ == 0:
            host = torch.empty(number + 1 - self.next, dtype=torch.float32, pin_memory=True)
            host.copy_(losses[self.next : number + 1], non_blocking=True)
            done = torch.cuda.Event()
            done.record()
            self.waiting.append((done, host))
            self.next = number + 1
        while self.waiting:
            done, host = self.waiting[0]
            if not (self.first or len(self.waiting) > 1 or done.query()):
                break
            done.synchronize()
            self.value = float(host[-1]) if host.isfinite().all() else float("nan")
            self.first = False
            self.waiting.pop(0)
            if self.value != self.value:
                break
        return self.value
