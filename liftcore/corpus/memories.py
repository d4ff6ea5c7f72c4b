"""A folder of memories that is asked: which one a question goes to, or none of them."""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from liftcore import answer
from liftcore import model as models
from liftcore.adapter import alone_with
from liftcore.corpus.store import INDEX, Store
from liftcore.embedded import cache_folder
from liftcore.errors import LiftError
from liftcore.info import read_info
from liftcore.layers.lora import without_adapter
from liftcore.memory import Memory, load_memory
from liftcore.output import DOCUMENT
from liftcore.questions.choice import MATCH, Documents
from liftcore.questions.retrieval import library

MOST = 3  # memories that are asked where all that match are wanted
WORDS = "memories.bm25"  # what choose() needs of the documents, so that they are read once
VERSION = 1  # of what it stands for

_NAME = re.compile(r"(?!\.\.?$)[^/\\]+")  # of a folder, and no way out of where it stands


@dataclass(frozen=True)
class Choice:
    """A memory that a question may go to, and how well its document matches.

    folder   its name among the memories
    """

    title: str
    folder: str
    score: float


def is_many(folder: str | Path) -> bool:
    """Whether a folder, or a URL, is one that corpus wrote."""
    store = Store(str(folder))
    return store.read(INDEX) is not None if store.local is None else (store.local / INDEX).is_file()


class Memories:
    """The memories of a folder that corpus wrote, over one base model.

    folder  a folder, or a URL that fsspec knows; a memory that is asked is then copied into
            liftcore's cache
    load    gives (model, tokenizer) for the name of a base model
    force   accepts a base model of another name
    """

    def __init__(
        self,
        folder: str | Path,
        load: Callable[[str], tuple[Any, Any]] | None = None,
        *,
        force: bool = False,
    ):
        self.store, self.force = Store(str(folder)), force
        self._load = load or models.load
        self.entries = self.store.index()
        if not self.entries:
            raise LiftError(f"{folder} holds no memories")
        for entry in self.entries:
            # The index may come from anybody.
            if not _NAME.fullmatch(entry["folder"]):
                raise LiftError(f"{INDEX} in {folder} names a folder elsewhere: {entry['folder']}")
        self.documents = self._documents()
        self._base: tuple[str, Any, Any] | None = None
        self._last: tuple[str, Memory] | None = None

    def _documents(self) -> Documents:
        """Title and text of each memory; the title alone of one without its document."""
        named = [[entry["title"], entry["folder"]] for entry in self.entries]
        told = json.dumps([VERSION, library().__version__, named])
        key, file = hashlib.sha256(told.encode()).hexdigest(), self._file()
        if file is not None and (kept := Documents.kept(file, key, len(named))) is not None:
            return kept
        texts = self.store.read_each([f"{folder}/{DOCUMENT}" for _, folder in named])
        made = Documents(
            [
                f"{title}\n{(text or b'').decode('utf-8', 'replace')}"
                for (title, _), text in zip(named, texts, strict=True)
            ]
        )
        if file is not None:
            with contextlib.suppress(LiftError, OSError):  # the folder may be somebody else's
                made.keep(file, key)
        return made

    def _file(self) -> Path | None:
        """Where what is known of the documents is kept: beside the index, or for a URL in the
        cache; None for a user without one."""
        if self.store.local is not None:
            return self.store.local / WORDS
        name = hashlib.sha256(self.store.out.encode()).hexdigest()[:16]
        with contextlib.suppress(LiftError):
            return cache_folder() / "memories" / f"{name}.bm25"
        return None

    def choose(self, question: str, most: int = 1) -> list[Choice]:
        """At most so many memories whose documents match the question, the best first."""
        return [
            Choice(self.entries[i]["title"], self.entries[i]["folder"], score)
            for i, score in self.documents.ranked(question)[:most]
            if score >= MATCH
        ]

    def memory(self, choice: Choice) -> Memory:
        """The memory of a choice, installed in the base model."""
        if self._last is None or self._last[0] != choice.folder:
            folder = self.store.bring(choice.folder)
            base = self._base_of(read_info(folder).about.base_model)
            self._last = choice.folder, load_memory(folder, base, force=self.force)
        return self._last[1]

    def ask_base(
        self,
        question: str,
        *,
        max_new_tokens: int = 64,
        on_text: Callable[[str], None] | None = None,
    ) -> str:
        """The base model's own answer, as it is without any memory."""
        name = self.entries[0].get("base_model")
        if not isinstance(name, str):
            name = read_info(self.store.bring(self.entries[0]["folder"])).about.base_model
        model, tokenizer = self._base_of(name)
        with alone_with(model), without_adapter(model):
            prompt = answer.prompt_ids(tokenizer, question, "\nAnswer:")
            return answer.generate(model, tokenizer, prompt, max_new_tokens, on_text).strip()

    def _base_of(self, name: str) -> tuple[Any, Any]:
        """The base model of this name, which is loaded once."""
        if self._base is None or self._base[0] != name:
            self._last = None
            self._base = name, *self._load(name)
        return self._base[1:]
