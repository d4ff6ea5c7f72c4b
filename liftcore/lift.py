"""absorb: a document in, a memory out."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import contextmanager
from pathlib import Path

from torch import nn

from liftcore import checkpoint, report
from liftcore import document as documents
from liftcore import model as models
from liftcore.config import LiftConfig
from liftcore.document import Document
from liftcore.errors import UsageError
from liftcore.lora import Adapter
from liftcore.memory import Memory
from liftcore.progress import ProgressLine
from liftcore.train import train


def absorb(
    model: nn.Module,
    tokenizer,
    document: str | Path | Sequence[int] | Document,
    *,
    title: str | None = None,
    config: LiftConfig | None = None,
    resume: str | Path | None = None,
    progress: bool = True,
) -> Memory:
    """Trains a LoRA adapter on the document (LIFT) and measures what it recalls.

    document   text, the path of a UTF-8 text file, token ids, or a Document read before
    title      how questions name the document; the file's name by default
    config     settings; LiftConfig() is tuned for the embedded model
    resume     folder for the state of an unfinished run: written every 20 seconds, and
               continued from when it is there; on a CPU the result is bit for bit the same
    progress   a line on stderr, when that is a terminal

    The model is left with the adapter installed. Raises LiftError (see liftcore.errors) when the
    document cannot be read, the model cannot be trained, or the loss is no longer a number.
    """
    config = config or LiftConfig()
    source = documents.read(document, tokenizer, title)
    prefix = models.prefix_ids(tokenizer)
    if min(config.segment_length, len(source.tokens)) + len(prefix) > models.window(model):
        raise UsageError(
            f"segment_length {config.segment_length} does not fit the model's window of "
            f"{models.window(model)} tokens"
        )
    models.head(model)
    previous = getattr(model, "_liftcore_adapter", None)
    adapter = Adapter(model, config.rank, config.lora_alpha, config.seed)
    adapter.install()
    state_file = Path(resume) / checkpoint.FILE_NAME if resume is not None else None
    line = ProgressLine(config.epochs, adapter.values.device, enabled=progress)
    with line, _put_back_on_failure(adapter, previous):
        result = train(
            model,
            adapter,
            source.tokens,
            config,
            prefix=prefix,
            state_file=state_file,
            run=checkpoint.identity(config, source.sha256, model),
            on_step=line.update,
            say=line.say,
        )
        line.say("measuring recall")
        found = report.measure(model, source.tokens, prefix=prefix)
    return Memory(
        model=model,
        tokenizer=tokenizer,
        adapter=adapter,
        title=source.title,
        text=source.text,
        sha256=source.sha256,
        length=len(source.tokens),
        config=config,
        report=found,
        training=result,
    )


@contextmanager
def _put_back_on_failure(adapter: Adapter, previous: Adapter | None):
    """A run that fails must not leave a half-trained adapter in the caller's model."""
    try:
        yield
    except BaseException:
        adapter.remove()
        if previous is not None:
            previous.install()
        raise
