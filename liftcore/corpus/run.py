"""corpus: a folder of documents in, a folder of memories out."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import torch

from liftcore import files, locks
from liftcore.corpus import pool
from liftcore.corpus.jobs import Job, Plan, entries_of, job_of
from liftcore.corpus.store import FAILED, INDEX, Store
from liftcore.corpus.work import Going, Made, Tell, known
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
        line = stack.enter_context(ProgressLine(enabled=progress))
        run.begin(store, len(found), line)
        jobs = run.waiting(found, plan.digest())
        stack.callback(run.end)
        if jobs and ray is not None:
            from liftcore.corpus import on_ray

            on_ray.spread(jobs, plan, store, ray, cpus_per_worker, run.note)
        elif jobs:
            _make_here(jobs, plan, store, workers, run.note)
    return run.summary


def _make_here(
    jobs: Sequence[Job],
    plan: Plan,
    store: Store,
    workers: int | None,
    tell: Tell,
) -> None:
    """By processes of this machine; by this one where one is enough."""
    on_gpu = torch.cuda.is_available() and plan.device in (None, "cuda")
    devices = [plan.device or "cpu"]
    if on_gpu:
        devices = [f"cuda:{i}" for i in range(torch.cuda.device_count())]
    if workers is not None:
        devices = [devices[i % len(devices)] for i in range(workers)]
    elif len(devices) == 1:
        return pool.here(jobs, plan, store, tell)
    pool.spread(jobs, plan, store, devices, tell)


class _Run:
    """What is done and known so far, and what of it is on disk."""

    def __init__(self, summary: Summary):
        self.summary, self.started, self.written = summary, time.perf_counter(), 0.0
        # Bytes of the documents that are over, and of all that are, or were, to be done.
        self.done_bytes = self.size = 0
        # What this run has made: bytes, and token-passes. What an earlier one had done, of what
        # goes on, is none of it.
        self.made_bytes = self.made_tokens = 0.0
        # Folder -> bytes; how far the documents are that are in work; how far they were at first.
        self.sizes: dict[str, int] = {}
        self.going: dict[str, tuple[int, float]] = {}
        self.begun: dict[str, float] = {}

    def begin(self, store: Store, count: int, line: ProgressLine) -> None:
        self.store, self.before, self.count, self.line = store, store.index(), count, line
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
                self._failed(str(file.absolute()), title or file.stem, files.reason(error))
        self.sizes = {folder: job.size for folder, job in jobs.items()}
        self.size = sum(self.sizes.values())
        self._show()
        return list(jobs.values())

    def note(self, told: Made | Going) -> None:
        """Takes note of what became of a document, or of how far some are."""
        if isinstance(told, Going):
            self.going |= told.each
            self.begun = {folder: share for folder, (_, share) in told.each.items()} | self.begun
        else:
            self._over(told)
        self._show()
        if time.perf_counter() - self.written > OFTEN:
            self._write()

    def _over(self, made: Made) -> None:
        self.done_bytes += made.job.size
        self.going.pop(made.job.folder, None)
        share = 1 - self.begun.pop(made.job.folder, 0.0)
        if made.entry is None:
            self._failed(made.job.path, made.job.title, made.error)
        else:
            self.summary.made.append(made.entry)
            self.made_bytes += share * made.job.size
            self.made_tokens += share * made.token_passes
            self.summary.token_passes += made.token_passes

    def end(self) -> None:
        self.summary.seconds = time.perf_counter() - self.started
        self._write()

    def _show(self) -> None:
        summary, seconds = self.summary, time.perf_counter() - self.started
        count, more = len(summary.made) + len(summary.failed) + len(summary.skipped), ""
        if summary.failed:
            more = f", {len(summary.failed)} failed"
        made, tokens, rest = self.made_bytes, self.made_tokens, self.size - self.done_bytes
        for folder, (passes, share) in self.going.items():
            made += max(0.0, share - self.begun[folder]) * self.sizes[folder]
            tokens += passes
            rest -= share * self.sizes[folder]
        if made:  # one that fails takes no time, and says nothing about the others
            left = round(seconds / made * rest)
            more += f"  {tokens / seconds:,.0f} tokens/s"
            more += f"  {left // 3600}:{left // 60 % 60:02d}:{left % 60:02d} left"
        self.line.count("documents", count, self.count, more)

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
