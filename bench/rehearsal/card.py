"""A stand-in for a CUDA GPU: Python takes every turn that it takes on one, and nothing is computed.

Tensors of the stand-in lie on torch's meta device, say that they are on cuda:0 and have addresses.
Every op that reaches the dispatcher is looked at: it may not mix devices, memory ends where the
card's does, and within the capture of a CUDA graph what CUDA refuses there raises Refused: a read
of the host, a copy between host and device, a kernel that is not compiled yet, another stream.
Launches of Triton kernels are recorded. What the host reads is no result but a number that lets
the program go on; time is that of the floors of cost.py.
"""

from __future__ import annotations

import gc
import weakref
from collections import Counter
from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from triton.tools.tensor_descriptor import TensorDescriptor

from bench.kernels.jit import specialised
from bench.rehearsal import cost, cuda, streams
from bench.rehearsal.ops import OWN, SPECIAL
from bench.rehearsal.values import is_nowhere, number_of, tensors_of
from liftcore.kernels import device as kernel_device
from liftcore.kernels import head_loss, native
from liftcore.kernels.tiling import Launch, recording

ops = torch.ops.aten
_Base = torch._C.TensorBase
CUDA, META = torch.device("cuda:0"), torch.device("meta")
MEMORY = 78 * 2**30

# These write nothing.
EMPTY = ("empty", "new_empty", "empty_like", "empty_strided", "new_empty_strided", "lift_fresh")


class Refused(RuntimeError):
    """What a capture, or a run that must not wait for the device, does not allow."""


@dataclass(frozen=True)
class Shell:
    """As much of a tensor as Triton's JIT looks at: it keeps no memory alive."""

    dtype: torch.dtype
    address: int

    def data_ptr(self) -> int:
        return self.address


class Card(TorchDispatchMode):
    """The stand-in; use it by stand_in().

    kernels    a launch of each kernel that Triton's JIT would compile, by its name in the cache
    launches   how often each was launched
    computing  how often each op of torch was that launches something
    waits      how often the host waited for the device, by reason
    allocated, peak, top   bytes: of tensors, the most of them, and the most with pools of graphs
    starts     address of each storage that is there, by its handle
    host, device   seconds: where the host is, and when the device will be done
    """

    def __init__(self, arch: int = 90, memory: int = MEMORY) -> None:
        super().__init__()
        self.arch, self.memory = arch, memory
        self.kernels: dict[str, Launch] = {}
        self.launches: Counter[str] = Counter()
        self.computing: Counter[str] = Counter()
        self.waits: Counter[str] = Counter()
        self.refuses_waits = False
        self.allocated = self.peak = self.top = 0
        self.host = self.device = 0.0
        self.capture: streams.Graph | None = None
        self.pools: dict[Any, int] = {}
        self.graphs: Counter[Any] = Counter()  # that live, by pool
        self.filling: Any = self  # no pool
        self.stream: streams.Stream = streams.Stream(self)
        self.starts: dict[int, int] = {}
        self._next = 2**34
        self._pinned: set[int] = set()
        self.inside = 0

    def reset(self) -> None:
        """Counts anew; what is compiled stays compiled, and what is allocated allocated."""
        self.launches.clear()
        self.computing.clear()
        self.waits.clear()
        self.peak = self.allocated
        self.top = self.used

    def restart(self) -> None:
        """As for another process: counts anew, and all memory is free, whoever holds some."""
        gc.collect()
        self.starts.clear()
        self.pools.clear()
        self.allocated = 0
        self.reset()

    def has(self, tensor: Tensor) -> bool:
        return _Base.device.__get__(tensor).type == "meta"

    def device_of(self, tensor: Tensor) -> torch.device:
        real = _Base.device.__get__(tensor)
        # torch's own functions for the meta device must see it.
        return CUDA if real.type == "meta" and not self.inside else real

    def address(self, tensor: Tensor) -> int:
        start = self.starts.get(tensor.untyped_storage()._cdata, 0)
        return start + int(tensor.storage_offset()) * tensor.element_size() if start else 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func.namespace == "liftcore":
            with self:
                return OWN[func._opname](*args, **kwargs)
        tensors = [*tensors_of(args), *tensors_of(kwargs.values())]
        here = [t for t in tensors if self.has(t)]
        pin = kwargs.pop("pin_memory", None)
        device = kwargs.get("device")
        moved = isinstance(device, torch.device) and device.type == "cuda"
        if moved:
            kwargs["device"] = META
        if func in SPECIAL:
            return SPECIAL[func](self, func, args, kwargs)
        self.look(func, args, tensors, here)
        self.inside += 1
        try:
            out = func(*args, **kwargs)
        finally:
            self.inside -= 1
        if pin:
            self.pin(out)
        if here or moved:
            self.ran(func, here, out)
        return out

    def look(self, func: Any, args: tuple, tensors: list[Tensor], here: list[Tensor]) -> None:
        """Raises for what a GPU would not take."""
        if not here:
            return
        beside = [t for t in tensors if t.ndim and not self.has(t)]
        packet = func.overloadpacket
        if beside and packet not in (ops.index, ops.index_put_, ops._index_put_impl_):
            raise RuntimeError(
                "Expected all tensors to be on the same device, but found at least two devices, "
                f"cuda:0 and cpu! (in {func})"
            )
        if beside:
            self.wait(f"indices on the host, in {func}")
        masks = any(t.dtype in (torch.bool, torch.uint8) for t in tensors_of(args[1:2]))
        indexed = packet in (ops.index, ops.index_put_, ops._index_put_impl_)
        dynamic = torch.Tag.dynamic_output_shape in func.tags and not indexed
        if dynamic or (indexed and masks):
            self.wait(f"a size that the device knows, in {func}")

    def ran(self, func: Any, read: list[Tensor], out: Any) -> None:
        outs = [t for t in tensors_of((out,)) if self.has(t)]
        known = {t.untyped_storage()._cdata for t in read}
        for tensor in outs:
            self.keep(tensor)
            if tensor.dtype == torch.bool:
                tensor._nowhere = is_nowhere(func, read)  # ty: ignore[missing-attribute]
        fresh = [t for t in outs if t.untyped_storage()._cdata not in known]
        if fresh or func._schema.is_mutable:
            kind = func.overloadpacket.__name__
            if kind not in EMPTY:
                self.computing[str(func)] += 1
                self.spend(cost.OP_SECONDS, cost.of_op(func, read, fresh))

    def keep(self, tensor: Tensor) -> None:
        """Counts the memory of a tensor that is new, and gives it an address."""
        storage = tensor.untyped_storage()
        key, size = storage._cdata, -(-storage.nbytes() // 512) * 512
        if key in self.starts or not size:
            return
        if self.used + size > self.memory:
            raise torch.OutOfMemoryError(
                f"CUDA out of memory. Tried to allocate {size / 2**20:.0f} MiB of the stand-in's "
                f"{self.memory / 2**30:.1f} GiB, of which {self.allocated / 2**30:.1f} are taken"
            )
        self.starts[key] = self._next
        self._next += size
        self.allocated += size
        self.peak = max(self.peak, self.allocated)
        self.top = max(self.top, self.used)
        weakref.finalize(storage, self._free, key, size)

    def leave(self, pool: Any) -> None:
        """A graph is gone: with the last one the memory of its pool is free."""
        self.graphs[pool] -= 1
        if not self.graphs[pool]:
            self.pools.pop(pool, None)

    @property
    def used(self) -> int:
        """Bytes of tensors and of the pools of graphs, but of the pool that a capture fills."""
        pools = sum(size for pool, size in self.pools.items() if pool is not self.filling)
        return self.allocated + pools

    def _free(self, key: int, size: int) -> None:
        if self.starts.pop(key, None) is not None:
            self.allocated -= size

    def spend(self, host: float, device: float) -> None:
        self.host += host
        if self.capture is not None:
            self.capture.seconds += device
        else:
            self.device = max(self.device, self.host) + device

    def wait(self, what: str) -> None:
        """The host waits for the device, where it may."""
        if self.capture is not None:
            raise Refused(f"operation not permitted when a stream is capturing: {what}")
        if self.refuses_waits:
            raise Refused(f"called a synchronizing CUDA operation: {what}")
        self.waits[what] += 1
        self.host = max(self.host, self.device)

    def take(self, launch: Launch) -> None:
        """A launch of a Triton kernel."""
        shell = launch._replace(args=[self._shell(a) for a in launch.args])
        name = specialised(shell, self.arch)
        if name not in self.kernels:
            if self.capture is not None:
                raise Refused(f"{launch.kernel.__name__} is compiled while a stream is capturing")
            self.kernels[name] = shell
        self.launches[name] += 1
        self.spend(cost.LAUNCH_SECONDS, cost.of_launch(launch))

    def _shell(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            if not self.has(value):
                raise ValueError("Pointer argument cannot be accessed from Triton (cpu tensor?)")
            return Shell(value.dtype, self.address(value))
        if isinstance(value, TensorDescriptor):
            base = self._shell(value.base)
            return TensorDescriptor(base, value.shape, value.strides, value.block_shape)
        return value

    def pin(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        self._pinned.add(storage._cdata)
        weakref.finalize(storage, self._pinned.discard, storage._cdata)
        return tensor

    def is_pinned(self, tensor: Tensor) -> bool:
        return tensor.untyped_storage()._cdata in self._pinned

    def numbers(self, tensor: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """What the host reads of a tensor: its shape, filled with the number."""
        dtype = dtype or tensor.dtype
        return torch.full(tensor.shape, number_of(tensor, dtype), dtype=dtype)


@contextmanager
def stand_in(arch: int = 90, memory: int = MEMORY) -> Generator[Card]:
    """Within it torch.cuda is a stand-in of a card of this architecture, whatever is there."""
    card = Card(arch, memory)
    caches = kernel_device.facts, head_loss._use_triton, native._probe, native._library
    with ExitStack() as stack:
        for cache in caches:
            cache.cache_clear()
            stack.callback(cache.cache_clear)
        kernel_device.planned.append(arch)
        stack.callback(kernel_device.planned.pop)
        stack.enter_context(cuda.patched(card))
        stack.enter_context(recording(card.take))
        stack.enter_context(card)
        yield card
