"""Worker processes on one machine: one a GPU, each with the base model of its own."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import replace
from multiprocessing.connection import Connection, wait
from typing import Any

from liftcore.corpus.jobs import Job, Plan
from liftcore.corpus.store import Store
from liftcore.corpus.work import Going, Made, Tell, Worker
from liftcore.errors import LiftError

# How often a document is tried whose worker ends in the middle of it.
TRIES = 3
# How processes begin: a fork would take CUDA's state along.
START: str = "spawn"
# Seconds that workers have to save their runs behind Ctrl-C.
PATIENCE = 60.0
# What a worker says that has a place for another document.
MORE = "more"


def here(jobs: Sequence[Job], plan: Plan, store: Store, tell: Tell) -> None:
    """Makes them in this process, and tells what becomes of each."""
    Worker(plan, store, most=len(jobs)).make_all(jobs, tell)


def spread(
    jobs: Sequence[Job], plan: Plan, store: Store, devices: Sequence[str], tell: Tell
) -> None:
    """Makes them in one process for each of `devices`, and tells what becomes of each.

    A process that ends is replaced, and its documents are tried again, TRIES times in all, now one
    by one. Raises the LiftError of a worker that cannot load the base model.
    """
    waiting = deque(jobs)
    devices = devices[: len(waiting)]
    threads = max(1, (os.cpu_count() or 1) // max(1, len(devices)))
    most = -(-len(waiting) // max(1, len(devices)))
    workers = [_Process(plan, store, device, threads, most) for device in devices]
    with _ended(workers):
        for worker in workers:
            worker.give(waiting.popleft())
        while busy := [worker for worker in workers if not worker.done]:
            ready = wait([w.pipe for w in busy])
            for worker in [w for w in busy if w.pipe in ready]:
                said = worker.said()
                if isinstance(said, Going):
                    tell(said)
                elif isinstance(said, Made):
                    worker.jobs.pop(said.job.folder, None)
                    tell(said)
                elif said == MORE:
                    worker.give(waiting.popleft() if waiting else None)
                elif said is not None:
                    raise LiftError(said)
                elif worker.jobs or not worker.asked_to_end:
                    again, code = list(worker.jobs.values()), worker.ended()
                    for job in reversed(again):
                        if job.tried + 1 < TRIES:
                            waiting.appendleft(replace(job, tried=job.tried + 1))
                        else:
                            why = f"its worker ended {TRIES} times in the middle of it"
                            tell(Made(job, None, f"{why} (exit {code})"))
                    if waiting:
                        worker.begin(waiting.popleft())
                else:
                    worker.done = True


class _Process:
    """One worker process, and the documents that it is at, by the names of their folders.

    done   it has ended, and nothing is left for it
    """

    def __init__(self, *given: Any):
        self.given = given  # to _serve()
        self._start()

    def _start(self) -> None:
        context: Any = multiprocessing.get_context(START)
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, *self.given), daemon=True)
        self.process.start()
        theirs.close()
        self.jobs: dict[str, Job] = {}
        self.done = self.asked_to_end = False

    def give(self, job: Job | None) -> None:
        """A document, or None to have it end when it is through."""
        if job is None:
            self.asked_to_end = True
        else:
            self.jobs[job.folder] = job
        with suppress(OSError):  # it has ended: said() tells
            self.pipe.send(job)

    def said(self) -> Made | Going | str | None:
        """What became of a document; how far some are; MORE; an error of all documents; None when
        it has ended."""
        try:
            return self.pipe.recv()
        except (EOFError, OSError):
            return None

    def ended(self) -> int | None:
        """The exit code of a process that has ended."""
        self.process.join()
        self.pipe.close()
        self.done = True
        return self.process.exitcode

    def begin(self, job: Job) -> None:
        """Starts another process in place of one that has ended, with a document."""
        self._start()
        self.give(job)

    def end(self) -> None:
        """Has it end, now that it has no document."""
        with suppress(OSError):
            self.pipe.send(None)
        self.process.join(5.0)
        self.process.kill()
        self.process.join()
        self.pipe.close()


@contextmanager
def _ended(workers: list[_Process]) -> Generator[None]:
    """Behind it no worker runs; behind an interrupt each has saved its run."""
    try:
        yield
    except BaseException:
        for worker in workers:
            if worker.process.pid is not None and worker.process.is_alive():
                worker.give(None)  # it may wait for an answer
                worker.process.terminate()
        for worker in workers:
            worker.process.join(PATIENCE)
        raise
    finally:
        for worker in workers:
            worker.end()


def _serve(
    pipe: Connection, plan: Plan, store: Store, device: str, threads: int, most: int
) -> None:
    """A worker: documents in, what became of them out, until there are no more."""
    # Ctrl-C of a terminal reaches the first process alone, which then asks the others to end.
    os.setsid()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    if device == "cpu":
        import torch

        torch.set_num_threads(threads)

    def jobs() -> Iterator[Job]:
        while (job := pipe.recv()) is not None:
            yield job
            pipe.send(MORE)

    with closing(pipe):
        try:
            Worker(plan, store, device, most).make_all(jobs(), pipe.send)
        except (EOFError, OSError, KeyboardInterrupt):
            return
        except LiftError as error:
            pipe.send(str(error))
