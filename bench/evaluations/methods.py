"""The ways to answer a question about a document that the evaluations compare.

    full-icl        the whole document beside the question, where the window holds it
    truncated-icl   its head and tail, as much as the window holds
    rag             the passages that BM25 finds, as many as the window holds
    lift            from the weights alone
    lift-rag        from the weights, with those passages beside the question
    lift-icl        from the weights, with the truncated document beside the question
    lift-paper      lift-icl with the published settings of training (LiftConfig.paper)

A method of your own is a class with `context` (the text to put beside the question) and, when it
has something to prepare, `prepare`. `--method FILE_OR_MODULE:CLASS` takes it:

    from bench.evaluations.methods import Method

    class Head(Method):
        '''Only the beginning of the document.'''

        name = "head"

        def prepare(self, document):
            super().prepare(document)
            self.tokens = document.tokens.tolist()

        def context(self, question, room):
            return self.bench.tokenizer.decode(self.tokens[:room])
"""

from __future__ import annotations

import importlib
import importlib.util
import time
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from bench.evaluations.memories import Memories
from bench.evaluations.prompts import Prompt
from liftcore import model as models
from liftcore.answer import generate
from liftcore.config import LiftConfig
from liftcore.document import Document
from liftcore.errors import LiftError, UsageError
from liftcore.layers.lora import installed
from liftcore.memory import Memory
from liftcore.questions import retrieval
from liftcore.tokens import text_ids
from liftcore.truncation import truncate


class DoesNotFit(LiftError):
    """The method cannot put what it needs into the model's window."""


def set_window(model: PreTrainedModel, tokens: int) -> None:
    """Makes the model's window smaller than it is: models.window(model) is `tokens` afterwards.

    Raises UsageError for more than the model was made for. With rotary positions nothing else
    changes: positions below the window are encoded as before.
    """
    if not 1 <= tokens <= models.window(model):
        raise UsageError(f"the window must lie between 1 and {models.window(model)}: {tokens}")
    model.config.get_text_config().max_position_embeddings = tokens


@dataclass
class Bench:
    """What the methods of a comparison share."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    config: LiftConfig
    memories: Memories

    @classmethod
    def of(
        cls,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        config: LiftConfig | None = None,
        cache: Path | None = None,
    ) -> Bench:
        return cls(model, tokenizer, config or LiftConfig(), Memories(model, tokenizer, cache))


class Method:
    """One way to answer. `prepare` is called once a document, then `answer` for each question.

    prepare_seconds   what preparing the document cost (of a memory: its training, even when
                      another method or an earlier run did it)
    answer_seconds    what the latest answer cost
    prompt_tokens     the length of the latest prompt
    """

    name = ""

    def __init__(self, bench: Bench):
        self.bench = bench
        self._document: Document | None = None
        self.memory: Memory | None = None
        self.prepare_seconds = self.answer_seconds = 0.0
        self.prompt_tokens = 0

    @property
    def document(self) -> Document:
        """The one that was prepared last."""
        assert self._document is not None, "prepare() comes first"
        return self._document

    @classmethod
    def check(cls) -> None:
        """Raises LiftError when a package is missing. Called before the model is loaded."""

    def prepare(self, document: Document) -> None:
        """Does once what all questions about a document share."""
        self._document = document

    def context(self, question: str, room: int) -> str:
        """The text to put beside the question, of at most `room` tokens; "" for none.

        May raise DoesNotFit. A method without one of its own puts nothing there.
        """
        return ""

    def answer(self, question: str, max_new_tokens: int, prompt: Prompt | None = None) -> str:
        """The model's greedy answer. Raises DoesNotFit."""
        started = time.perf_counter()
        self._install()
        prompt = prompt or Prompt()
        ids = self._prompt_ids(question, max_new_tokens, prompt)
        self.prompt_tokens = len(ids)
        text = generate(self.bench.model, self.bench.tokenizer, ids, max_new_tokens)
        self.answer_seconds = time.perf_counter() - started
        return text.strip() if prompt.chat else text

    def _install(self) -> None:
        """The memory's adapter, or none, in the model that all methods share."""
        if self.memory is not None:
            self.memory.adapter.install()
        elif (other := installed(self.bench.model)) is not None:
            other.remove()

    def _prompt_ids(self, question: str, max_new_tokens: int, prompt: Prompt) -> list[int]:
        """The prompt with as much context as leaves room for the answer."""
        tokenizer, title = self.bench.tokenizer, self.document.title
        window = models.window(self.bench.model) - max_new_tokens
        if type(self).context is Method.context:
            ids = prompt.ids(tokenizer, title, "", question)
            if len(ids) <= window:
                return ids
            raise DoesNotFit(f"{len(ids)} tokens of a question, room for {window}")
        # Text can have other tokens within a prompt than alone: begin a little too large.
        room = window - len(prompt.ids(tokenizer, title, "...", question)) + 4
        while room > 4:
            ids = prompt.ids(tokenizer, title, self.context(question, room), question)
            if len(ids) <= window:
                return ids
            room -= len(ids) - window
        raise DoesNotFit(f"the question and the answer do not fit the window of {window} tokens")


class FullICL(Method):
    name = "full-icl"

    def context(self, question: str, room: int) -> str:
        if len(self.document.tokens) > room:
            raise DoesNotFit(f"{len(self.document.tokens)} tokens, room for {room}")
        return self.document.text


class TruncatedICL(Method):
    name = "truncated-icl"

    def context(self, question: str, room: int) -> str:
        return _truncated(self.bench.tokenizer, self.document, room)


class RAG(Method):
    name = "rag"

    @classmethod
    def check(cls) -> None:
        retrieval.library()

    def prepare(self, document: Document) -> None:
        started = time.perf_counter()
        super().prepare(document)
        self.index = retrieval.SentenceIndex(document.text)
        self.prepare_seconds = time.perf_counter() - started

    def context(self, question: str, room: int) -> str:
        return _passages(self.bench.tokenizer, self.index, question, room)


class Lift(Method):
    name = "lift"

    def prepare(self, document: Document) -> None:
        super().prepare(document)
        self.memory = self.bench.memories.get(document, self.config())
        self.prepare_seconds = self.memory.training.seconds

    def config(self) -> LiftConfig:
        """The settings of training."""
        return self.bench.config


class LiftICL(Lift):
    name = "lift-icl"

    def context(self, question: str, room: int) -> str:
        return _truncated(self.bench.tokenizer, self.document, room)


class LiftRAG(Lift):
    name = "lift-rag"

    @classmethod
    def check(cls) -> None:
        retrieval.library()

    def prepare(self, document: Document) -> None:
        super().prepare(document)
        self.index = retrieval.SentenceIndex(document.text)

    def context(self, question: str, room: int) -> str:
        return _passages(self.bench.tokenizer, self.index, question, room)


class LiftPaper(LiftICL):
    name = "lift-paper"

    def config(self) -> LiftConfig:
        """The published settings; segments are shorter where the window asks for it."""
        paper = LiftConfig.paper(seed=self.bench.config.seed)
        room = models.window(self.bench.model) - len(models.prefix_ids(self.bench.tokenizer))
        return paper.replace(segment_length=min(paper.segment_length, room))


METHODS = {m.name: m for m in (FullICL, TruncatedICL, RAG, Lift, LiftRAG, LiftICL, LiftPaper)}


def find(name: str) -> type[Method]:
    """A method by its name in METHODS, or as MODULE:CLASS or FILE.py:CLASS.

    Raises UsageError for what is none of them.
    """
    if name in METHODS:
        return METHODS[name]
    where, _, kind = name.rpartition(":")
    if not where:
        raise UsageError(f"unknown method {name!r}: {', '.join(METHODS)}, or MODULE:CLASS")
    try:
        method = getattr(_module(where), kind)
    except (ImportError, FileNotFoundError, AttributeError) as error:
        raise UsageError(f"cannot load the method {name!r}: {error}") from error
    if not (isinstance(method, type) and issubclass(method, Method) and method.name):
        raise UsageError(f"{name!r} is not a named subclass of bench.evaluations.methods.Method")
    return method


def _module(where: str) -> ModuleType:
    if not where.endswith(".py"):
        return importlib.import_module(where)
    spec = importlib.util.spec_from_file_location(Path(where).stem, where)
    assert spec is not None and spec.loader is not None  # a file that ends in .py has both
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _passages(
    tokenizer: PreTrainedTokenizerBase, index: retrieval.SentenceIndex, question: str, room: int
) -> str:
    passages = index.passages(question, room, lambda text: len(text_ids(tokenizer, text)))
    if not passages:
        raise DoesNotFit(f"no passage of the document fits {room} tokens")
    return passages


def _truncated(tokenizer: PreTrainedTokenizerBase, document: Document, room: int) -> str:
    """All of the document, or its head and tail with "..." between, in `room` tokens."""
    dots = len(text_ids(tokenizer, "\n...\n"))
    fits = len(document.tokens) <= room
    return document.text if fits else truncate(tokenizer, document.tokens.tolist(), room - dots)
