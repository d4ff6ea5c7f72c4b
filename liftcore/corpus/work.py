"""What a worker does: it loads the base model once, and makes memories of documents."""

from __future__ import annotations

import functools
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from liftcore.corpus.jobs import Job, Plan
from liftcore.corpus.store import Store
from liftcore.errors import LiftError, first_line

if TYPE_CHECKING:
    from liftcore.many import Given
    from liftcore.memory import Memory
    from liftcore.training.log import Progress

# Seconds between two times that a worker tells how far it is.
OFTEN = 1.0


@dataclass(frozen=True)
class Made:
    """What became of a document.

    entry          of the index: title, sha256, recall, folder, path, tokens, seconds, ...; None
                   when it failed
    error          why it failed
    token_passes   of its training; 0 where it was there already
    """

    job: Job
    entry: dict | None
    error: str = ""
    token_passes: int = 0


@dataclass(frozen=True)
class Going:
    """How far the documents are that a worker is at.

    each   folder -> token-passes of this run, and the share of the training that is over: told of
           at a document's first step, and then now and then
    """

    each: dict[str, tuple[int, float]]


Tell = Callable[[Made | Going], None]


class Worker:
    """Makes memories over one base model, which the first document loads.

    most    how many documents at once it should take at most, since there are not enough for more
    """

    def __init__(self, plan: Plan, store: Store, device: str | None = None, most: int = 1):
        self.plan, self.store, self.device = plan, store, device or plan.device
        self.most = most
        self.loaded: tuple[Any, Any] | None = None
        self.told = 0.0  # when it last said how far it is

    def make_all(self, jobs: Iterable[Job], tell: Tell) -> None:
        """Makes the memories of the documents, several at once where that pays, and says what
        became of each as soon as that is known, and now and then how far they are. Documents are
        asked for as places become free.

        What is there is taken as it is; what fails is said and not raised, but for an interrupt,
        settings that do not fit, and a base model that cannot be loaded. A document whose worker
        has ended in the middle is made alone.
        """
        jobs = iter(jobs)
        for job in jobs:
            alone: Job | None = job
            while alone is not None:
                if alone.tried or self.store.has(alone.folder) or self.places() == 1:
                    tell(self.make(alone, tell))
                    alone = None
                else:
                    alone = self._together(chain([alone], jobs), tell)

    def make_group(self, jobs: Sequence[Job]) -> list[Made]:
        """What becomes of the documents, as make_all()."""
        told: list[Made | Going] = []
        self.make_all(jobs, told.append)
        return [each for each in told if isinstance(each, Made)]

    def make(self, job: Job, tell: Tell = lambda told: None) -> Made:
        """The memory of one document, as make_all()."""
        if self.store.has(job.folder):
            return Made(job, known(self.store, job))
        model, tokenizer = self._load()
        with ExitStack() as stack:
            try:
                memory = self._absorb(job, model, tokenizer, stack, tell)
            except Exception as error:
                return _failed(job, error)
            return self.taken(job, memory)

    def places(self) -> int:
        """How many documents are trained at once; loads the base model where that says it."""
        if self.plan.together is not None or self.most == 1:
            return min(self.plan.together or 1, self.most)
        return min(self._worth, self.most)

    @functools.cached_property
    def _worth(self) -> int:
        from liftcore import many, prepare

        model, tokenizer = self._load()
        return many.worth_together(
            model, prepare.settled(self.plan.config, tokenizer, self.plan.init)
        )

    def _load(self) -> tuple[Any, Any]:
        if self.loaded is None:
            import torch

            from liftcore import model as models

            dtype = None if self.plan.dtype is None else getattr(torch, self.plan.dtype)
            self.loaded = models.load(self.plan.model, device=self.device, dtype=dtype)
        return self.loaded

    def _absorb(self, job: Job, model: Any, tokenizer: Any, stack: ExitStack, tell: Tell) -> Memory:
        from liftcore import lift

        def step(at: Progress) -> None:
            if self.due():
                tell(Going({job.folder: (at.tokens, min(1.0, at.step / max(1, at.steps)))}))

        self.told = 0.0
        given = self.given(job, tokenizer, stack)
        return lift.absorb(
            *(model, tokenizer, given.document),
            config=self.plan.config,
            resume=given.resume,
            qa=given.qa,
            init=self.plan.init,
            on_step=step,
            progress=False,
        )

    def due(self) -> bool:
        """Whether it is time to say how far the documents are."""
        if time.monotonic() - self.told < OFTEN:
            return False
        self.told = time.monotonic()
        return True

    def _together(self, jobs: Iterator[Job], tell: Tell) -> Job | None:
        """Makes the memories of the documents together, up to one that is to be made alone, which
        is returned."""
        from liftcore import many

        model, tokenizer = self._load()
        batch = _Batch(self, jobs, tokenizer, tell)
        try:
            many.absorb_given(
                *(model, tokenizer, batch.documents(), self.plan.config),
                together=self.places(),
                init=self.plan.init,
                on_memory=batch.memory,
                on_failure=batch.failed,
                on_step=batch.step,
                progress=False,
            )
        except Exception as error:
            if not batch.running and isinstance(error, LiftError):
                raise
            if not batch.running:
                raise LiftError(first_line(error)) from error
            # Whose fault it was is not known.
            for job in batch.end():
                tell(self.make(job, tell))
        finally:
            batch.end()
        return batch.alone

    def given(self, job: Job, tokenizer: Any, stack: ExitStack) -> Given:
        """The document with its questions, and where its run goes on; what they need is closed
        with the stack."""
        from liftcore import document as documents
        from liftcore import files
        from liftcore.many import Given
        from liftcore.objectives.build import SELF, named_sources
        from liftcore.reading import read_file

        file, questions = Path(job.path), job.questions
        if job.contents is not None:
            place = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            for name, content in job.contents.items():
                (place / name).write_bytes(content)
            file = place / file.name
            questions = None if questions is None else str(place / Path(questions).name)
        reading = read_file(file)
        document = documents.from_text(reading.text, tokenizer, job.title, reading.source)
        server, self_made = self.plan.server, self.plan.self_made
        sources = named_sources(reading.text, job.title, questions, server, self_made)
        for each in sources:
            if each != SELF:
                stack.callback(each.close)
        here = self.store.workplace(job.folder)
        files.tidy(here)
        return Given(document, qa=sources or None, resume=here)

    def taken(self, job: Job, memory: Memory) -> Made:
        """Puts a memory to the others."""
        try:
            here = self.store.workplace(job.folder)
            memory.save(here, force=True, with_document=self.plan.with_document)
            self.store.take(job.folder)
            entry = known(self.store, job)
        except Exception as error:
            return _failed(job, error)
        return Made(job, entry, token_passes=memory.training.token_passes)


class _Batch:
    """The documents that a worker makes together.

    running   number in the batch -> the document, and what is to be closed behind it
    alone     the one that ended the batch since it is to be made alone
    """

    def __init__(self, worker: Worker, jobs: Iterator[Job], tokenizer: Any, tell: Tell):
        self.worker, self.jobs, self.tokenizer, self.tell = worker, jobs, tokenizer, tell
        self.running: dict[int, tuple[Job, ExitStack]] = {}
        self.alone: Job | None = None

    def documents(self) -> Iterator[Given]:
        """What absorb_given() gets, as it has a place for it."""
        number = 0
        for job in self.jobs:
            if self.worker.store.has(job.folder):
                self.tell(self.worker.make(job))
                continue
            if job.tried:
                self.alone = job
                return
            try:
                with ExitStack() as begun:
                    given = self.worker.given(job, self.tokenizer, begun)
                    stack = begun.pop_all()
            except Exception as error:
                self.tell(_failed(job, error))
                continue
            self.running[number], number = (job, stack), number + 1
            self.worker.told = 0.0
            yield given

    def step(self, going: Callable[[], dict[int, tuple[int, float]]]) -> None:
        if self.worker.due():
            each = {self.running[number][0].folder: how for number, how in going().items()}
            self.tell(Going(each))

    def memory(self, number: int, memory: Memory) -> None:
        job, stack = self.running.pop(number)
        with stack:
            made = self.worker.taken(job, memory)
        self.tell(made)

    def failed(self, number: int, error: LiftError) -> None:
        job, stack = self.running.pop(number)
        stack.close()
        self.tell(_failed(job, error))

    def end(self) -> list[Job]:
        """Closes what is open; the documents that were not over."""
        left = list(self.running.values())
        self.running.clear()
        for _, stack in left:
            stack.close()
        return [job for job, _ in left]


def _failed(job: Job, error: Exception) -> Made:
    return Made(job, None, " ".join(str(error).split()) or type(error).__name__)


def known(store: Store, job: Job) -> dict:
    """The entry of the index for a memory that is there. Raises LiftError when it is damaged."""
    import json

    from liftcore.output import INFO

    try:
        info = json.loads(store.read(f"{job.folder}/{INFO}") or b"")
        return {
            "title": info["document"]["title"],
            "sha256": info["document"]["sha256"],
            "recall": info["report"]["recall"],
            "folder": job.folder,
            "path": job.path,
            "tokens": info["document"]["tokens"],
            "seconds": round(info["training"]["seconds"], 2),
            "base_model": info["base_model"],
        }
    except (ValueError, LookupError, TypeError) as error:
        raise LiftError(f"{job.folder}/{INFO} is damaged: {error}") from error
