"""The workers of a Ray cluster: actors, each with a base model of its own.

An actor that ends, with its node perhaps, is started again where there is room, and the document
that it was at is tried again there (Ray's max_restarts and max_task_retries). A memory that was
whole by then is found in the store and not made twice.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from liftcore.corpus.jobs import Job, Plan
from liftcore.corpus.pool import TRIES
from liftcore.corpus.store import Store
from liftcore.corpus.work import Made, Tell, Worker, known
from liftcore.errors import LiftError, UsageError, first_line

# How often the documents of one task fill the batch of an actor that makes several at once. Ray
# tells what became of them when the task is over.
FILLS = 4


def spread(
    jobs: Sequence[Job], plan: Plan, store: Store, address: str, cpus: float | None, tell: Tell
) -> None:
    """Makes them there, and tells what becomes of each. The files' contents go with the jobs, so
    that no node needs to see them. Raises LiftError without Ray, or when the cluster has room for
    no worker."""
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
        # What the actors are at, and how many documents each takes at once, as it says at first.
        waiting, running, places = deque(jobs), {}, {}
        while waiting or running:
            most = -(-len(jobs) // count)
            while waiting and len(actors) < min(count, len(jobs)):
                actors.append(Actor.remote(plan, store, device, most))
                running[actors[-1].places.remote()] = len(actors) - 1, []
            (ready, *_), _ = ray.wait(list(running))
            number, group = running.pop(ready)
            if not group:
                places[number] = _places(ray, ready)
            for made in _outcomes(ray, ready, group, store):
                if isinstance(made, Job):
                    waiting.appendleft(made)
                else:
                    tell(made)
            if waiting:
                group = _group(waiting, places[number], len(actors))
                task = actors[number].make_group.remote(list(map(_with_contents, group)))
                running[task] = number, group
            else:
                # One that lost its node may wait for this one's place.
                ray.kill(actors[number])
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


def _group(waiting: deque[Job], places: int, actors: int) -> list[Job]:
    """The documents that an actor gets next: one, or what fills its batch a few times."""
    group = [waiting.popleft()]
    size = min(places * FILLS, -(-(len(waiting) + 1) // actors)) if places > 1 else 1
    while not group[0].tried and waiting and not waiting[0].tried and len(group) < size:
        group.append(waiting.popleft())
    return group


def _said(ray: Any, ready: Any) -> Any:
    """What an actor gives. Raises LiftError for one that cannot load the base model."""
    try:
        return ray.get(ready)
    except ray.exceptions.RayTaskError as error:
        raise LiftError(first_line(getattr(error, "cause", error))) from error


def _places(ray: Any, ready: Any) -> int:
    try:
        return _said(ray, ready)
    except ray.exceptions.RayActorError as error:
        raise LiftError(f"a worker ended {TRIES} times before it had a document") from error


def _outcomes(ray: Any, ready: Any, group: list[Job], store: Store) -> list[Made | Job]:
    """What became of each document of a group; a Job is to be tried alone."""
    if not group:
        return []
    try:
        return _said(ray, ready)
    except ray.exceptions.RayActorError:
        pass
    (job, *others) = group
    if not others:
        return [Made(job, None, f"its worker ended {TRIES} times in the middle of it")]
    # Whose fault it was is not known.
    return [
        Made(job, known(store, job)) if store.has(job.folder) else replace(job, tried=1)
        for job in group
    ]
