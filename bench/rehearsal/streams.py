"""The stand-in's streams, events and CUDA graphs: one clock, which floors move on."""

from __future__ import annotations

import weakref
from typing import Any

import torch

from bench.rehearsal.cost import REPLAY_SECONDS


class Stream:
    """A stream; all of them share the device's one clock."""

    cuda_stream = 0

    def __init__(self, card: Any) -> None:
        self.card = card
        self.device = torch.device("cuda:0")

    def wait_stream(self, other: Stream) -> None:
        if self.card.capture is not None:
            self.card.wait("a wait for another stream")

    wait_event = wait_stream

    def synchronize(self) -> None:
        self.card.wait("a synchronisation")

    def query(self) -> bool:
        return True

    def record_event(self, event: Event | None = None) -> Event:
        event = event or Event(self.card)
        event.record(self)
        return event


class Event:
    def __init__(self, card: Any) -> None:
        self.card, self.at = card, 0.0

    def record(self, stream: Stream | None = None) -> None:
        self.at = self.card.device = max(self.card.host, self.card.device)

    def wait(self, stream: Stream | None = None) -> None:
        pass

    def query(self) -> bool:
        return True

    def synchronize(self) -> None:
        self.card.wait("a synchronisation")

    def elapsed_time(self, end: Event) -> float:
        # Nothing takes no time: ratios of times stay numbers.
        return 1e3 * max(end.at - self.at, 1e-7)


class Graph:
    """A CUDA graph: the floor of what was captured, for each replay."""

    def __init__(self, card: Any) -> None:
        self.card, self.seconds, self.whole = card, 0.0, False

    def replay(self) -> None:
        if not self.whole:
            raise RuntimeError("Called CUDAGraph::replay without a preceding successful capture.")
        if self.card.capture is not None:
            self.card.wait("a replay within a capture")
        self.card.spend(REPLAY_SECONDS, self.seconds)

    def reset(self) -> None:
        self.whole = False

    def pool(self) -> Any:
        return id(self)


class Capture:
    """torch.cuda.graph: within it everything is captured, or refused."""

    def __init__(
        self, card: Any, graph: Graph, pool: Any = None, stream: Stream | None = None, **_: Any
    ) -> None:
        self.card, self.graph, self.pool, self.stream = card, graph, pool, stream

    def __enter__(self) -> None:
        self.card.wait("a synchronisation before a capture")
        self.before = self.card.stream, self.card.peak
        self.card.peak = self.card.allocated
        self.card.capture, self.card.filling = self.graph, self.pool
        self.card.stream = self.stream or Stream(self.card)

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        card, (stream, peak) = self.card, self.before
        card.capture, card.filling, card.stream = None, card, stream
        # What a graph used once stays its pool's.
        left = card.peak - card.allocated
        card.peak = max(card.peak, peak)
        if error is not None:
            raise RuntimeError(
                "CUDA error: operation failed due to a previous error during capture"
            )
        card.pools[self.pool] = max(card.pools.get(self.pool, 0), left)
        card.graphs[self.pool] += 1
        weakref.finalize(self.graph, card.leave, self.pool)
        card.top = max(card.top, card.used)
        self.graph.whole = True


class Within:
    """`with torch.cuda.stream(s)`."""

    def __init__(self, card: Any, stream: Stream | None) -> None:
        self.card, self.stream = card, stream

    def __enter__(self) -> None:
        self.before = self.card.stream
        if self.stream is None:
            return
        if self.card.capture is not None and self.stream is not self.card.stream:
            self.card.wait("another stream")
        self.card.stream = self.stream

    def __exit__(self, *_: Any) -> None:
        self.card.stream = self.before


class Device:
    """`with torch.cuda.device(d)`."""

    def __init__(self, device: Any) -> None:
        pass

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: Any) -> None:
        pass
