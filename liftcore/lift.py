"""absorb: a document in, a memory out."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Generator, Sequence
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from liftcore import adapter as adapters
from liftcore import answer, beginning, output, report
from liftcore import document as documents
from liftcore import model as models
from liftcore.adapter import alone_with
from liftcore.config import LiftConfig, preset_for
from liftcore.document import Document
from liftcore.errors import LiftError, NothingToLearnError, UsageError
from liftcore.layers import base, depth, sharded
from liftcore.layers.lora import Adapter, own_adapter_after, without_adapter
from liftcore.memory import Memory
from liftcore.objectives import Repeated
from liftcore.objectives.build import SELF, digest_of, objectives_of, pair_sources, summary
from liftcore.objectives.forgetting import Forgetting
from liftcore.objectives.qa import Paired
from liftcore.questions import own_words
from liftcore.questions.own_words import Collection
from liftcore.questions.pairs import Pair, PairSource
from liftcore.questions.self_study import SelfStudy, StudiedPairs
from liftcore.report import Report
from liftcore.tokens import Tokenizer
from liftcore.training import checkpoint, parallel
from liftcore.training.budget import Budget
from liftcore.training.loop import Progress, Result, both, train
from liftcore.training.progress import ProgressLine
from liftcore.training.source import StepSource

# γ of replay where a forgetting budget brings it in.
REPLAY_WEIGHT = 2.0


def absorb(
    model: nn.Module,
    tokenizer: Tokenizer,
    document: str | Path | Sequence[int] | Document,
    *,
    title: str | None = None,
    config: LiftConfig | None = None,
    resume: str | Path | None = None,
    progress: bool = True,
    qa: Any = None,
    init: str | Path | None = None,
    on_step: Callable[[Progress], None] | None = None,
) -> Memory:
    """Trains a LoRA adapter on the document (LIFT) and measures what it recalls.

    document   text, the path of a file (liftcore.reading), token ids, or a Document read before
    title      how questions name the document; the file's name by default
    config     settings; None: the preset understand for a chat model, which is then trained on
               questions too, and memorize for any other (config.preset_for), with the rank and
               alpha of `init`
    resume     folder for the state of an unfinished run: written every 20 seconds, and
               continued from when it is there; on a CPU the result is bit for bit the same
    progress   a line on stderr that goes on; where that is no terminal, a plain one now and then
    qa         question-answer pairs to train on: a JSONL file (keys question and answer), pairs,
               a source of pairs that arrive while training runs (liftcore.questions.pairs), or
               "self" for those that the model makes of the document, the default of "qa".
               With them the objective "qa" joins those of the settings, unless they go to
               "distill"
    init       an adapter's folder to begin from, as sft, absorb or PEFT wrote it
    on_step    hears of each step, as liftcore.training.metrics does

    In a process group of torch.distributed (torchrun, accelerate launch) all of it train on this
    document together; rank 0 measures, writes and prints, and every rank gets the memory. The
    model is left with the adapter installed. Raises LiftError (see liftcore.errors) when the
    document cannot be read, the model cannot be trained, or the loss is no longer a number.
    """
    if config is None:
        config = LiftConfig.preset(preset_for(tokenizer), **adapters.settings_of(init))
    if qa is not None:
        config = _with_questions(config)
    elif "qa" in config.objectives:
        qa = SELF
    config = _with_replay(config)
    given = [] if qa is None else pair_sources(qa)
    document = documents.read(document, tokenizer, title)
    prefix = models.prefix_ids(tokenizer)
    if min(config.segment_length, len(document.tokens)) + len(prefix) > models.window(model):
        raise UsageError(
            f"segment_length {config.segment_length} does not fit the model's window of "
            f"{models.window(model)} tokens"
        )
    with alone_with(model), own_adapter_after(model, on_failure=True):
        sharded.check(model, config)
        # Before the first forward.
        base.apply(model, config)
        models.head(model)
        models.check_tokens(model, document.tokens)
        adapter = _beginning(model, config, init)
        adapter.install()
        # What comes behind the training is tried before it.
        report.try_measuring(model, document.tokens, prefix=prefix)
        _try_asking(tokenizer, document.title)
        ranks = parallel.current(model)
        state_file = Path(resume) / output.STATE if resume is not None and ranks.first else None
        enabled = progress and ranks.first
        line = ProgressLine(config.epochs, adapter.values.device, enabled=enabled)
        run = {
            **checkpoint.identity(config, document.sha256, model),
            "title": document.title,
            "questions": digest_of(given),
            "start": "" if init is None else adapters.file_sha256(Path(init) / adapters.WEIGHTS),
        }
        same = ("document", "model", "weights", "dtype", "layout")
        ranks.same({**{name: run[name] for name in same}, "size of LoRA": str(len(adapter.values))})
        with line:
            made = None
            with ranks.together():
                if ranks.first:
                    whole = model, tokenizer, document, adapter, config
                    made = _made(*whole, given, line, resume, fresh=init is None)
            sources = made.sources if made is not None else []
            with closing(made.steps) if made else nullcontext(), _why_nothing(sources):
                result = train(
                    adapter,
                    made.steps if made else None,
                    ranks=ranks,
                    state_file=state_file,
                    run=run,
                    budget=_budget(adapter, made) if made else None,
                    on_step=line.update if on_step is None else both(line.update, on_step),
                    say=line.say,
                )
            result = replace(result, start=run["start"])
            measured = report.unmeasured(len(document.tokens))
            with ranks.together():
                if made is not None:
                    config, result = made.config, made.noted(result)
                line.say("measuring recall")
                if ranks.measures:
                    forgetting = None if made is None else made.forgetting
                    measured = _measured(model, tokenizer, document, adapter, forgetting)
            asked = made.asked if made is not None else []
            result, measured, config, asked = ranks.tell((result, measured, config, asked))
            return Memory(
                model=model,
                tokenizer=tokenizer,
                adapter=adapter,
                **_about(document),
                config=config,
                report=measured,
                training=result,
                rank=ranks.rank,
                questions=asked,
            )


@dataclass(frozen=True)
class _Made:
    """What a run trains on, and what it is measured by."""

    config: LiftConfig
    sources: list[PairSource]
    steps: StepSource
    forgetting: Forgetting | None
    own: Collection  # the model's own words
    starting: float  # that fitting the adapter to the document took

    @property
    def asked(self) -> list[Pair]:
        """The question-answer pairs that were trained on."""
        objectives = self.steps.objectives
        return next((each.pairs for each in objectives if isinstance(each, Paired)), [])

    def noted(self, result: Result) -> Result:
        """The result of the training with what came before it."""
        made = [summary(each) for each in self.sources]
        return replace(result, questions=made, own_words=self.own.seconds, starting=self.starting)


def _made(
    model: nn.Module,
    tokenizer: Tokenizer,
    document: Document,
    adapter: Adapter,
    config: LiftConfig,
    given: Sequence[PairSource | str],
    line: ProgressLine,
    resume: str | Path | None,
    fresh: bool,
    like: _Made | None = None,
) -> _Made:
    """Has a `fresh` adapter begin, unless its run goes on, and makes the samples that are made
    before the training. `like`: of another document with this model and settings, whose knowledge
    of the model is taken over."""
    # Where what is made once is kept: questions of the model's own, a teacher's targets.
    keeps = resume is not None and config.objectives != ("segments",)
    cache = output.make_samples(Path(resume)) if keeps else None
    study = partial(_studied, model, tokenizer, document, config, cache, line.count)
    sources: list[PairSource] = [study() if isinstance(each, str) else each for each in given]
    # A run that goes on has its A in the saved state.
    resumed = resume is not None and (Path(resume) / output.STATE).exists()
    begins = config.adapter_init == "document" and fresh and not resumed
    if like is not None:
        own, begins = replace(like.own, seconds=0.0), begins and bool(like.own.rows)
        if not own.rows and "replay" in config.objectives:
            config = _without_replay(config)
    elif "replay" in config.objectives or begins:
        count = config.replay_rows if "replay" in config.objectives else beginning.ROWS
        own = _own_words(model, tokenizer, count, line.count)
        if not own.rows:
            config, begins = _without_replay(config), False
    else:
        held_out = [] if sharded.is_sharded(model) else own_words.held_out(model, tokenizer)
        own = Collection([], held_out, 0.0)
    starting = 0.0
    if begins:
        line.say("fitting the adapter to the document")
        tokens = [document.tokens]
        starting = beginning.begin(adapter, tokenizer, tokens, config, own=own.rows)
    forgetting = like.forgetting if like is not None else _forgetting(model, own)
    objectives = objectives_of(model, tokenizer, document, config, sources, cache, own.rows)
    window, prefix = models.window(model), len(models.prefix_ids(tokenizer))
    steps = StepSource(objectives, config, window, weights=config.weights, prefix=prefix)
    return _Made(config, sources, steps, forgetting, own, starting)


def _forgetting(model: nn.Module, own: Collection) -> Forgetting | None:
    return Forgetting(model, own.held_out) if own.held_out else None


def _memory(
    model: nn.Module,
    tokenizer: Tokenizer,
    document: Document,
    adapter: Adapter,
    made: _Made,
    result: Result,
) -> Memory:
    """The memory of a run that is over, its adapter installed, with what it recalls."""
    return Memory(
        model=model,
        tokenizer=tokenizer,
        adapter=adapter,
        **_about(document),
        config=made.config,
        report=_measured(model, tokenizer, document, adapter, made.forgetting),
        training=made.noted(result),
        questions=made.asked,
    )


def _about(document: Document) -> dict[str, Any]:
    """What a memory keeps of its document."""
    return {
        "title": document.title,
        "text": document.text,
        "sha256": document.sha256,
        "length": len(document.tokens),
        "source": document.source,
    }


def _measured(
    model: nn.Module,
    tokenizer: Tokenizer,
    document: Document,
    adapter: Adapter,
    forgetting: Forgetting | None,
) -> Report:
    measured = report.unmeasured(len(document.tokens))
    with output.or_warning("the report on recall"), adapter.folded():
        measured = report.measure(model, document.tokens, prefix=models.prefix_ids(tokenizer))
        if forgetting is not None:
            measured = replace(measured, forgotten=round(forgetting.rise(), 4))
    return replace(measured, base_dtype=base.dtype_of(model))


def _try_asking(tokenizer: Tokenizer, title: str) -> None:
    """Warns when no question can be put: the chat template may be broken."""
    try:
        answer.question_ids(tokenizer, title, "", "Who?")
    except Exception as error:
        why = " ".join(str(error).split()) or type(error).__name__
        warnings.warn(f"this memory will complete text and answer no question: {why}", stacklevel=3)


@contextmanager
def _why_nothing(sources: Sequence[PairSource]) -> Generator[None]:
    """A run without a sample says what its sources of questions met with."""
    try:
        yield
    except NothingToLearnError as error:
        met = [
            getattr(s, "stopped", "") or ", ".join([*s.failures, *(+s.rejected)]) for s in sources
        ]
        raise LiftError("; ".join([str(error), *filter(None, met)])) from error


def _own_words(
    model: nn.Module, tokenizer: Tokenizer, count: int, say: Callable[[str, int, int], None]
) -> Collection:
    """Rows of the model's own words; none, with a warning, where it writes too few."""
    try:
        return own_words.collect(model, tokenizer, count, say=say)
    except LiftError as error:
        warnings.warn(f"{error}: more of what the model knew is lost", stacklevel=3)
        return Collection([], [], 0.0)


def _without_replay(config: LiftConfig) -> LiftConfig:
    kept = [i for i, name in enumerate(config.objectives) if name != "replay"]
    if not kept:
        raise LiftError("nothing is left to train on without the model's own words")
    names, mix = (tuple(x[i] for i in kept) for x in (config.objectives, config.weights))
    return config.replace(objectives=names, mix=mix)


def _with_questions(config: LiftConfig) -> LiftConfig:
    if {"qa", "distill"} & set(config.objectives):
        return config
    mix = None if config.mix is None else (*config.mix, 1.0)
    return config.replace(objectives=(*config.objectives, "qa"), mix=mix)


def _with_replay(config: LiftConfig) -> LiftConfig:
    """The settings with the objective replay where a forgetting budget needs it."""
    if config.keep is None or "replay" in config.objectives:
        return config
    return config.replace(
        objectives=(*config.objectives, "replay"), mix=(*config.weights, REPLAY_WEIGHT)
    )


def _budget(adapter: Adapter, made: _Made) -> Budget | None:
    if made.config.keep is None or made.forgetting is None:
        return None
    replays = [each for each in made.steps.objectives if isinstance(each, Repeated)]
    return Budget(adapter, made.config.keep, made.forgetting.rise, replays)


def _studied(
    model: nn.Module,
    tokenizer: Tokenizer,
    document: Document,
    config: LiftConfig,
    cache: Path | None,
    count: Callable[[str, int, int], None],
) -> StudiedPairs:
    study = SelfStudy(
        model,
        tokenizer,
        document.text,
        without_adapter=partial(without_adapter, model),
        kinds=config.qa_kinds,
    )
    key = f"{adapters.base_name(model)} {config.seed} {config.qa_kinds} {document.sha256}"
    return StudiedPairs(study, key, cache, count, needed="segments" not in config.objectives)


def _beginning(model: nn.Module, config: LiftConfig, init: str | Path | None) -> Adapter:
    """The adapter that training begins from, not yet installed."""
    if init is None:
        return Adapter.of(model, config)
    adapter = adapters.read(model, Path(init), train_a=config.train_a)
    base = adapters.read_json(Path(init) / adapters.CONFIG).get("base_model_name_or_path")
    if base != adapters.base_name(model):
        raise LiftError(
            f"the adapter in {init} belongs to {base}, not to {adapters.base_name(model)}"
        )
    if (adapter.rank, adapter.alpha) != (config.rank, config.lora_alpha):
        raise UsageError(
            f"the adapter in {init} has rank {adapter.rank} and alpha {adapter.alpha:g}, the "
            f"settings {config.rank} and {config.lora_alpha:g}: set rank and alpha to the former"
        )
    every = len(depth.decoder_layers(model))
    if list(adapter.numbers or range(every)) != list(depth.among(every, config.layers)):
        named = "all" if adapter.numbers is None else ", ".join(map(str, adapter.numbers))
        raise UsageError(
            f"the adapter in {init} has LoRA on other layers than the settings: {named}"
        )
    return adapter
