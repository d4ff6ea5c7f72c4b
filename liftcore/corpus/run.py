"""corpus: a folder of documents in, a folder of memories out."""

from __future__ import annotations

import json
import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from pathlib import Path

import torch

from liftcore import files, locks
from liftcore.corpus import pool
from liftcore.corpus.jobs import Job, Plan, entries_of, job_of
from liftcore.corpus.store import FAILED, INDEX, Store
from liftcore.corpus.work import Made, known
from liftcore.errors import LiftError
from liftcore.training.progress import ProgressLine

# Seconds between two writings of the index.
OFTEN = 30.0


@dataclass
class Summary:
    """What a run of corpus() did.

    made, skipped   entries of the index: memories made now, and those that were there already
    failed          path, title and error of each document that failed
    """

    out: str
    made: list[dict] = field(default_factory=list)
    skipped: list[dict] = field(default_factory=list)
    failed: list[dict] = field(default_factory=list)
    seconds: float = 0.0
    token_passes: int = 0


def corpus(
    documents: str | Path,
    out: str | Path,
    plan: Plan,
    *,
    workers: int | None = None,
    ray: str | None = None,
    cpus_per_worker: float | None = None,
    progress: bool = True,
) -> Summary:
    """Makes a memory of every document of a folder, or of a JSONL file (see jobs.entries_of).

    out       a folder, or a URL that fsspec knows
    workers   processes of this machine; by default one a GPU, and one without a GPU
    ray       the address of a cluster, "" for one on this machine: the workers are Ray's, one a
              GPU, or one for every `cpus_per_worker` CPUs where that is given or there is no GPU

    A memory that is there, of the same document, title, questions and settings, is skipped. A
    document that fails is written to failed.jsonl and stops nothing. memories.json lists the
    memories; of a run before it those of other documents stay in it. An interrupted run goes on
    with the same arguments. Raises LiftError where there is no document, the base model cannot be
    loaded, or `out` cannot be written.
    """
    store, run = Store(str(out)), _Run(Summary(str(out)))
    found = entries_of(Path(documents))
    with ExitStack() as stack:
        if store.local is not None:
            try:
                store.local.mkdir(parents=True, exist_ok=True)
                stack.enter_context(locks.saving(store.local))
            except OSError as error:
                raise LiftError(f"cannot write to {out}: {files.reason(error)}") from error
        run.begin(store, len(found))
        line = stack.enter_context(ProgressLine(enabled=progress))
        jobs = run.waiting(found, plan.digest())
        made: Iterator[Made] = iter(())
        if jobs and ray is not None:
            from liftcore.corpus import on_ray

            made = on_ray.spread(jobs, plan, store, ray, cpus_per_worker)
        elif jobs:
            made = _made_here(jobs, plan, store, workers)
        if isinstance(made, Generator):
            stack.enter_context(closing(made))
        if jobs:
            run.take(made, sum(job.size for job in jobs), line)
        run.end()
    return run.summary


def _made_here(
    jobs: Sequence[Job], plan: Plan, store: Store, workers: int | None
) -> Iterator[Made]:
    """By processes of this machine; by this one where one is enough."""
    on_gpu = torch.cuda.is_available() and plan.device in (None, "cuda")
    devices = [plan.device or "cpu"]
    if on_gpu:
        devices = [f"cuda:{i}" for i in range(torch.cuda.device_count())]
    if workers is not None:
        devices = [devices[i % len(devices)] for i in range(workers)]
    elif len(devices) == 1:
        return pool.here(jobs, plan, store)
    return pool.spread(jobs, plan, store, devices)


class _Run:
    """What is done and known so far, and what of it is on disk."""

    def __init__(self, summary: Summary):
        self.summary, self.started, self.written = summary, time.perf_counter(), 0.0

    def begin(self, store: Store, count: int) -> None:
        self.store, self.before, self.count = store, store.index(), count
        store.remove(FAILED)

    def waiting(self, found: Sequence[tuple], digest: str) -> list[Job]:
        """The jobs that are to be done; takes note of what is done, and of what is not there."""
        listed = {entry["folder"]: entry for entry in self.before}
        jobs: dict[str, Job] = {}
        for file, title, questions in found:
            try:
                job = job_of(file.resolve(), title, questions, digest)
                if not self.store.has(job.folder):
                    jobs.setdefault(job.folder, job)
                    continue
                entry = listed.get(job.folder) or known(self.store, job)
                self.summary.skipped.append({**entry, "path": job.path})
            except (OSError, LiftError) as error:
                self._failed(str(file), title or file.stem, files.reason(error))
        return list(jobs.values())

    def take(self, made: Iterator[Made], size: int, line: ProgressLine) -> None:
        """Takes note of what comes, until all are done."""
        done_bytes = 0
        try:
            for each in made:
                done_bytes += each.job.size
                if each.entry is None:
                    self._failed(each.job.path, each.job.title, each.error)
                else:
                    self.summary.made.append(each.entry)
                    self.summary.token_passes += each.worked[0]
                self._show(line, done_bytes, size)
                if time.perf_counter() - self.written > OFTEN:
                    self._write()
        except BaseException:
            self.end()
            raise

    def end(self) -> None:
        self.summary.seconds = time.perf_counter() - self.started
        self._write()

    def _show(self, line: ProgressLine, done: int, size: int) -> None:
        summary, seconds = self.summary, time.perf_counter() - self.started
        left = round(seconds / done * (size - done)) if done else 0
        count = len(summary.made) + len(summary.failed) + len(summary.skipped)
        failed = f", {len(summary.failed)} failed" if summary.failed else ""
        line.count(
            *("documents", count, self.count),
            f"{failed}  {summary.token_passes / seconds:,.0f} tokens/s  "
            f"{left // 3600}:{left // 60 % 60:02d}:{left % 60:02d} left",
        )

    def _failed(self, path: str, title: str, error: str) -> None:
        self.summary.failed.append({"path": path, "title": title, "error": error})
        lines = [json.dumps(each, ensure_ascii=False) for each in self.summary.failed]
        self.store.write(FAILED, "\n".join(lines) + "\n")

    def _write(self) -> None:
        """The index: what this run knows, and of before it what is of other documents."""
        self.written = time.perf_counter()
        entries = [*self.summary.skipped, *self.summary.made]
        paths = {entry["path"] for entry in entries}
        entries += [entry for entry in self.before if entry["path"] not in paths]
        entries.sort(key=lambda entry: (entry["title"], entry["folder"]))
        content = json.dumps({"memories": entries}, indent=1, ensure_ascii=False)
        self.store.write(INDEX, content + "\n")
