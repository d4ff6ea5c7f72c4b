"""What the stand-in puts in the place of torch.cuda, and of the tensor's methods that name it."""

from __future__ import annotations

import types
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.fx.experimental import _config as fx_config
from torch.utils import _device

from bench.rehearsal.cost import OP_SECONDS
from bench.rehearsal.streams import Capture, Device, Event, Graph, Stream, Within
from liftcore.kernels import native

NAMES = {80: "NVIDIA A100", 90: "NVIDIA H100 80GB HBM3", 100: "NVIDIA B200"}
_Base = torch._C.TensorBase
ops = torch.ops.aten
# SDPA's kernels without a mask, and with one.
_FLASH, _EFFICIENT = (
    ops._scaled_dot_product_flash_attention,
    ops._scaled_dot_product_efficient_attention,
)


def _library(card: Any) -> types.SimpleNamespace:
    """liftcore's CUDA library, as far as it answers: 0, for all is well."""

    def call(*_: Any) -> int:
        card.spend(OP_SECONDS, 0.0)
        return 0

    names = dict.fromkeys(native.SIGNATURES, call)
    return types.SimpleNamespace(**names, liftcore_error=lambda code: b"")


def _is_cuda(device: Any) -> bool:
    if isinstance(device, int) and not isinstance(device, bool):
        return True
    return isinstance(device, str | torch.device) and torch.device(device).type == "cuda"


def _attention(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None,
    dropout_p: float = 0.0, is_causal: bool = False, scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:  # fmt: skip
    """What torch picks on the card: flash attention without a mask in 16 bits, else the other."""
    if attn_mask is None and query.element_size() == 2:
        return _FLASH(query, key, value, dropout_p, is_causal, scale=scale)[0]
    copies = query.shape[1] // key.shape[1]
    if copies > 1:
        key, value = (t.repeat_interleave(copies, dim=1) for t in (key, value))
    if attn_mask is not None:
        attn_mask = attn_mask.to(query.dtype).expand(*query.shape[:-1], key.shape[-2])
    needs = any(t.requires_grad for t in (query, key, value))
    return _EFFICIENT(query, key, value, attn_mask, needs, dropout_p, is_causal, scale=scale)[0]


def _methods(card: Any) -> dict[str, Any]:
    """Of torch.Tensor."""
    own: Any = _Base.to

    def to(self: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        place = kwargs.get("device", args[0] if args else None)
        if isinstance(place, Tensor):
            place = place.device
            args = (place, self_dtype(args, kwargs), *args[1:])
        if not _is_cuda(place) or isinstance(place, bool):
            return own(self, *args, **kwargs)
        if "device" in kwargs:
            kwargs["device"] = torch.device("meta")
        else:
            args = (torch.device("meta"), *args[1:])
        return own(self, *args, **kwargs)

    def self_dtype(args: tuple, kwargs: dict) -> torch.dtype:
        return kwargs.get("dtype", args[0].dtype)

    written = torch.Tensor.__repr__

    def text(self: Tensor, **options: Any) -> str:
        if not card.has(self):
            return written(self, **options)
        return f"tensor(..., device='cuda:0', size={tuple(self.shape)}, dtype={self.dtype})"

    return {
        "__repr__": text,
        "device": property(card.device_of),
        "is_cuda": property(lambda t: card.has(t) and not card.inside),
        "is_meta": property(lambda t: card.has(t) and bool(card.inside)),
        "get_device": lambda t: 0 if card.has(t) else -1,
        "data_ptr": lambda t: card.address(t) if card.has(t) else _Base.data_ptr(t),
        "to": to,
        "cuda": lambda t, device=None, non_blocking=False, **_: to(
            t, "cuda", non_blocking=non_blocking
        ),
        "cpu": lambda t, **_: own(t, "cpu"),
        "pin_memory": lambda t, device=None: card.pin(t.clone()),
        "is_pinned": lambda t, device=None: card.is_pinned(t),
        "record_stream": lambda t, stream: None,
    }


def _start_of(card: Any) -> Callable[[Any], int]:
    """UntypedStorage.data_ptr: what the memory plan tells storages apart by."""
    own = torch.UntypedStorage.data_ptr

    def start(storage: Any) -> int:
        return card.starts.get(storage._cdata) or own(storage)

    return start


def _made(card: Any, function: Callable[..., Any]) -> Callable[..., Any]:
    """torch.tensor and its kin for device=: made on the host, then copied."""

    def make(*args: Any, device: Any = None, **kwargs: Any) -> Any:
        if device is None and _device.CURRENT_DEVICE is not None:
            device = _device.CURRENT_DEVICE
        if not _is_cuda(device):
            return function(*args, device=device, **kwargs)
        pinned = kwargs.pop("requires_grad", False)
        made = function(*args, device="cpu", **kwargs).to("cuda")
        return made.requires_grad_() if pinned else made

    return make


KINDS = {"Stream": Stream, "Event": Event, "CUDAGraph": Graph}


def _of(card: Any, kind: Any) -> type:
    """The class with its card known: libraries name torch.cuda's in annotations."""
    return type(
        kind.__name__, (kind,), {"__init__": lambda self, *_, **__: kind.__init__(self, card)}
    )


def _module(card: Any) -> dict[str, Any]:
    """Of torch.cuda."""
    properties = types.SimpleNamespace(
        name=NAMES.get(card.arch, f"sm_{card.arch}"),
        major=card.arch // 10,
        minor=card.arch % 10,
        total_memory=card.memory,
        multi_processor_count={80: 108, 90: 132, 100: 148}.get(card.arch, 132),
        L2_cache_size=50 * 2**20,
        max_threads_per_multi_processor=2048,
        warp_size=32,
    )

    def debug(mode: int | str) -> None:
        card.refuses_waits = mode in ("error", 2)

    def nothing(*_: Any, **__: Any) -> None:
        pass

    return {
        "is_available": lambda: True,
        "is_initialized": lambda: True,
        "_is_compiled": lambda: True,
        "_lazy_init": nothing,
        "init": nothing,
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "set_device": nothing,
        "device": Device,
        "get_device_properties": lambda device=None: properties,
        "get_device_capability": lambda device=None: (properties.major, properties.minor),
        "get_device_name": lambda device=None: properties.name,
        "is_bf16_supported": lambda *_, **__: card.arch >= 80,
        "synchronize": lambda device=None: card.wait("a synchronisation"),
        "mem_get_info": lambda device=None: (card.memory - card.used, card.memory),
        "memory_allocated": lambda device=None: card.allocated,
        "memory_reserved": lambda device=None: card.used,
        "max_memory_allocated": lambda device=None: card.peak,
        "max_memory_reserved": lambda device=None: card.top,
        "reset_peak_memory_stats": lambda device=None: setattr(card, "peak", card.allocated),
        "empty_cache": nothing,
        **{name: _of(card, kind) for name, kind in KINDS.items()},
        "graph": lambda graph, **options: Capture(card, graph, **options),
        "graph_pool_handle": lambda: object(),
        "current_stream": lambda device=None: card.stream,
        "default_stream": lambda device=None: card.stream,
        "stream": lambda stream: Within(card, stream),
        "set_stream": lambda stream: setattr(card, "stream", stream),
        "is_current_stream_capturing": lambda: card.capture is not None,
        "set_sync_debug_mode": debug,
        "_sleep": lambda cycles: card.spend(0.0, cycles / 2e9),
        "manual_seed": nothing,
        "manual_seed_all": nothing,
        "get_rng_state": lambda device=None: torch.zeros(16, dtype=torch.uint8),
        "get_rng_state_all": lambda: [],
        "set_rng_state": nothing,
        "set_rng_state_all": nothing,
    }


@contextmanager
def patched(card: Any) -> Generator[None]:
    """Within it torch.cuda, the tensor and the makers of tensors are the card's."""
    library = _library(card)
    patches = [
        mock.patch.multiple(torch.cuda, **_module(card), create=True),
        mock.patch.multiple(torch.Tensor, **_methods(card), create=True),
        mock.patch.object(torch.UntypedStorage, "data_ptr", _start_of(card)),
        *(
            mock.patch.object(torch, name, _made(card, getattr(torch, name)))
            for name in ("tensor", "as_tensor")
        ),
        mock.patch.object(torch.version, "cuda", "13.0"),
        mock.patch.object(
            torch.nn.functional, "scaled_dot_product_attention", _or_host(card, _attention)
        ),
        mock.patch.object(torch, "mm", _or_wide(card)),
        # A mask chooses all rows.
        mock.patch.object(fx_config, "meta_nonzero_assume_all_nonzero", True),
        mock.patch.object(native, "_library", lambda: (library, "the stand-in's")),
    ]
    for patch in patches:
        patch.start()
    try:
        yield
    finally:
        for patch in reversed(patches):
            patch.stop()


def _or_host(card: Any, function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    own = torch.nn.functional.scaled_dot_product_attention

    def call(query: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return (function if card.has(query) else own)(query, *args, **kwargs)

    return call


def _or_wide(card: Any) -> Callable[..., Tensor]:
    """torch.mm, which on the meta device of some versions knows no out_dtype."""
    own = torch.mm

    def mm(a: Tensor, b: Tensor, *, out_dtype: torch.dtype | None = None, **kwargs: Any) -> Tensor:
        if out_dtype is None:
            return own(a, b, **kwargs)
        if not card.has(a):
            return own(a, b, out_dtype=out_dtype)
        return own(a, b).to(out_dtype)

    return mm
