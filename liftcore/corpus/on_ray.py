"""The workers of a Ray cluster: actors, each with a base model of its own.

An actor that ends, with its node perhaps, is started again where there is room, and the document
that it was at is tried again there (Ray's max_restarts and max_task_retries). A memory that was
whole by then is found in the store and not made twice.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Generator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from liftcore.corpus.jobs import Job, Plan
from liftcore.corpus.pool import TRIES
from liftcore.corpus.store import Store
from liftcore.corpus.work import Made, Worker
from liftcore.errors import LiftError, UsageError, first_line


def spread(
    jobs: Sequence[Job], plan: Plan, store: Store, address: str, cpus: float | None
) -> Generator[Made]:
    """What becomes of each, as they end. The files' contents go with the jobs, so that no node
    needs to see them. Raises LiftError without Ray, or when the cluster has room for no worker."""
    try:
        import ray
    except ImportError as error:
        raise LiftError("--ray needs Ray: pip install 'liftcore[ray]'") from error
    if store.local is not None:
        # A worker may have another working folder.
        store = Store(str(store.local.resolve()))
    ours = not ray.is_initialized()
    if ours:
        _join(ray, address)
    actors: list[Any] = []
    try:
        needs, count = _needs(ray.cluster_resources(), plan, cpus)
        if not count:
            raise LiftError(f"the cluster has room for no worker that needs {needs}")
        Actor = ray.remote(max_restarts=-1, max_task_retries=TRIES - 1, **needs)(Worker)
        device = plan.device or ("cuda" if "num_gpus" in needs else "cpu")
        waiting, running = deque(jobs), {}

        def give(actor: Any) -> None:
            job = waiting.popleft()
            running[actor.make.remote(_with_contents(job))] = actor, job

        while waiting or running:
            while waiting and len(actors) < count:
                actors.append(Actor.remote(plan, store, device))
                give(actors[-1])
            (ready, *_), _ = ray.wait(list(running))
            actor, job = running.pop(ready)
            yield _outcome(ray, ready, job)
            if waiting:
                give(actor)
            else:
                # One that lost its node may wait for this one's place.
                ray.kill(actor)
            count = max(count, _needs(ray.cluster_resources(), plan, cpus)[1])  # nodes join
    finally:
        for actor in actors:
            ray.kill(actor)
        if ours:
            ray.shutdown()


def _join(ray: Any, address: str) -> None:
    known = address or os.environ.get("RAY_ADDRESS")
    try:
        ray.init(known, log_to_driver=False, include_dashboard=False)
    except (ConnectionError, ValueError, RuntimeError) as error:
        where = f"the Ray cluster at {known}" if known else "Ray"
        raise LiftError(f"cannot join {where}: {first_line(error)}") from error


def _needs(there: dict[str, float], plan: Plan, cpus: float | None) -> tuple[dict, int]:
    """What a worker asks Ray for, and how many of them there is room for."""
    gpus = int(there.get("GPU", 0))
    if cpus is None and gpus and plan.device != "cpu":
        return {"num_gpus": 1}, gpus
    each = 1.0 if cpus is None else cpus
    if each <= 0:
        raise UsageError(f"--cpus-per-worker must be above 0: {each:g}")
    return {"num_cpus": each}, int(there.get("CPU", 0) / each)


def _with_contents(job: Job) -> Job:
    files = [Path(job.path), *([Path(job.questions)] if job.questions else [])]
    try:
        return replace(job, contents={file.name: file.read_bytes() for file in files})
    except OSError:
        return job  # which then fails by itself, and says why


def _outcome(ray: Any, ready: Any, job: Job) -> Made:
    try:
        return ray.get(ready)
    except ray.exceptions.RayActorError:
        return Made(job, None, f"its worker ended {TRIES} times in the middle of it")
    except ray.exceptions.RayTaskError as error:
        cause = getattr(error, "cause", error)
        if isinstance(cause, LiftError):
            raise LiftError(first_line(cause)) from error
        return Made(job, None, first_line(cause))
