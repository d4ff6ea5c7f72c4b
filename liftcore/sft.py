"""sft: a starting adapter from many documents with questions (LIFT, equation 6)."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from liftcore import adapter as adapters
from liftcore import beginning, output
from liftcore import document as documents
from liftcore import model as models
from liftcore.adapter import alone_with
from liftcore.config import LiftConfig
from liftcore.errors import LiftError, UsageError
from liftcore.layers import base, sharded
from liftcore.layers.lora import Adapter, own_adapter_after
from liftcore.objectives.build import objectives_of
from liftcore.output import START as INFO
from liftcore.presets import preset_for
from liftcore.questions.pairs import GivenPairs, read_pairs
from liftcore.reading import SUFFIXES
from liftcore.tokens import Tokenizer
from liftcore.training import parallel
from liftcore.training.log import Progress, Result
from liftcore.training.loop import both, train
from liftcore.training.progress import ProgressLine
from liftcore.training.source import StepSource

# Many documents have no directions of their own: plain LoRA on all layers.
DEFAULTS: dict[str, Any] = dict(
    **dict(objectives=("segments", "qa"), epochs=3, rank=16, learning_rate=2e-3, beta2=0.999),
    **dict(adapter_init="random", train_a=True, layers=None, exclude_modules=()),
)
# What looks like a part of a corpus, and is none.
OTHER_TEXTS = {".markdown", ".text", ".tex", ".json", ".rtf", ".odt", ".doc", ".ppt"}


@dataclasses.dataclass
class Start:
    """What sft() gives: an adapter to begin from."""

    model: nn.Module
    adapter: Adapter
    config: LiftConfig
    training: Result
    documents: int
    pairs: int
    rank: int = 0  # of the process, where several trained it together

    def save(self, folder: str | Path) -> Path:
        """Writes the adapter in PEFT's form, and sft.json, all at once; files that liftcore did
        not write stay. Of several ranks rank 0 alone writes. Raises LiftError when it cannot, and
        names where the adapter is instead.
        """
        folder = Path(folder)
        if not self.rank:
            output.save(folder, self._write, force=True)
        return folder

    def _write(self, folder: Path) -> tuple[str, dict]:
        sha256 = adapters.write(self.adapter, folder)
        return INFO, {
            "base_model": adapters.base_name(self.model),
            "documents": self.documents,
            "pairs": self.pairs,
            "config": dataclasses.asdict(self.config),
            "training": dataclasses.asdict(self.training),
            "adapter_sha256": sha256,
        }


def sft(
    model: nn.Module,
    tokenizer: Tokenizer,
    corpus: str | Path,
    *,
    config: LiftConfig | None = None,
    progress: bool = True,
    on_step: Callable[[Progress], None] | None = None,
) -> Start:
    """Trains one LoRA adapter on a folder of documents: (1/N) Σ_n (L_input(n) + γ L_AT(n)).

    corpus     files of the kinds in liftcore.reading.SUFFIXES, each with or without a .jsonl of
               the same name that holds its question-answer pairs
    config     by default segments and questions, three epochs, on the preset for such a model
               (presets.preset_for); γ is config.mix

    The samples of all documents are shuffled together and share steps, whose loss is divided by
    one number an epoch: equation 6 but for a factor that AdamW does not see. The model is left as
    it was, but for the setting base_dtype. Raises LiftError for a folder without documents and for
    what cannot be read, UsageError for settings that do not fit. Warns of files that have no place
    in a corpus.
    """
    config = config or LiftConfig.preset(preset_for(tokenizer), **DEFAULTS)
    if not {"segments", "recitation", "qa"}.issuperset(config.objectives):
        raise UsageError("sft takes the objectives segments, recitation and qa")
    window = models.window(model)
    if config.segment_length + len(models.prefix_ids(tokenizer)) > window:
        raise UsageError(
            f"segment_length {config.segment_length} does not fit the model's window of {window} "
            "tokens"
        )
    objectives, weights, count = [], [], 0
    texts: list[np.ndarray] = []
    files = files_of(Path(corpus))
    for file, questions in files:
        try:
            document = documents.read(file, tokenizer)
        except LiftError as error:
            named = str(file) in str(error)
            raise LiftError(str(error) if named else f"{file}: {error}") from error
        pairs = read_pairs(questions) if questions else []
        count += len(pairs)
        texts.append(document.tokens)
        objectives += objectives_of(model, tokenizer, document, config, [GivenPairs(pairs)])
        weights += config.weights
    if "qa" in config.objectives and not count:
        raise LiftError(f"{corpus} holds no questions: one .jsonl beside each document")
    prefix = len(models.prefix_ids(tokenizer))
    source = StepSource(objectives, config, window, weights=weights, prefix=prefix)
    with alone_with(model), own_adapter_after(model):
        sharded.check(model, config)
        base.apply(model, config)
        adapter = Adapter.of(model, config)
        adapter.install()
        ranks = parallel.current(model)
        ranks.same({"documents": str([tokens.sum() for tokens in texts])})
        enabled = progress and ranks.first
        with ProgressLine(config.epochs, adapter.values.device, enabled=enabled) as line:
            starting = 0.0
            with ranks.together():
                if ranks.first:
                    starting = beginning.begin(adapter, tokenizer, texts, config, say=line.count)
            # Rank 0 draws the steps, and gives its adapter to the others.
            own = source if ranks.first else None
            heard = line.update if on_step is None else both(line.update, on_step)
            result = train(
                adapter, own, ranks=ranks, starting=starting, on_step=heard, say=line.say
            )
    return Start(model, adapter, config, result, len(files), count, ranks.rank)


def files_of(corpus: Path) -> list[tuple[Path, Path | None]]:
    """The documents of a folder, each with its questions or None, by name.

    Raises LiftError for a folder without texts. Warns of what looks like a part of the corpus and
    is left out.
    """
    try:
        entries = sorted(e for e in corpus.iterdir() if not e.name.startswith("."))
    except OSError as error:
        raise LiftError(f"{corpus} holds no documents: {error.strerror or error}") from error
    texts = [e for e in entries if e.suffix.lower() in SUFFIXES]
    questions = {e.stem: e for e in entries if e.suffix.lower() == ".jsonl"}
    if not texts:
        raise LiftError(f"{corpus} holds no documents: {', '.join(SUFFIXES)}")
    stems = {text.stem for text in texts}
    idle = [e.name for stem, e in questions.items() if stem not in stems]
    idle += [e.name for e in entries if e.suffix.lower() in OTHER_TEXTS]
    if idle:
        warnings.warn(f"left out of {corpus}: {', '.join(idle)}", stacklevel=2)
    return [(text, questions.get(text.stem)) for text in texts]
