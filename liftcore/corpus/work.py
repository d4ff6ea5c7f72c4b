"""What a worker does: it loads the base model once, and makes memories of documents."""

from __future__ import annotations

import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from liftcore.corpus.jobs import Job, Plan
from liftcore.corpus.store import Store


@dataclass(frozen=True)
class Made:
    """What became of a document.

    entry     of the index: title, sha256, recall, folder, path, tokens, seconds, ...; None when
              it failed
    error     why it failed
    worked    token-passes and seconds that it took now; (0, 0) where it was there already
    """

    job: Job
    entry: dict | None
    error: str = ""
    worked: tuple[int, float] = (0, 0.0)


class Worker:
    """Makes memories over one base model, which the first document loads."""

    def __init__(self, plan: Plan, store: Store, device: str | None = None):
        self.plan, self.store, self.device = plan, store, device or plan.device
        self.loaded: tuple[Any, Any] | None = None

    def make(self, job: Job) -> Made:
        """The memory of a document, in the store. What is there is taken as it is; what fails is
        said and not raised, but for an interrupt and a base model that cannot be loaded."""
        if self.store.has(job.folder):
            return Made(job, known(self.store, job))
        model, tokenizer = self._load()
        started = time.perf_counter()
        try:
            passes = self._absorb(job, model, tokenizer)
            return Made(job, known(self.store, job), worked=(passes, time.perf_counter() - started))
        except Exception as error:
            text = " ".join(str(error).split()) or type(error).__name__
            return Made(job, None, text)

    def _load(self) -> tuple[Any, Any]:
        if self.loaded is None:
            import torch

            from liftcore import model as models

            dtype = None if self.plan.dtype is None else getattr(torch, self.plan.dtype)
            self.loaded = models.load(self.plan.model, device=self.device, dtype=dtype)
        return self.loaded

    def _absorb(self, job: Job, model: Any, tokenizer: Any) -> int:
        from liftcore import document as documents
        from liftcore import files, lift
        from liftcore.objectives.build import SELF, named_sources
        from liftcore.reading import read_file

        with ExitStack() as stack:
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
            memory = lift.absorb(
                *(model, tokenizer, document),
                config=self.plan.config,
                resume=here,
                qa=sources or None,
                init=self.plan.init,
                progress=False,
            )
            memory.save(here, force=True, with_document=self.plan.with_document)
            self.store.take(job.folder)
            return memory.training.token_passes


def known(store: Store, job: Job) -> dict:
    """The entry of the index for a memory that is there. Raises LiftError when it is damaged."""
    import json

    from liftcore.errors import LiftError
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
