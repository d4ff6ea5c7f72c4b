"""The objectives of a run, by the names in the settings."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn

from liftcore import model as models
from liftcore.config import LiftConfig
from liftcore.document import Document
from liftcore.embedded import cache_folder
from liftcore.errors import UsageError
from liftcore.objectives import Objective
from liftcore.objectives.distill import DistilledPairs, DistilledSegments
from liftcore.objectives.qa import QuestionAnswering
from liftcore.objectives.recitation import Recitation
from liftcore.objectives.replay import Replay
from liftcore.objectives.segments import Segments
from liftcore.questions import own_words
from liftcore.questions.own_words import OwnWords
from liftcore.questions.pairs import GivenPairs, PairSource, SharedPairs, as_pair, read_pairs
from liftcore.tokens import Tokenizer

# Stands for the questions that the model makes itself.
SELF = "self"


def objectives_of(
    model: nn.Module,
    tokenizer: Tokenizer,
    document: Document,
    config: LiftConfig,
    sources: Sequence[PairSource] = (),
    cache: Path | None = None,
    own: Sequence[OwnWords] | None = None,
) -> list[Objective]:
    """One objective for each name in config.objectives, for one document.

    sources   give the question-answer pairs; each objective that takes pairs gets all of them.
              "distill" is for pairs where there is a source, else for the document itself
    cache     a folder for what a teacher says of this document
    own       what "replay" trains on; None: config.replay_rows of the model's own words, made
              where they are not known

    Raises UsageError for questions from nowhere.
    """
    if "qa" in config.objectives and not sources:
        raise UsageError("the objective qa needs a source of questions")
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
            return DistilledPairs(model, tokenizer, document, pairs, cache=cache)
        if name in ("distill", "distill-segments"):
            return DistilledSegments(model, tokenizer, document, config, cache=cache)
        if name == "replay":
            rows = own_words.rows(model, tokenizer, config.replay_rows) if own is None else own
            place = own_words.folder()
            targets = None if place is None else place / "targets"
            return Replay(model, rows, config, cache=targets)
        raise UsageError(f"unknown objective {name!r}")

    return [made(name) for name in config.objectives]


def pair_sources(qa: Any) -> list[PairSource | str]:
    """The sources of what a caller gives as `qa`: a JSONL file, pairs (Pair, (question, answer) or
    a dict of these), a source, "self", or a list of sources and "self", which stays as it is.

    Raises UsageError for what is no pair, and for a file with a bad line."""
    if isinstance(qa, str) and qa == SELF:
        return [SELF]
    if isinstance(qa, (str, Path)):
        return [GivenPairs(read_pairs(qa))]
    if hasattr(qa, "poll"):
        return [qa]
    entries = list(qa)
    if any(each == SELF or hasattr(each, "poll") for each in entries):
        return entries
    return [GivenPairs(as_pair(each, f"pair {n}") for n, each in enumerate(entries, 1))]


def named_sources(
    text: str,
    title: str,
    qa: str | Path | None,
    server: tuple[str, str, int] | None,
    self_made: bool,
) -> list[Any]:
    """The sources of a command line for one document: a JSONL file, a server (URL, model, requests
    at once) that answers about `text`, and the model itself. Whoever takes them closes them."""
    sources: list[Any] = [] if qa is None else pair_sources(qa)
    if server is not None:
        from liftcore.questions.server import ServerPairs

        url, model, concurrency = server
        cache = cache_folder() / "qa"
        sources.append(ServerPairs(text, title, url, model, cache=cache, concurrency=concurrency))
    return [*sources, SELF] if self_made else sources


def digest_of(sources: Sequence[PairSource | str]) -> str:
    """What tells the questions of a run from others; streams count as alike."""
    known = [each if each == SELF else getattr(each, "digest", "") for each in sources]
    return hashlib.sha256(repr(known).encode()).hexdigest()


def summary(source: PairSource) -> dict:
    """What a source of pairs gave and lost, as numbers for a report."""
    if (own := getattr(source, "summary", None)) is not None:
        return own()
    return {
        "pairs": source.expected,
        "failures": dict(source.failures),
        "rejected": dict(+source.rejected),
        "seconds": round(source.seconds, 3),
    }
