"""Worker processes on one machine: one a GPU, each with the base model of its own."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from multiprocessing.connection import Connection, wait
from typing import Any

from liftcore.corpus.jobs import Job, Plan
from liftcore.corpus.store import Store
from liftcore.corpus.work import Made, Worker
from liftcore.errors import LiftError

# How often a document is tried whose worker ends in the middle of it.
TRIES = 3
# How processes begin: a fork would take CUDA's state along.
START: str = "spawn"
# Seconds that workers have to save their runs behind Ctrl-C.
PATIENCE = 60.0


def here(jobs: Sequence[Job], plan: Plan, store: Store) -> Iterator[Made]:
    """What becomes of each, made in this process."""
    worker = Worker(plan, store)
    return map(worker.make, jobs)


def spread(
    jobs: Sequence[Job], plan: Plan, store: Store, devices: Sequence[str]
) -> Generator[Made]:
    """What becomes of each, as they end, made by one process for each of `devices`.

    A process that ends is replaced, and its document tried again, TRIES times in all. Raises the
    LiftError of a worker that cannot load the base model.
    """
    waiting, tries = deque(jobs), dict.fromkeys((job.folder for job in jobs), 0)
    devices = devices[: len(waiting)]
    threads = max(1, (os.cpu_count() or 1) // max(1, len(devices)))
    workers = [_Process(plan, store, device, threads) for device in devices]
    with _ended(workers):
        for worker in workers:
            worker.give(waiting.popleft())
        while busy := [worker for worker in workers if worker.job is not None]:
            ready = wait([w.pipe for w in busy])
            for worker in [w for w in busy if w.pipe in ready]:
                job = worker.job
                assert job is not None
                made = worker.taken()
                if made is None:
                    tries[job.folder] += 1
                    code = worker.replace()
                    if tries[job.folder] < TRIES:
                        waiting.appendleft(job)
                    else:
                        why = f"its worker ended {TRIES} times in the middle of it (exit {code})"
                        yield Made(job, None, why)
                elif isinstance(made, Made):
                    yield made
                else:
                    raise LiftError(made)
                if waiting:
                    worker.give(waiting.popleft())


class _Process:
    """One worker process, and the document that it is at."""

    def __init__(self, plan: Plan, store: Store, device: str, threads: int):
        self.given, self.job = (plan, store, device, threads), None
        self._start()

    def _start(self) -> None:
        context: Any = multiprocessing.get_context(START)
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, *self.given), daemon=True)
        self.process.start()
        theirs.close()

    def give(self, job: Job) -> None:
        self.job: Job | None = job
        with suppress(OSError):  # it has ended: taken() says so
            self.pipe.send(job)

    def taken(self) -> Made | str | None:
        """What became of its document; an error of all documents; None when it has ended."""
        self.job = None
        try:
            return self.pipe.recv()
        except (EOFError, OSError):
            return None

    def end(self) -> None:
        """Has it end, now that it has no document."""
        with suppress(OSError):
            self.pipe.send(None)
        self.process.join(5.0)
        self.process.kill()
        self.process.join()
        self.pipe.close()

    def replace(self) -> int | None:
        """Starts another in its place; the exit code of the one before."""
        self.process.join()
        code = self.process.exitcode
        self.pipe.close()
        self._start()
        return code


@contextmanager
def _ended(workers: list[_Process]) -> Generator[None]:
    """Behind it no worker runs; behind an interrupt each has saved its run."""
    try:
        yield
    except BaseException:
        for worker in workers:
            if worker.process.pid is not None and worker.process.is_alive():
                worker.process.terminate()
        for worker in workers:
            worker.process.join(PATIENCE)
        raise
    finally:
        for worker in workers:
            worker.end()


def _serve(pipe: Connection, plan: Plan, store: Store, device: str, threads: int) -> None:
    """A worker: documents in, what became of them out, until nobody asks any more."""
    # Ctrl-C of a terminal reaches the first process alone, which then asks the others to end.
    os.setsid()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    if device == "cpu":
        import torch

        torch.set_num_threads(threads)
    worker = Worker(plan, store, device)
    with closing(pipe):
        try:
            while (job := pipe.recv()) is not None:
                pipe.send(worker.make(job))
        except (EOFError, OSError, KeyboardInterrupt):
            return
        except LiftError as error:
            pipe.send(str(error))
