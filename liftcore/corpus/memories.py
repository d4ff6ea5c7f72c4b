"""A folder of memories that is asked: which one a question goes to, or none of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from liftcore import answer
from liftcore import model as models
from liftcore.adapter import alone_with
from liftcore.corpus.store import INDEX, Store
from liftcore.errors import LiftError
from liftcore.info import read_info
from liftcore.layers.lora import without_adapter
from liftcore.memory import Memory, load_memory
from liftcore.output import DOCUMENT
from liftcore.questions.choice import MATCH, Documents

MOST = 3  # memories that are asked where all that match are wanted


@dataclass(frozen=True)
class Choice:
    """A memory that a question may go to, and how well its document matches."""

    title: str
    folder: Path
    score: float


def is_many(folder: str | Path) -> bool:
    """Whether a folder is one that corpus wrote."""
    return (Path(folder) / INDEX).is_file()


class Memories:
    """The memories of a folder that corpus wrote, over one base model.

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
        self.folder, self.force = Path(folder), force
        self._load = load or models.load
        self.entries = Store(str(folder)).index()
        if not self.entries:
            raise LiftError(f"{folder} holds no memories")
        self.documents = Documents([self._text(entry) for entry in self.entries])
        self._base: tuple[str, Any, Any] | None = None
        self._last: Memory | None = None
        self._last_folder: Path | None = None

    def _text(self, entry: dict) -> str:
        """Title and text; the title alone of a memory without its document."""
        file = self._place(entry) / DOCUMENT
        text = file.read_bytes().decode("utf-8", "replace") if file.is_file() else ""
        return f"{entry['title']}\n{text}"

    def _place(self, entry: dict) -> Path:
        folder = self.folder / entry["folder"]
        # The index may come from anybody.
        if folder.parent != self.folder or entry["folder"] in ("..", "."):
            raise LiftError(f"{INDEX} in {self.folder} names a folder elsewhere: {entry['folder']}")
        return folder

    def choose(self, question: str, most: int = 1) -> list[Choice]:
        """At most so many memories whose documents match the question, the best first."""
        return [
            Choice(self.entries[i]["title"], self._place(self.entries[i]), score)
            for i, score in self.documents.ranked(question)[:most]
            if score >= MATCH
        ]

    def memory(self, choice: Choice) -> Memory:
        """The memory of a choice, installed in the base model."""
        if self._last is None or self._last_folder != choice.folder:
            base = self._base_of(choice.folder)
            self._last = load_memory(choice.folder, base, force=self.force)
            self._last_folder = choice.folder
        return self._last

    def ask_base(
        self,
        question: str,
        *,
        max_new_tokens: int = 64,
        on_text: Callable[[str], None] | None = None,
    ) -> str:
        """The base model's own answer, as it is without any memory."""
        model, tokenizer = self._base_of(self._place(self.entries[0]))
        with alone_with(model), without_adapter(model):
            prompt = answer.prompt_ids(tokenizer, question, "\nAnswer:")
            return answer.generate(model, tokenizer, prompt, max_new_tokens, on_text).strip()

    def _base_of(self, folder: Path) -> tuple[Any, Any]:
        name = read_info(folder).about.base_model
        if self._base is None or self._base[0] != name:
            self._last = None
            self._base = name, *self._load(name)
        return self._base[1:]
