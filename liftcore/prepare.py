"""What absorb and absorb_many share: how a document's run begins, and what becomes of it."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from liftcore import adapter as adapters
from liftcore import beginning, output, report
from liftcore import document as documents
from liftcore import model as models
from liftcore.config import LiftConfig
from liftcore.document import Document
from liftcore.errors import LiftError, UsageError
from liftcore.layers import base, depth, sharded
from liftcore.layers.lora import Adapter, lora_layers, without_adapter
from liftcore.layers.targets import EXCLUDED
from liftcore.memory import Memory
from liftcore.objectives.build import SELF, digest_of, objectives_of, pair_sources, summary
from liftcore.objectives.forgetting import Forgetting
from liftcore.objectives.qa import Paired
from liftcore.presets import DOWN, preset_for
from liftcore.questions import own_words
from liftcore.questions.own_words import Collection
from liftcore.questions.pairs import Pair, PairSource
from liftcore.questions.self_study import SelfStudy
from liftcore.questions.studied import StudiedPairs
from liftcore.report import Report
from liftcore.tokens import Tokenizer
from liftcore.training import checkpoint
from liftcore.training.budget import Budget
from liftcore.training.length import for_length
from liftcore.training.log import Result
from liftcore.training.progress import ProgressLine
from liftcore.training.source import StepSource


def settled(config: LiftConfig | None, tokenizer: Tokenizer, init: str | Path | None) -> LiftConfig:
    """The settings; without any those of the model's preset, with the shape of the adapter in
    `init`."""
    if config is None:
        return LiftConfig.preset(preset_for(tokenizer), **adapters.settings_of(init))
    return config


def asked(config: LiftConfig, qa: Any) -> tuple[LiftConfig, list[PairSource | str]]:
    """The settings with an objective for the questions of absorb()'s `qa`, and their sources; the
    model makes its own where the settings ask for questions and there are none."""
    if qa is not None:
        config = with_questions(config)
    elif "qa" in config.objectives:
        qa = SELF
    return config, [] if qa is None else pair_sources(qa)


def with_questions(config: LiftConfig) -> LiftConfig:
    if {"qa", "distill"} & set(config.objectives):
        return config
    mix = None if config.mix is None else (*config.mix, 1.0)
    return config.replace(objectives=(*config.objectives, "qa"), mix=mix)


def read(
    model: nn.Module,
    tokenizer: Tokenizer,
    document: str | Path | Sequence[int] | Document,
    title: str | None,
    config: LiftConfig,
) -> tuple[Document, LiftConfig]:
    """The document, and the settings for its length. Raises UsageError when its segments do not
    fit the model's window."""
    document = documents.read(document, tokenizer, title)
    prefix, window = models.prefix_ids(tokenizer), models.window(model)
    if min(config.segment_length, len(document.tokens)) + len(prefix) > window:
        raise UsageError(
            f"segment_length {config.segment_length} does not fit the model's window of {window} "
            "tokens"
        )
    return document, for_length(config, len(document.tokens))


def first_adapter(model: nn.Module, config: LiftConfig, init: str | Path | None) -> Adapter:
    """The adapter that training begins from, not yet installed."""
    if init is None:
        adapter = Adapter.of(model, config)
        mistaken = EXCLUDED not in adapter.targets.left.values()
        if mistaken and config.exclude_modules not in ((), DOWN):
            names = ", ".join(config.exclude_modules)
            raise UsageError(f"exclude_modules names no linear layer of the model: {names}")
        return adapter
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
    wanted = depth.numbers(model, config.layers)
    if adapter.layers.keys() != lora_layers(model, config).keys():
        raise UsageError(
            f"the adapter in {init} has LoRA on {_placed(adapter.numbers, adapter.exclude)}, the "
            f"settings on {_placed(wanted, config.exclude_modules)}: set layers and "
            "exclude_modules to the former"
        )
    return adapter


def _placed(numbers: Sequence[int] | None, exclude: Sequence[str]) -> str:
    every = numbers is None
    which = "all layers" if every else f"layers {', '.join(map(str, numbers))}"
    return f"{which} without {', '.join(exclude)}" if exclude else which


def with_layers_of(model: nn.Module, config: LiftConfig, init: str | Path | None) -> LiftConfig:
    """The settings with what the adapter in `init` leaves out, where they leave out nothing."""
    if init is None or config.exclude_modules:
        return config
    return config.replace(exclude_modules=adapters.left_out(model, init))


def identity(
    model: nn.Module,
    document: Document,
    config: LiftConfig,
    given: Sequence[PairSource | str],
    start: str,
) -> dict[str, str]:
    """What must be the same for the run of a document to go on, with its adapter installed."""
    return {
        **checkpoint.identity(config, document.sha256, model),
        "title": document.title,
        "questions": digest_of(given),
        "start": start,
    }


def start_sha256(init: str | Path | None) -> str:
    """What Result.start says of the adapter that a run begins from."""
    return "" if init is None else adapters.file_sha256(Path(init) / adapters.WEIGHTS)


@dataclass(frozen=True)
class Prepared:
    """What a run trains on, and what it is measured by."""

    config: LiftConfig
    sources: list[PairSource]
    steps: StepSource
    forgetting: Forgetting | None
    own: Collection  # the model's own words
    starting: float  # that fitting the adapter to the document took

    def budget(self, adapter: Adapter) -> Budget | None:
        """The forgetting budget of the settings."""
        return Budget.of(adapter, self.config.keep, self.forgetting, self.steps.objectives)

    @property
    def asked(self) -> list[Pair]:
        """The question-answer pairs that were trained on."""
        objectives = self.steps.objectives
        return next((each.pairs for each in objectives if isinstance(each, Paired)), [])

    def noted(self, result: Result) -> Result:
        """The result of the training with what came before it."""
        made = [summary(each) for each in self.sources]
        return replace(result, questions=made, own_words=self.own.seconds)


def prepare(
    model: nn.Module,
    tokenizer: Tokenizer,
    document: Document,
    adapter: Adapter,
    config: LiftConfig,
    given: Sequence[PairSource | str],
    line: ProgressLine,
    resume: str | Path | None,
    fresh: bool,
    like: Prepared | None = None,
) -> Prepared:
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
        own = replace(like.own, seconds=0.0)
        if not own.rows and "replay" in config.objectives:
            config = _without_replay(config)
    elif "replay" in config.objectives or begins:
        count = config.replay_rows if "replay" in config.objectives else beginning.ROWS
        own = _own_words(model, tokenizer, count, line.count)
        if not own.rows:
            if config.keep is not None:
                raise LiftError("keep measures on the model's own words, and there are too few")
            config = _without_replay(config)
    else:
        held_out = [] if sharded.is_sharded(model) else own_words.held_out(model, tokenizer)
        own = Collection([], held_out, 0.0)
    starting = 0.0
    if begins:
        line.say("fitting the adapter to the document")
        tokens = [document.tokens]
        own_rows = own.rows[: beginning.ROWS]
        starting = beginning.begin(adapter, tokenizer, tokens, config, own=own_rows)
    if like is not None:
        forgetting = like.forgetting
    else:
        forgetting = Forgetting(model, own.held_out) if own.held_out else None
    objectives = objectives_of(model, tokenizer, document, config, sources, cache, own.rows)
    window, prefix = models.window(model), len(models.prefix_ids(tokenizer))
    steps = StepSource(objectives, config, window, weights=config.weights, prefix=prefix)
    return Prepared(config, sources, steps, forgetting, own, starting)


def measure(
    model: nn.Module,
    tokenizer: Tokenizer,
    document: Document,
    adapter: Adapter,
    forgetting: Forgetting | None,
) -> Report:
    """What the installed adapter recalls and, where it is known, what was forgotten."""
    measured = report.unmeasured(len(document.tokens))
    with output.or_warning("the report on recall"), adapter.folded():
        measured = report.measure(model, document.tokens, prefix=models.prefix_ids(tokenizer))
        if forgetting is not None:
            measured = replace(measured, forgotten=round(forgetting.rise(), 4))
    return replace(measured, base_dtype=base.dtype_of(model))


def memory_of(
    model: nn.Module,
    tokenizer: Tokenizer,
    document: Document,
    adapter: Adapter,
    config: LiftConfig,
    measured: Report,
    result: Result,
    questions: list[Pair],
    rank: int = 0,
) -> Memory:
    """The memory of a run that is over. questions: those that were trained on."""
    return Memory(
        model=model,
        tokenizer=tokenizer,
        adapter=adapter,
        title=document.title,
        text=document.text,
        sha256=document.sha256,
        length=len(document.tokens),
        source=document.source,
        config=config,
        report=measured,
        training=result,
        rank=rank,
        questions=questions,
    )


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
