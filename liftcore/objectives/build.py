"""The mix of a run: its objectives, by the names in the settings."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from liftcore import model as models
from liftcore.config import LiftConfig
from liftcore.document import Document
from liftcore.objectives import Objective
from liftcore.objectives.mix import Mix
from liftcore.objectives.pairs import GivenPairs, Pair, read_pairs
from liftcore.objectives.shared_pairs import SharedPairs


def mix_of(
    model,
    tokenizer,
    document: Document,
    config: LiftConfig,
    sources: Sequence = (),
    cache: Path | None = None,
) -> Mix:
    """The mix of config.objectives for one document; `sources` give the question-answer pairs, and
    `cache` is a folder for what a teacher says."""
    return Mix(
        objectives_of(model, tokenizer, document, config, sources, cache),
        config.weights,
        config,
        models.window(model),
        len(models.prefix_ids(tokenizer)),
    )


def objectives_of(
    model,
    tokenizer,
    document: Document,
    config: LiftConfig,
    sources: Sequence,
    cache: Path | None = None,
) -> list[Objective]:
    """One objective for each name in config.objectives.

    Each that takes pairs gets all of them. "distill" is for pairs where there is a source, else for
    the document itself.
    """
    from liftcore.objectives.distill import DistilledPairs, DistilledSegments
    from liftcore.objectives.qa import QuestionAnswering
    from liftcore.objectives.recitation import Recitation
    from liftcore.objectives.segments import Segments

    title, tokens, window = document.title, document.tokens, models.window(model)
    shared = [SharedPairs(source) for source in sources]

    def made(name: str) -> Objective:
        if name == "segments":
            return Segments(tokens, config, models.prefix_ids(tokenizer))
        if name == "recitation":
            return Recitation(tokenizer, title, tokens, config, window)
        if name == "qa":
            readers = [each.reader() for each in shared]
            return QuestionAnswering(tokenizer, title, tokens, readers, config, window)
        if not shared:
            return DistilledSegments(model, tokenizer, document, config, cache=cache)
        readers = [each.reader() for each in shared]
        return DistilledPairs(model, tokenizer, document, readers, cache=cache)

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
