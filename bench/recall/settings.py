"""What the recall benchmark compares: a base setting, and lines that change one thing each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from liftcore.config import LiftConfig
from liftcore.presets import DOWN, PRESETS

DOCUMENTS = (
    "fiction-0", "essay-addiction", "fiction-1", "essay-submarine", "fiction-2", "essay-vb",
)  # fmt: skip
SEEDS = (0, 1, 2)
# Rates are constant, so that one run gives the recall after any number of token-passes.
BASE: dict[str, Any] = dict(
    segment_length=128, batch_size=1, rank=16, learning_rate=2e-3, lr_schedule="constant"
)
OFFICIAL: dict[str, Any] = dict(
    segment_length=128, schedule="overlap", overlap_loss="all", batch_size=4, rank=128, alpha=256.0,
    lr_schedule="constant", warmup=0.0,
)  # fmt: skip


@dataclass(frozen=True)
class Setting:
    """One way to train.

    line      the question that it helps to answer
    passes    when to stop at the latest, in passes over the document's tokens
    trainer   PEFT under transformers' Trainer in place of liftcore
    own       rows of the model's own words that the document is set against; None: as absorb has
    cuts      ways of cutting the document, which the epochs take in turns; None: each its own
    """

    name: str
    line: str
    changes: dict[str, Any] = field(default_factory=dict)
    passes: int = 12
    trainer: bool = False
    own: int | None = None
    cuts: int | None = None

    def config(self, seed: int, epochs: int = 1) -> LiftConfig:
        start = OFFICIAL if self.trainer else BASE
        settings: dict[str, Any] = {"epochs": epochs, **start, **self.changes, "seed": seed}
        return LiftConfig(**settings)


def _schedule(schedule: str, overlap_loss: str) -> Setting:
    return Setting(
        f"{schedule}/{overlap_loss}",
        "schedule",
        dict(schedule=schedule, overlap_loss=overlap_loss),
    )


def _line(line: str, name: str, passes: int = 12, **changes: Any) -> Setting:
    return Setting(name, line, changes, passes)


SCHEDULES = (
    _schedule("jitter", "all"),
    _schedule("overlap", "all"),
    _schedule("trivial", "all"),
    _schedule("overlap", "new"),
    _schedule("overlap", "mean"),
)
LINES = (
    _line("rate", "rate 1e-3", learning_rate=1e-3),
    _line("rate", "rate 4e-3", learning_rate=4e-3),
    _line("batch", "batch 2", batch_size=2),
    _line("segment", "segment 64", segment_length=64, batch_size=2),
    _line("segment", "segment 256", segment_length=256),
    _line("rank", "rank 64", rank=64),
    _line("rank", "rank 4", rank=4),
    _line("batch", "batch 4", batch_size=4),
    _line("segment", "segment 512", segment_length=512),
)
# A cosine ends at 0, so each of its lengths is a run of its own, measured at its end.
COSINE: dict[str, Any] = dict(lr_schedule="cosine")
FINAL = (
    _line("cosine", "cosine 12 epochs, batch 2, rank 64", 0, epochs=12, batch_size=2, rank=64,
          **COSINE),
    _line("cosine", "cosine 8 epochs, batch 2, rank 64", 0, epochs=8, batch_size=2, rank=64,
          **COSINE),
    _line("cosine", "cosine 8 epochs", 0, epochs=8, **COSINE),
    _line("cosine", "cosine 6 epochs", 0, epochs=6, **COSINE),
    _line("cosine", "cosine 6 epochs, rank 64", 0, epochs=6, rank=64, **COSINE),
    _line("cosine", "cosine 8 epochs, batch 2", 0, epochs=8, batch_size=2, **COSINE),
    _line("cosine", "cosine 10 epochs, batch 2", 0, epochs=10, batch_size=2, **COSINE),
    _line("cosine", "cosine 10 epochs, batch 2, rank 64", 0, epochs=10, batch_size=2, rank=64,
          **COSINE),
)  # fmt: skip
ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
# An adapter made for the document, and what each part of it gives.
MADE: dict[str, Any] = {**PRESETS["memorize"], "epochs": 6}


def _made(name: str, line: str = "document", *, own: int | None = None, cuts: int | None = None,
          **changes: Any) -> Setting:  # fmt: skip
    return Setting(name, line, {**COSINE, **MADE, **changes}, 0, own=own, cuts=cuts)


MEMORIZE = (
    _made("memorize, 6 epochs", "memorize"),
    _made("memorize", "memorize", epochs=PRESETS["memorize"]["epochs"]),
)
DOCUMENT = (
    _made("6 epochs, random A, frozen", adapter_init="random"),
    _made("6 epochs, random A, trained, rate 2e-3", adapter_init="random", train_a=True,
          learning_rate=2e-3),
    _made("6 epochs, segment 128, rate 4e-3", segment_length=128, learning_rate=4e-3),
    _made("6 epochs, all layers", layers=None),
    _made("6 epochs, every linear layer, rate 3e-3", exclude_modules=(), learning_rate=3e-3),
    _made("8 epochs, every linear layer, rate 3e-3", exclude_modules=(), learning_rate=3e-3,
          epochs=8),
    _made("6 epochs, rate 3e-3", learning_rate=3e-3),
    _made("8 epochs, rate 3e-3", learning_rate=3e-3, epochs=8),
    _made("6 epochs, base in FP8", base_dtype="fp8"),
)  # fmt: skip
# The search around it: one thing changed at a time.
SEARCH = (
    *(_made(f"6 epochs, damping {d:g}", "search", init_damping=d) for d in (0.1, 0.01, 0.0001)),
    _made("6 epochs, gate and up alone", "search", exclude_modules=(*DOWN, *ATTENTION)),
    _made("6 epochs, attention alone", "search", exclude_modules=(*DOWN, "gate_proj", "up_proj")),
    _made("6 epochs, without o", "search", exclude_modules=(*DOWN, "o_proj")),
    _made("6 epochs, layers 10 to 29", "search", layers=(10, -1)),
    _made("6 epochs, layers 20 to 29", "search", layers=(20, -1)),
    *(_made(f"6 epochs, rank {rank}", "search", rank=rank) for rank in (64, 96, 192)),
    _made("6 epochs, beta2 0.999", "search", beta2=0.999),
    _made("6 epochs, rate 4.5e-3", "search", learning_rate=4.5e-3),
    _made("5 epochs, rate 4.5e-3", "search", learning_rate=4.5e-3, epochs=5),
    _made("7 epochs", "search", epochs=7),
    _made("6 epochs, two segments a step, rate 6e-3", "search", batch_size=2, learning_rate=6e-3),
    _made(
        "8 epochs, two segments a step, rate 5e-3",
        "search",
        batch_size=2,
        learning_rate=5e-3,
        epochs=8,
    ),
    _made("6 epochs, A trained too", "search", train_a=True),
    *(_made(f"6 epochs, {rows} own words", "search", own=rows) for rows in (0, 32, 512)),
    *(_made(f"6 epochs, {cuts} cuts in turns", "search", cuts=cuts) for cuts in (2, 3)),
)
PEERS = tuple(
    Setting(f"official {rate}", "official", dict(learning_rate=float(rate)), 40, trainer=True)
    for rate in ("3e-4", "1e-3", "5e-5")
)
SETTINGS = {s.name: s for s in (*SCHEDULES, *LINES, *FINAL, *MEMORIZE, *DOCUMENT, *SEARCH, *PEERS)}


@dataclass(frozen=True)
class Case:
    document: str
    seed: int
    setting: Setting

    @property
    def key(self) -> str:
        return f"{self.document} | {self.seed} | {self.setting.name}"


def cases() -> Iterator[Case]:
    """Every case, ordered so that a sweep that is cut short is a balanced answer already."""
    main, weighted = SCHEDULES[:3], SCHEDULES[3:]
    two, rest = DOCUMENTS[:2], DOCUMENTS[2:]
    early, late = LINES[:6], LINES[6:]
    yield from _cross([0], DOCUMENTS, main)
    yield from _cross([0], two, weighted)
    yield from _cross(SEEDS, DOCUMENTS, MEMORIZE)
    yield from _cross([0], DOCUMENTS[:4], DOCUMENT)
    yield from _cross([0], two, (*early, *FINAL[:-3]))
    yield from _cross([0], two[:1], PEERS[:2])
    yield from _cross([1], DOCUMENTS, main)
    yield from _cross([2], DOCUMENTS, main)
    yield from _cross([0], DOCUMENTS[:4], FINAL[-3:])
    yield from _cross([0], rest, weighted)
    yield from _cross([0], two[1:], PEERS[:2])
    yield from _cross([1, 2], DOCUMENTS, weighted)
    yield from _cross([0], rest[:2], PEERS[:2])
    yield from _cross([0], two[:1], PEERS[2:])
    yield from _cross([0], rest, (*early, *FINAL[:-3]))
    yield from _cross([0], two, late)
    yield from _cross([0], two, SEARCH)
    yield from _cross([0], rest, SEARCH)


def _cross(
    seeds: Sequence[int], documents: Sequence[str], settings: Sequence[Setting]
) -> Iterator[Case]:
    return (Case(d, seed, s) for seed in seeds for d in documents for s in settings)
