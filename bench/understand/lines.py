"""What the understanding benchmark compares: mixes of objectives, and sources of pairs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from bench.understand.documents import NAMES
from liftcore.config import QA_KINDS, LiftConfig
from liftcore.presets import PRESETS

SEEDS = (0, 1, 2)
# Small steps, of a segment or a question or two, suit a short run.
BASE: dict[str, Any] = dict(
    segment_length=128, batch_size=1, rank=16, learning_rate=2e-3, epochs=1000
)
GAMMA = 4.0
MADE = {k: v for k, v in PRESETS["understand"].items() if k not in ("objectives", "epochs")}


@dataclass(frozen=True)
class Line:
    """One way to train, with settings on top of BASE.

    objectives   name -> γ; none: the model as it is
    pairs        where question-answer pairs come from: "self:KIND,KIND" (these kinds of
                 liftcore.questions.self_study) or "given" (written by hand, as a user's file
                 would hold them)
    own          rows of the model's own words that the document is set against; None: as absorb
    """

    name: str
    objectives: dict[str, float] = field(default_factory=dict)
    pairs: tuple[str, ...] = ()
    changes: dict[str, Any] = field(default_factory=dict)
    own: int | None = None

    @property
    def trained(self) -> bool:
        return bool(self.objectives)

    def config(self, seed: int) -> LiftConfig:
        names, mix = tuple(self.objectives), tuple(self.objectives.values())
        mixed: dict[str, Any] = {"objectives": names, "mix": mix, "seed": seed}
        return LiftConfig(**{**BASE, **self.changes, **mixed})


def _line(
    name: str, pairs: str = "", changes: dict[str, Any] | None = None, **objectives: float
) -> Line:
    return Line(name, objectives, tuple(pairs.split()), changes or {})


def _made(name: str, changes: dict[str, Any] | None = None, **objectives: float) -> Line:
    """A line with an adapter made for the document, as the preset "understand" has it."""
    return _line(name, "self:quiz", {**MADE, **(changes or {})}, **objectives)


def _kept(name: str, own: int | None = None, **changes: Any) -> Line:
    """The preset with one thing changed that may keep more of what the model knew."""
    line = _made(f"understand, {name}", changes, segments=1.0, qa=GAMMA, replay=2.0)
    return replace(line, own=own)


BARE = _line("base")
SEGMENTS = _line("segments", segments=1.0)
MAIN = (
    SEGMENTS,
    _line("+ qa (quizzes)", "self:quiz", segments=1.0, qa=GAMMA),
    _line("+ qa (quizzes, questions)", "self:quiz,question", segments=1.0, qa=GAMMA),
    _line("+ distill", segments=1.0, distill=1.0),
    # Shown all of the document, a passage costs five times as much.
    _line("+ recitation", changes={"recite_context": 256}, segments=1.0, recitation=1.0),
    _line("+ qa (quizzes) + distill", "self:quiz", segments=1.0, qa=GAMMA, distill=GAMMA),
    _line("+ qa (given)", "given", segments=1.0, qa=GAMMA),
)
# One thing changed of the second line, and everything that self-study makes.
EXTRA = (
    _line("+ qa (quizzes), γ 1", "self:quiz", segments=1.0, qa=1.0),
    _line("+ qa (quizzes), γ 16", "self:quiz", segments=1.0, qa=16.0),
    _line(
        "+ qa (quizzes), rate 1e-3", "self:quiz", {"learning_rate": 1e-3}, segments=1.0, qa=GAMMA
    ),
    _line("+ qa (quizzes), rank 64", "self:quiz", {"rank": 64}, segments=1.0, qa=GAMMA),
    _line("+ qa (quizzes, gaps)", "self:quiz,gap", segments=1.0, qa=GAMMA),
    _line("+ qa (all kinds)", "self:" + ",".join(QA_KINDS), segments=1.0, qa=GAMMA),
)
# An adapter made for the document, with and without the model's own words beside it.
DOCUMENT = (
    _made("understand", segments=1.0, qa=GAMMA, replay=2.0),
    _made("understand, no replay", segments=1.0, qa=GAMMA),
    _made("understand, random A, trained", dict(adapter_init="random", train_a=True),
          segments=1.0, qa=GAMMA),
)  # fmt: skip
# Questions that share a row with others, behind one beginning.
CHATS = tuple(_kept(f"chats of {tokens} tokens", qa_length=tokens) for tokens in (96, 128, 192))
# What keeps the rest, at what price, and how few of the model's own words are enough.
KEEPING = (
    _kept("replay 5 %", replay_share=0.05),
    _kept("replay 30 %", replay_share=0.3),
    _kept("replay 50 %", replay_share=0.5),
    # Of fewer rows the adapter is fitted against fewer too.
    *(_kept(f"{rows} own words", replay_rows=rows) for rows in (16, 64)),
    _kept("256 own words against the document", own=256),
    _kept("hard targets", replay_targets="hard"),
    _kept("rank 64", rank=64),
    _kept("rate 1.5e-3", learning_rate=1.5e-3),
    *(_kept(f"keep {nats:g}", keep=nats) for nats in (0.05, 0.02)),
)
LINES = {line.name: line for line in (BARE, *DOCUMENT, *CHATS, *KEEPING, *MAIN, *EXTRA)}


@dataclass(frozen=True)
class Case:
    document: str
    seed: int
    line: Line

    @property
    def key(self) -> str:
        return f"{self.document} | {self.seed} | {self.line.name}"


def cases() -> Iterator[Case]:
    """Every case, ordered so that a sweep that is cut short is a balanced answer already."""
    yield from (Case(name, 0, BARE) for name in NAMES)
    for seed in SEEDS:
        for name in NAMES:
            yield from (Case(name, seed, line) for line in (*DOCUMENT, *MAIN))
    yield from (Case(name, 0, line) for name in NAMES for line in (*CHATS, *KEEPING, *EXTRA))
