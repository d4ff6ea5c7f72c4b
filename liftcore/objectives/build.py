"""The mix of a run: its objectives, by the names in the settings."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from liftcore import model as models
from liftcore.config import LiftConfig
from liftcore.document import Document
from liftcore.errors import UsageError
from liftcore.objectives import Objective
from liftcore.objectives.distill import DistilledPairs, DistilledSegments
from liftcore.objectives.mix import Mix
from liftcore.objectives.pairs import GivenPairs, Pair, read_pairs
from liftcore.objectives.qa import QuestionAnswering
from liftcore.objectives.recitation import Recitation
from liftcore.objectives.segments import Segments
from liftcore.objectives.shared_pairs import SharedPairs


def mix_of(model, tokenizer, document: Document, config: LiftConfig, sources: Sequence = ()) -> Mix:
    """The mix of config.objectives for one document; `sources` give the question-answer pairs.
    Raises UsageError when there is none, but an objective needs one."""
    if "qa" in config.objectives and not sources:
        raise UsageError("the objective qa needs questions: a file of them, or a server")
    return Mix(
        objectives_of(model, tokenizer, document, config, sources),
        config.weights,
        config,
        models.window(model),
        len(models.prefix_ids(tokenizer)),
    )


def objectives_of(
    model, tokenizer, document: Document, config: LiftConfig, sources: Sequence
) -> list[Objective]:
    """One objective for each name in config.objectives."""
    title, tokens, window = document.title, document.tokens, models.window(model)
    shared = [SharedPairs(source) for source in sources]

    def made(name: str) -> Objective:
        pairs = [each.reader() for each in shared]
        if name == "segments":
            return Segments(tokens, config, models.prefix_ids(tokenizer))
        if name == "recitation":
            return Recitation(tokenizer, title, tokens, config, window)
        if name == "qa":
            return QuestionAnswering(tokenizer, title, tokens, pairs, config, window)
        if name == "distill" and pairs:
            return DistilledPairs(model, tokenizer, document, pairs)
        return DistilledSegments(model, tokenizer, document, config)

    return [made(name) for name in config.objectives]


def pair_sources(qa) -> list:
    """The sources of what a caller gives as `qa`: a JSONL file, pairs (Pair or (question, answer)),
    a source of pairs, or a list of sources. Raises LiftError for a file with a bad line."""
    if isinstance(qa, (str, Path)):
        return [GivenPairs(read_pairs(qa))]
    if hasattr(qa, "poll"):
        return [qa]
    found = list(qa)
    if any(hasattr(each, "poll") for each in found):
        return found
    return [GivenPairs(p if isinstance(p, Pair) else Pair(*p) for p in found)]
