"""sft: a starting adapter from many documents with questions (LIFT, equation 6)."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from torch import nn

from liftcore import adapter as adapters
from liftcore import document as documents
from liftcore import model as models
from liftcore import output
from liftcore.config import LiftConfig
from liftcore.errors import LiftError, UsageError
from liftcore.exclusive import alone_with
from liftcore.lora import Adapter, own_adapter_after
from liftcore.objectives.build import objectives_of
from liftcore.objectives.pairs import GivenPairs, read_pairs
from liftcore.output import START as INFO
from liftcore.progress import ProgressLine
from liftcore.training.loop import Result, train
from liftcore.training.source import StepSource

DEFAULTS = {"objectives": ("segments", "qa"), "epochs": 3}


@dataclasses.dataclass
class Start:
    """What sft() gives: an adapter to begin from."""

    model: nn.Module
    adapter: Adapter
    config: LiftConfig
    training: Result
    documents: int
    pairs: int

    def save(self, folder: str | Path) -> Path:
        """Writes the adapter in PEFT's form, and sft.json, all at once; files that liftcore did
        not write stay. Raises LiftError when it cannot, and names where the adapter is instead.
        """
        folder = Path(folder)
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
    tokenizer,
    corpus: str | Path,
    *,
    config: LiftConfig | None = None,
    progress: bool = True,
) -> Start:
    """Trains one LoRA adapter on a folder of documents: (1/N) Σ_n (L_input(n) + γ L_AT(n)).

    corpus     *.txt files, each with or without a .jsonl of the same name that holds its
               question-answer pairs
    config     by default segments and questions, three epochs; γ is config.mix

    The samples of all documents are shuffled together and share steps, whose loss is divided by
    one number an epoch: equation 6 but for a factor that AdamW does not see. The model is left as
    it was. Raises LiftError for a folder without documents and for what cannot be read,
    UsageError for settings that do not fit.
    """
    config = config or LiftConfig(**DEFAULTS)
    if not {"segments", "recitation", "qa"}.issuperset(config.objectives):
        raise UsageError("sft takes the objectives segments, recitation and qa")
    window = models.window(model)
    if config.segment_length + len(models.prefix_ids(tokenizer)) > window:
        raise UsageError(
            f"segment_length {config.segment_length} does not fit the model's window of {window} "
            "tokens"
        )
    objectives, weights, count = [], [], 0
    files = sorted(Path(corpus).glob("*.txt"))
    if not files:
        raise LiftError(f"{corpus} holds no .txt files")
    for file in files:
        document = documents.read(file, tokenizer)
        questions = file.with_suffix(".jsonl")
        pairs = read_pairs(questions) if questions.exists() else []
        count += len(pairs)
        objectives += objectives_of(model, tokenizer, document, config, [GivenPairs(pairs)])
        weights += config.weights
    if "qa" in config.objectives and not count:
        raise LiftError(f"{corpus} holds no questions: one .jsonl beside each .txt")
    prefix = len(models.prefix_ids(tokenizer))
    source = StepSource(objectives, config, window, weights=weights, prefix=prefix)
    with alone_with(model), own_adapter_after(model):
        adapter = Adapter(model, config.rank, config.lora_alpha, config.seed)
        adapter.install()
        with ProgressLine(config.epochs, adapter.values.device, enabled=progress) as line:
            result = train(adapter, source, on_step=line.update, say=line.say)
    return Start(model, adapter, config, result, len(files), count)
