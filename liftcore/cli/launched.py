"""The processes that torchrun or accelerate started: one run, of which rank 0 prints."""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING

from liftcore.errors import ElsewhereError, LostError, UsageError

if TYPE_CHECKING:
    from liftcore.training.parallel import Ranks

# What torchrun and accelerate tell the processes that they start.
TOLD = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


def restarted() -> bool:
    """Whether torchrun started this process in place of one that ended."""
    return _round() != "0"


@contextmanager
def launched(args: argparse.Namespace) -> Generator[Ranks]:
    """Within it the processes are a group, args.device is this one's, and only rank 0 prints.

    Raises UsageError for more processes than GPUs. Of those that notice that another has ended
    the first raises LostError, and says so.
    """
    from liftcore.training import parallel

    if not all(name in os.environ for name in TOLD) or os.environ["WORLD_SIZE"] == "1":
        yield parallel.current()
        return
    import torch.distributed as dist

    with ExitStack() as stack:
        on_gpu = _take_device(args)
        backend = "cpu:gloo,cuda:nccl" if on_gpu else "gloo"
        _meet(backend, parallel.WAIT)
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        ranks = parallel.current()
        if not ranks.first:
            nowhere = stack.enter_context(open(os.devnull, "w", errors="replace"))
            stack.enter_context(contextlib.redirect_stdout(nowhere))
            stack.enter_context(contextlib.redirect_stderr(nowhere))
        try:
            yield ranks
        except LostError as error:
            # torchrun now asks all to end; what is raised is still to be said.
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            if _noticed_first():
                raise
            raise ElsewhereError(str(error)) from error
        except KeyboardInterrupt as error:
            if ranks.first:
                raise
            raise ElsewhereError("interrupted") from error
        # Behind a failure nobody may wait for the others.
        dist.destroy_process_group()


def _meet(backend: str, wait: timedelta) -> None:
    """Makes the group."""
    import torch.distributed as dist

    store, rank, size = next(iter(dist.rendezvous("env://", timeout=wait)))
    if os.environ.get("GROUP_WORLD_SIZE", "1") == "1":
        # torchrun on one machine has the processes that it starts again meet where those before
        # them did, and find these. (With several machines each round has a place of its own.)
        store = dist.PrefixStore(f"liftcore {_round()}", store)
    dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=wait)


def _round() -> str:
    return os.environ.get("TORCHELASTIC_RESTART_COUNT") or "0"


def _take_device(args: argparse.Namespace) -> bool:
    """Gives args.device this process's GPU, where it is to have one."""
    import torch

    there, local = torch.cuda.device_count(), int(os.environ["LOCAL_RANK"])
    if args.device is None and not there:
        args.device = "cpu"
    if args.device not in (None, "cuda", "cpu"):
        raise UsageError(f"several processes take a GPU each: --device cuda or cpu, {args.device}")
    if args.device == "cpu":
        return False
    if local >= there:
        raise UsageError(f"process {local + 1} of a machine with {there} GPUs: start {there}")
    args.device = f"cuda:{local}"
    torch.cuda.set_device(local)
    return True


def _noticed_first() -> bool:
    """Whether no other process has said yet that one has ended."""
    from torch.distributed import distributed_c10d

    with contextlib.suppress(Exception):
        store = distributed_c10d._get_default_store()
        return store.add(f"liftcore noticed {_round()}", 1) == 1
    return True
