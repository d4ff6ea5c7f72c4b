"""absorb_many: many documents in, a memory each out, several of them trained in one batch."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import repeat
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from liftcore import model as models
from liftcore import output, prepare
from liftcore.adapter import alone_with
from liftcore.config import LiftConfig
from liftcore.device_memory import free_bytes
from liftcore.document import Document
from liftcore.errors import LiftError, UsageError
from liftcore.layers import base
from liftcore.layers.linear import features
from liftcore.layers.lora import Adapter, lora_layers, own_adapter_after, without_adapter
from liftcore.memory import Memory
from liftcore.tokens import Tokenizer
from liftcore.training import checkpoint
from liftcore.training.checkpoint import Position
from liftcore.training.log import Progress, Result
from liftcore.training.loop import train
from liftcore.training.losses import told_by
from liftcore.training.memory_plan import MemoryPlan
from liftcore.training.optimizer import check
from liftcore.training.progress import ProgressLine
from liftcore.training.together import Learner, TogetherSource

# Tokens of a joint step beyond which sharing gains little: on a CPU measured (bench many); an H100
# needs 300 to be limited by what it computes (docs/scale.md), which no GPU has shown.
ENOUGH = 512
# The share of the free memory that the adapters and their optimizers may take.
SHARE = 0.4


def absorb_many(
    model: nn.Module,
    tokenizer: Tokenizer,
    documents: Iterable[str | Path | list[int] | Document],
    config: LiftConfig | None = None,
    *,
    together: int | None = None,
    titles: Iterable[str | None] | None = None,
    qa: Iterable[Any] | None = None,
    resume: Iterable[str | Path | None] | None = None,
    init: str | Path | None = None,
    on_memory: Callable[[int, Memory], None] | None = None,
    on_failure: Callable[[int, LiftError], None] | None = None,
    progress: bool = True,
) -> list[Memory]:
    """Trains an adapter on each of the documents, as absorb() does, up to `together` at once over
    one base: each step goes through the frozen weights once for all of them.

    documents    what absorb() takes, in any number; they are asked for one after the other, as
                 places become free
    together     None: as worth_together() says
    config       as absorb()'s, for all of them. `keep` and `qa_first` are for one document, and the
                 base is neither in FP8 nor quantised
    titles, qa, resume   absorb()'s title, qa and resume of each document. A state that absorb()
                 saved goes on here, and the other way round
    on_memory    gets the number of a document in `documents` and its memory as soon as it is there.
                 Without it the memories are returned, in the order of the documents
    on_failure   gets the number of a document that could not be absorbed, and why; the others go
                 on. Without it the first such error ends the run

    Each document is trained as by absorb() with the same settings, up to rounding: it has its own
    order, normalisers, rates, clipping and beginning. When one ends, the next takes its place.
    `training.seconds` of a memory is the time that it stood in the batch. The model is left as it
    was. Raises UsageError for settings that do not fit, and what absorb() raises for the model.
    """
    count = len(documents) if isinstance(documents, (list, tuple)) else None
    kept: dict[int, Memory] = {}
    absorb_given(
        *(model, tokenizer, _each(documents, titles, qa, resume), config),
        together=together,
        init=init,
        on_memory=on_memory or kept.__setitem__,
        on_failure=on_failure,
        progress=progress,
        count=count,
    )
    return [kept[number] for number in sorted(kept)]


@dataclass(frozen=True)
class Given:
    """A document, and what absorb() takes for it alone."""

    document: str | Path | Sequence[int] | Document
    title: str | None = None
    qa: Any = None
    resume: str | Path | None = None


def absorb_given(
    model: nn.Module,
    tokenizer: Tokenizer,
    documents: Iterable[Given],
    config: LiftConfig | None = None,
    *,
    together: int | None = None,
    init: str | Path | None = None,
    on_memory: Callable[[int, Memory], None],
    on_failure: Callable[[int, LiftError], None] | None = None,
    on_step: Callable[[Callable[[], dict[int, tuple[int, float]]]], None] | None = None,
    progress: bool = True,
    count: int | None = None,
) -> None:
    """absorb_many() for documents that bring their own arguments; `count` of them, where that is
    known. `on_step` hears of each step, and gets what tells of each document in the batch its
    token-passes of this run, and the share of its training that is over."""
    if together is not None and together < 1:
        raise UsageError(f"together must be at least 1: {together}")
    config = prepare.with_layers_of(model, prepare.settled(config, tokenizer, init), init)
    if why := why_alone(model, config):
        raise UsageError(f"{why}: take absorb()")
    together = together or worth_together(model, config)
    if count is not None:
        together = max(1, min(together, count))
    with alone_with(model), own_adapter_after(model):
        with without_adapter(model):
            slots = Adapter.of(model, config, slots=together)
        line = ProgressLine(1, slots.values.device, enabled=progress)
        run = _Run(model, tokenizer, config, init, line, on_memory, on_failure, count)
        with line:
            learners = run.learners(documents)
            window, prefix = models.window(model), len(models.prefix_ids(tokenizer))
            source = TogetherSource(slots, learners, config, window, prefix=prefix, count=count)

            def going() -> dict[int, tuple[int, float]]:
                active = (each for each in source.active if isinstance(each, _Document))
                return {each.number: each.going for each in active}

            def heard(at: Progress) -> None:
                line.update(at)
                if on_step is not None:
                    on_step(going)

            try:
                source.fill()
                if not source.finished:
                    slots.install()
                    train(slots, source, on_step=heard, say=run.say)
            finally:
                source.close()


def why_alone(model: nn.Module, config: LiftConfig) -> str:
    """Why documents cannot be trained together with these settings; "" where they can."""
    if config.keep is not None or config.qa_first:
        return "keep and qa_first are settings of one document"
    kind = base.dtype_of(model) if config.base_dtype == "model" else config.base_dtype
    return "" if kind == "model" else f"documents are not trained together over a base in {kind}"


def worth_together(model: nn.Module, config: LiftConfig) -> int:
    """How many documents should share a step of absorb_many(): as many as fill it, and as fit into
    the free memory with their optimizers. 1 where the steps of one document are full already, and
    where documents cannot be trained together."""
    if why_alone(model, config):
        return 1
    wanted = max(1, ENOUGH // config.target_tokens)
    device = next(model.parameters()).device
    layers = lora_layers(model, config).values()
    of_a, of_b = (config.rank * sum(features(m)[side] for m in layers) for side in (0, 1))
    trained, size = of_b + of_a * config.train_a, next(model.parameters()).element_size()
    # fp32 masters and gradients, two moments; values and gradients, here and in its own adapter.
    each = trained * (16 + 4 * size) + 2 * size * of_a * (not config.train_a)
    free = free_bytes(device)
    return wanted if free is None else max(1, min(wanted, int(SHARE * free / each)))


def _each(documents: Iterable[Any], *beside: Iterable[Any] | None) -> Iterator[Given]:
    """Each document with its title, its questions and where its run goes on."""
    own: list[Iterator[Any]] = [repeat(None) if each is None else iter(each) for each in beside]
    over: Any = object()
    for document in documents:
        given = [next(each, over) for each in own]
        if any(each is over for each in given):
            raise UsageError("titles, qa and resume need an entry for each document")
        yield Given(document, *given)


class _Run:
    """The documents of a run: how one begins, and what becomes of it."""

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Tokenizer,
        config: LiftConfig,
        init: str | Path | None,
        line: ProgressLine,
        on_memory: Callable[[int, Memory], None],
        on_failure: Callable[[int, LiftError], None] | None,
        count: int | None,
    ) -> None:
        self.model, self.tokenizer, self.config, self.init = model, tokenizer, config, init
        self.line, self.on_memory, self.on_failure = line, on_memory, on_failure
        self.count, self.over, self.how = count, 0, ""
        self.start = prepare.start_sha256(init)
        self.first: prepare.Prepared | None = None  # what it knows of the model serves all others

    def learners(self, documents: Iterable[Given]) -> Iterator[Learner]:
        """The documents that can begin, each made when it is asked for."""
        for number, given in enumerate(documents):
            try:
                learner = self._learner(number, given)
            except LiftError as error:
                self.failed(number, error)
                continue
            yield learner

    def _learner(self, number: int, given: Given) -> Learner:
        config, questions = prepare.asked(self.config, given.qa)
        document, config = prepare.read(
            self.model, self.tokenizer, given.document, given.title, config
        )
        models.check_tokens(self.model, document.tokens)
        file = None if given.resume is None else Path(given.resume) / output.STATE
        with own_adapter_after(self.model), without_adapter(self.model):
            adapter = prepare.first_adapter(self.model, config, self.init)
            adapter.install()
            which = prepare.identity(self.model, document, config, questions, self.start)
            made = prepare.prepare(
                *(self.model, self.tokenizer, document, adapter, config, questions, self.line),
                resume=given.resume,
                fresh=self.init is None,
                like=self.first,
            )
        self.first = self.first or made
        learner = _Document(self, number, document, adapter, made, file, which)
        if file is not None and file.exists():
            learner.go_on(file)
        return learner

    def say(self, text: str) -> None:
        self.how = text
        self.line.say(text)

    def failed(self, number: int, error: LiftError) -> None:
        self._done()
        if self.on_failure is None:
            raise error
        self.on_failure(number, error)

    def ended(self, number: int, memory: Memory) -> None:
        self._done()
        self.on_memory(number, memory)

    def _done(self) -> None:
        self.over += 1
        if self.count is not None:
            self.line.count("documents", self.over, self.count)


class _Document(Learner):
    """A document on its way through the batch."""

    def __init__(
        self,
        run: _Run,
        number: int,
        document: Document,
        adapter: Adapter,
        made: prepare.Prepared,
        file: Path | None,
        which: dict[str, str],
    ) -> None:
        super().__init__(adapter, made.steps)
        self.run, self.number, self.document, self.made = run, number, document, made
        self.file, self.which = file, which  # of its saved state, and what tells it from others
        self.started, self.seconds_before = time.perf_counter(), 0.0
        self.starting = made.starting
        self.tokens_before = 0  # token-passes of the runs before

    @property
    def seconds(self) -> float:
        return self.seconds_before + time.perf_counter() - self.started

    @property
    def going(self) -> tuple[int, float]:
        """Token-passes of this run, and the share of the training that is over."""
        done = sum(self.tokens)
        return done - self.tokens_before, done / max(1.0, done + self.source.left())

    def go_on(self, file: Path) -> None:
        """Takes back what save(), or an absorb(), has written."""
        state, at = checkpoint.read(file, self.which)
        try:
            checkpoint.check_log(state, at)
            check(state, self.adapter.values)
            if not self.adapter.train_a:
                self.adapter.load_frozen(state["frozen"])
            self.source.restore(checkpoint.source_of(state))
            with torch.no_grad():
                self.adapter.values.copy_(state["master"])
            self.epochs, self.tokens = state["log"].tolist()
            self.tokens_before = sum(self.tokens)
        except (LookupError, TypeError, ValueError, RuntimeError) as error:
            raise checkpoint.damaged(file) from error
        self.losses = list(state["losses"].to(self.adapter.values.device))
        self.optimizer, self.seconds_before, self.starting = state, at.seconds, at.starting

    def save(self, runner: dict[str, Tensor], plan: MemoryPlan) -> None:
        if self.file is None:
            return
        losses, source = torch.stack(self.losses), self.source.state()
        state = checkpoint.whole(runner, losses, self.epochs, self.tokens, source)
        at = Position(
            *(len(self.losses), self.seconds, plan.micro_batch, plan.recompute),
            starting=self.starting,
        )
        checkpoint.save(self.file, state, at, self.which)

    def ended(self) -> None:
        run, source, made = self.run, self.source, self.made
        result = Result(
            seconds=self.seconds,
            steps=source.done_steps,
            token_passes=source.trained,
            **told_by(torch.stack(self.losses), self.epochs),
            how=run.how,
            making=source.seconds,
            starting=self.starting,
            start=run.start,
        )
        with own_adapter_after(run.model):
            self.adapter.install()
            whole = run.model, run.tokenizer, self.document, self.adapter
            measured = prepare.measure(*whole, made.forgetting)
            memory = prepare.memory_of(
                *whole, made.config, measured, made.noted(result), made.asked
            )
        with without_adapter(run.model):
            run.ended(self.number, memory)

    def failed(self, error: LiftError) -> None:
        self.run.failed(self.number, error)
