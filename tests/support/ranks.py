"""Work on several processes that are one group of torch.distributed (gloo)."""

import multiprocessing
import os
import pickle
import tempfile
import traceback
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

TIMEOUT = 120


def on_ranks(size, work, *, lost=()):
    """What work(rank) gives on each rank, in their order; those of `lost` are expected to die.

    The processes are forked, so that they have what this one has imported and made.
    """
    fork = multiprocessing.get_context("fork")
    with tempfile.TemporaryDirectory() as folder:
        processes = [
            fork.Process(target=_run, args=(rank, size, work, Path(folder))) for rank in range(size)
        ]
        for process in processes:
            process.start()
        for process in processes:
            process.join(TIMEOUT)
        alive = [rank for rank, process in enumerate(processes) if process.is_alive()]
        for process in processes:
            process.kill()
        assert not alive, f"ranks {alive} did not end"
        results = []
        for rank in range(size):
            file = Path(folder) / str(rank)
            assert file.exists() or rank in lost, f"rank {rank} died"
            results.append(pickle.loads(file.read_bytes()) if file.exists() else None)
    for rank, result in enumerate(results):
        assert not isinstance(result, _Raised), f"rank {rank}: {result.text}"
    return results


class _Raised:
    def __init__(self, text):
        self.text = text


def _run(rank, size, work, folder):
    torch.set_num_threads(1)
    try:
        meeting = f"file://{folder}/meeting"
        dist.init_process_group(
            "gloo", init_method=meeting, rank=rank, world_size=size, timeout=timedelta(seconds=60)
        )
        result = work(rank)
    except BaseException:
        result = _Raised(traceback.format_exc())
    (folder / f"{rank} half").write_bytes(pickle.dumps(result))
    os.replace(folder / f"{rank} half", folder / str(rank))
    os._exit(0)
