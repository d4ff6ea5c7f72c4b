"""A memory: a model, the adapter that holds a document, and what is known about both."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import importlib.util
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from liftcore import adapter as adapters
from liftcore import answer, embedded, files, model, output
from liftcore.adapter import alone_with
from liftcore.config import LiftConfig
from liftcore.errors import LiftError, UsageError
from liftcore.info import read_info
from liftcore.layers import base as bases
from liftcore.layers.linear import features, matrix
from liftcore.layers.lora import Adapter, lora_layers, without_adapter
from liftcore.layers.targets import check_mergeable
from liftcore.output import ADAPTER, DOCUMENT, INFO, MERGED, PICTURE, QUESTIONS
from liftcore.pretrained import HUB_NAME, memory_from_hub
from liftcore.questions import pairs, retrieval
from liftcore.questions.pairs import Pair
from liftcore.questions.retrieval import Evidence
from liftcore.reading import Source
from liftcore.reading.text import read_bytes
from liftcore.report import Report
from liftcore.terminal import note, one_line
from liftcore.tokens import text_ids
from liftcore.training.log import Result
from liftcore.truncation import truncate


@dataclass
class Memory:
    """What absorb() gives: ask it, look at its report, save it."""

    model: nn.Module
    tokenizer: Any
    adapter: Adapter
    title: str
    text: str | None  # None when it was saved without the document
    sha256: str
    length: int  # tokens of the document
    config: LiftConfig
    report: Report
    training: Result
    source: Source | None = None  # the file that the document was read from
    questions: list[Pair] = field(default_factory=list)  # what it was trained to answer
    rank: int = 0  # of the process, where several trained it together
    _index: retrieval.SentenceIndex | None = field(default=None, init=False, repr=False)

    def ask(
        self,
        question: str,
        *,
        context: str = "none",
        max_new_tokens: int = 64,
        on_text: Callable[[str], None] | None = None,
    ) -> str:
        """The model's answer, greedily decoded.

        context   "none": from the weights alone; "truncated": the prompt also holds the document,
                  cut to the model's window (LIFT+ICL); "passages": it holds the passages that
                  evidence() gives (LIFT+RAG). Raises UsageError for anything else
        on_text   is called with each piece of the answer as it is generated; together they are
                  the answer, with white space around it
        """
        check_length(max_new_tokens)
        if context not in answer.CONTEXTS:
            raise UsageError(f"unknown context {context!r}: choose {', '.join(answer.CONTEXTS)}")
        beside: Callable[[int], str] | None = None
        if context == "truncated":
            tokens = text_ids(self.tokenizer, self._text())
            beside = partial(truncate, self.tokenizer, tokens)
        elif context == "passages":
            index, most = self._passages(), retrieval.MOST
            beside = partial(index.passages, question, count=self._count, most=most)
        with alone_with(self.model):
            self.adapter.install()
            return answer.ask(
                *(self.model, self.tokenizer, question),
                title=self.title,
                context=beside,
                max_new_tokens=max_new_tokens,
                on_text=on_text,
            ).strip()

    def evidence(self, question: str, most: int = retrieval.MOST) -> list[Evidence]:
        """The passages of the document that hold most of the question's words (BM25), in the
        document's order, of the `most` best windows of five sentences. Raises LiftError when the
        memory has no document, or bm25s is missing."""
        return self._passages().evidence(question, most, self.source)

    def complete(
        self,
        text: str,
        *,
        max_new_tokens: int = 32,
        on_text: Callable[[str], None] | None = None,
    ) -> str:
        """How the document goes on after `text`, from the weights alone, greedily decoded;
        `on_text` as in ask()."""
        check_length(max_new_tokens)
        with alone_with(self.model):
            self.adapter.install()
            return answer.complete(self.model, self.tokenizer, text, max_new_tokens, on_text)

    def _text(self) -> str:
        if self.text is None:
            raise LiftError("this memory was saved without its document; use context none")
        return self.text

    def _passages(self) -> retrieval.SentenceIndex:
        text = self._text()
        if self._index is None or self._index.text != text:
            self._index = retrieval.SentenceIndex(text)
        return self._index

    def _count(self, text: str) -> int:
        return len(text_ids(self.tokenizer, text))

    def save(
        self,
        folder: str | Path,
        *,
        force: bool = False,
        merge: bool = False,
        with_document: bool = True,
    ) -> Path:
        """Writes the adapter in PEFT's form, liftcore.json, the document with the questions that
        were trained on, and the recall picture.

        With merge also the model with the adapter added to its weights, in folder/merged.
        Everything is written aside first and then takes its place all at once, also when the
        process is killed (the next load or save finishes it). Only files that liftcore wrote are
        replaced or removed. A picture, a copy of the document or a merged model that cannot be
        written is a warning. Of several ranks that trained it, rank 0 alone writes. Raises
        LiftError when the folder is not empty, unless force, when it holds somebody else's file
        of such a name, or when it cannot be written: the memory then is in another folder, which
        the message names.
        """
        folder = Path(folder)
        if self.rank:
            return folder
        output.save(folder, lambda new: self._write(new, with_document), force=force)
        if merge:
            with output.or_warning(f"{folder / MERGED}"):
                output.add(folder, INFO, lambda new: self.write_merged(new / MERGED))
        return folder

    def _write(self, folder: Path, with_document: bool) -> tuple[str, dict]:
        from liftcore import __version__

        sha256 = adapters.write(self.adapter, folder)
        if with_document and self.text is not None:
            with output.or_warning(DOCUMENT, folder / DOCUMENT):
                (folder / DOCUMENT).write_bytes(self.text.encode())
        # They tell what stands in the document.
        if with_document and self.questions:
            with output.or_warning(QUESTIONS, folder / QUESTIONS):
                pairs.keep(self.questions, folder / QUESTIONS)
        if self.report.positions and _has_matplotlib():
            with output.or_warning(PICTURE, folder / PICTURE):
                self.report.png(folder / PICTURE, self.title)
        return INFO, {
            "liftcore": __version__,
            "base_model": adapters.base_name(self.model),
            "document": self._document(),
            "config": dataclasses.asdict(self.config),
            "training": dataclasses.asdict(self.training),
            "report": dataclasses.asdict(self.report),
            "adapter_sha256": sha256,
            "vllm_max_lora_rank": adapters.vllm_rank(self.adapter.rank),
        }

    def _document(self) -> dict:
        about: dict = {"title": self.title, "sha256": self.sha256, "tokens": self.length}
        if self.source is not None:
            about["source"] = dataclasses.asdict(self.source)
        return about

    def write_merged(self, folder: Path) -> None:
        """Writes the model with the adapter added to its weights, and the tokenizer. Raises
        LiftError when a layer shares its weight with another."""
        model.causal_lm(merged(self.adapter)).save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)


def check_length(max_new_tokens: int) -> None:
    """Raises UsageError for a number of tokens that no answer has."""
    if max_new_tokens < 1:
        raise UsageError(f"max_new_tokens must be at least 1: {max_new_tokens}")


def merged(adapter: Adapter) -> nn.Module:
    """A copy of the adapter's model with W + scaling · B A in place of W.

    Raises LiftError when a layer shares its weight with another.
    """
    with alone_with(adapter.model), without_adapter(adapter.model):
        check_mergeable(adapter.model, adapter.targets.layers)
        plain = copy.deepcopy(adapter.model)
    with torch.no_grad():
        for path, layer in adapter.layers.items():
            weight = matrix(plain.get_submodule(path))
            delta = layer.lora_b.float() @ layer.lora_a.float() * adapter.scaling
            weight.copy_(weight.float() + delta)
    return plain


def check_output(
    folder: Path, *, force: bool, merge: bool = False, with_document: bool = True
) -> None:
    """Raises LiftError when `folder` cannot take a memory, as far as can be known before it is
    made: see output.check."""
    names = [*ADAPTER, INFO]
    names += [DOCUMENT, QUESTIONS] if with_document else []
    names += [PICTURE] if _has_matplotlib() else []
    output.check(folder, force=force, names=tuple(names), merge=merge)


def check_room(folder: Path, model: nn.Module, config: LiftConfig, *, merge: bool = False) -> None:
    """Raises LiftError when the disk has no room for the memory of a run, and for its state."""
    layers = lora_layers(model, config).values()
    # All are counted as trained.
    values = config.rank * sum(sum(features(m)) for m in layers)
    size = next(model.parameters()).element_size()
    weights = sum(p.numel() * p.element_size() for p in model.parameters()) if merge else 0
    # The state holds fp32 masters and two moments.
    files.check_room(folder, values * (12 + size) + weights)


def load_memory(
    folder: str | Path,
    model_and_tokenizer: tuple | None = None,
    *,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
    force: bool = False,
) -> Memory:
    """A saved memory, on the base model that it was trained on.

    folder   where it was saved, or USER/NAME on the hub

    The base is loaded by its recorded name unless `model_and_tokenizer` gives one; a line on
    standard error says which, but for the embedded model. One that is loaded so is put into FP8
    where the memory was trained on such a base; a given one stays as it is. Raises LiftError when
    the folder is damaged or the model is another one; force skips the check of the name (never
    that of the shapes).
    """
    folder = local_folder(folder)
    info = read_info(folder)
    base = info.about.base_model
    if model_and_tokenizer is None:
        device = model.checked_device(device)
        say_base(base, folder)
        model_and_tokenizer = model.load(base, device=device, dtype=dtype)
        if info.config.base_dtype == "fp8":
            bases.quantise(model_and_tokenizer[0], None)
    base_model, tokenizer = model_and_tokenizer
    if adapters.base_name(base_model) != base and not force:
        raise LiftError(
            f"the memory in {folder} was trained on {base}, not on "
            f"{adapters.base_name(base_model)}; --force (force=True) tries all the same"
        )
    adapter = adapters.read(base_model, folder, info.about.adapter_sha256)
    if (adapter.rank, adapter.alpha) != (info.config.rank, info.config.lora_alpha):
        raise LiftError(f"{folder / adapters.CONFIG} was changed: its r or lora_alpha differs")
    text = None
    # Somebody else's file of that name is none of the memory's.
    asked: list[Pair] = []
    if QUESTIONS in (info.files or ()) and (folder / QUESTIONS).is_file():
        asked = pairs.kept(folder / QUESTIONS)
    if (info.files is None or DOCUMENT in info.files) and (folder / DOCUMENT).is_file():
        saved = read_bytes(folder / DOCUMENT, limit=float("inf"))
        if hashlib.sha256(saved).hexdigest() != info.about.sha256:
            raise LiftError(
                f"{folder / DOCUMENT} was changed since it was saved (its hash differs)"
            )
        try:
            text = saved.decode()
        except UnicodeDecodeError as error:
            raise LiftError(f"{folder / DOCUMENT} is damaged: it is not UTF-8 text") from error
    with alone_with(base_model):
        adapter.install()
    about = info.about
    return Memory(
        *(base_model, tokenizer, adapter, about.title, text, about.sha256, about.tokens),
        *(info.config, info.report, info.training, info.source, asked),
    )


def say_base(base: str, folder: str | Path) -> None:
    """Says on standard error which base model is loaded because a memory, or a folder of them,
    names it; the embedded one goes without saying."""
    if base != embedded.NAME or os.path.isdir(base):
        kind = "the folder" if os.path.isdir(base) else "the hub's"
        note(f"liftcore: loading {kind} {one_line(base)}, the base model that {folder} names")


def local_folder(folder: str | Path) -> Path:
    """The memory's folder, brought from the hub where the name is one there and nothing here."""
    name, folder = str(folder), Path(folder)
    if folder.exists() or folder.parent.exists() or not HUB_NAME.fullmatch(name):
        return folder
    return memory_from_hub(name)


def _has_matplotlib() -> bool:
    return importlib.util.find_spec("matplotlib") is not None
