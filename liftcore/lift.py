"""absorb: a document in, a memory out."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Generator, Sequence
from contextlib import closing, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from liftcore import answer, output, prepare, report
from liftcore import model as models
from liftcore.adapter import alone_with
from liftcore.config import LiftConfig
from liftcore.document import Document
from liftcore.errors import LiftError, NothingToLearnError
from liftcore.layers import base, sharded
from liftcore.layers.lora import own_adapter_after
from liftcore.memory import Memory
from liftcore.questions.pairs import PairSource
from liftcore.tokens import Tokenizer
from liftcore.training import parallel
from liftcore.training.budget import LEAST_RISE
from liftcore.training.log import Progress
from liftcore.training.loop import both, train
from liftcore.training.progress import ProgressLine

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
               questions too, and memorize for any other (presets.preset_for), with the rank and
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
    config = prepare.with_layers_of(model, prepare.settled(config, tokenizer, init), init)
    config, given = prepare.asked(config, qa)
    config = _with_replay(config)
    document, config = prepare.read(model, tokenizer, document, title, config)
    with alone_with(model), own_adapter_after(model, on_failure=True):
        sharded.check(model, config)
        # Before the first forward.
        base.apply(model, config)
        models.head(model)
        models.check_tokens(model, document.tokens)
        adapter = prepare.first_adapter(model, config, init)
        adapter.install()
        # What comes behind the training is tried before it.
        report.try_measuring(model, document.tokens, prefix=models.prefix_ids(tokenizer))
        _try_asking(tokenizer, document.title)
        ranks = parallel.current(model)
        state_file = Path(resume) / output.STATE if resume is not None and ranks.first else None
        enabled = progress and ranks.first
        line = ProgressLine(config.epochs, adapter.values.device, enabled=enabled)
        run = prepare.identity(model, document, config, given, prepare.start_sha256(init))
        same = ("document", "model", "weights", "dtype", "layout")
        ranks.same({**{name: run[name] for name in same}, "size of LoRA": str(len(adapter.values))})
        with line:
            whole, made = (model, tokenizer, document, adapter), None
            with ranks.together():
                if ranks.first:
                    made = prepare.prepare(*whole, config, given, line, resume, fresh=init is None)
            sources = made.sources if made is not None else []
            with closing(made.steps) if made else nullcontext(), _why_nothing(sources):
                result = train(
                    adapter,
                    made.steps if made else None,
                    ranks=ranks,
                    state_file=state_file,
                    run=run,
                    budget=made.budget(adapter) if made else None,
                    starting=made.starting if made else 0.0,
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
                    measured = prepare.measure(*whole, forgetting)
            asked = made.asked if made is not None else []
            result, measured, config, asked = ranks.tell((result, measured, config, asked))
            return prepare.memory_of(*whole, config, measured, result, asked, ranks.rank)


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


def _with_replay(config: LiftConfig) -> LiftConfig:
    """The settings with the objective replay where a forgetting budget needs it."""
    if config.keep is None or "replay" in config.objectives:
        return config
    share = LEAST_RISE if config.replay_share is None else config.replay_share
    names, mix = (*config.objectives, "replay"), (*config.weights, REPLAY_WEIGHT)
    return config.replace(objectives=names, mix=mix, replay_share=share)
