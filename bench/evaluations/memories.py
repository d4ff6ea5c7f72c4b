"""Absorbed documents, each trained once however many methods ask for it."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase

import liftcore
from liftcore.config import LiftConfig
from liftcore.document import Document
from liftcore.layers.lora import installed
from liftcore.memory import INFO, Memory
from liftcore.training import checkpoint


class Memories:
    """Memories of one model by (document, settings).

    With a folder they are kept there, and a run that was killed in the midst of training goes
    on; without one they live as long as the document that is being asked about.
    """

    def __init__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path | None = None
    ):
        self.model, self.tokenizer, self.folder = model, tokenizer, folder
        self.progress = True  # whether training shows how it goes
        self.document = ""
        self.held: dict[str, Memory] = {}

    def get(self, document: Document, config: LiftConfig) -> Memory:
        """The memory of a document under these settings: held, read from disk, or trained now."""
        if document.sha256 != self.document:
            self.held, self.document = {}, document.sha256
        key = self._key(document, config)
        if key not in self.held:
            self.held[key] = self._read_or_train(document, config, key)
        return self.held[key]

    @property
    def empty(self) -> bool:
        """Whether there is nothing to drop."""
        on_disk = self.folder is not None and self.folder.is_dir() and any(self.folder.iterdir())
        return not (self.held or on_disk)

    def drop(self, document: Document) -> None:
        """Forgets a document that nothing will be asked about any more, on disk too."""
        self.held = {}
        if self.folder is not None:
            for folder in self.folder.glob(f"{document.sha256[:16]}-*"):
                shutil.rmtree(folder)

    def _read_or_train(self, document: Document, config: LiftConfig, key: str) -> Memory:
        folder = None if self.folder is None else self.folder / key
        if folder is not None and (folder / INFO).is_file():
            return liftcore.load_memory(folder, (self.model, self.tokenizer))
        memory = liftcore.absorb(
            self.model,
            self.tokenizer,
            document,
            config=config,
            resume=folder,
            progress=self.progress,
        )
        if folder is not None:
            memory.save(folder, force=True)
        return memory

    def _key(self, document: Document, config: LiftConfig) -> str:
        if (adapter := installed(self.model)) is not None:
            adapter.remove()  # an earlier one must not count as a part of the model
        run = checkpoint.identity(config, document.sha256, self.model)
        digest = hashlib.sha256(json.dumps(run, sort_keys=True).encode()).hexdigest()
        return f"{document.sha256[:16]}-{digest[:16]}"
