"""The questions that a model makes of its document before it learns it, and how they are kept."""

from __future__ import annotations

import json
import time
import warnings
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from liftcore.errors import LiftError
from liftcore.files import write_atomically
from liftcore.questions.pairs import GivenPairs, Pair
from liftcore.questions.self_study import SelfStudy

FILE = "questions.json"
# How often what is made is kept: a kill loses no more.
SAVE_SECONDS = 20.0


class StudiedPairs(GivenPairs):
    """What `study` makes, all of it: the model cannot write and learn at once, so nothing is gained
    by doing both in turns. With a `folder` they are kept there under `key`, which says what they
    depend on, and taken from there the next time: those that are made by then, every SAVE_SECONDS
    and when it is interrupted, so that the next time goes on. Raises LiftError when there are none
    and some are `needed`, else warns."""

    def __init__(
        self,
        study: SelfStudy,
        key: str,
        folder: Path | None,
        count: Callable[[str, int, int], None],
        needed: bool,
    ):
        file = None if folder is None else folder / FILE
        kept: Any = None
        if file is not None:
            with suppress(OSError, ValueError):
                kept = json.loads(file.read_text())
        known = isinstance(kept, dict) and kept.get("key") == key
        if known and kept.get("more"):
            study.go_on(kept)
            known = False
        if not known:
            kept = _made(study, key, file, count)
        super().__init__(Pair(**pair) for pair in kept["pairs"])
        self.seconds, self.rejected = kept["seconds"], Counter(kept["rejected"])
        if not kept["pairs"]:
            none = "no question could be made of this document"
            if needed:
                raise LiftError(none)
            warnings.warn(f"{none}: it is learned without", stacklevel=2)


def _made(
    study: SelfStudy, key: str, file: Path | None, count: Callable[[str, int, int], None]
) -> dict[str, Any]:
    """All that `study` makes, and kept in the file, where there is one."""
    saved = time.perf_counter()

    def keep(content: dict[str, Any]) -> None:
        if file is not None:
            write_atomically(file, lambda to: to.write_text(json.dumps({"key": key, **content})))

    def on_batch(done: int, of: int) -> None:
        nonlocal saved
        count("making questions", done, of)
        if done < of and time.perf_counter() - saved > SAVE_SECONDS:
            with suppress(LiftError):  # what is said of it in the end is enough
                keep({**study.state(), "more": True})
            saved = time.perf_counter()

    try:
        pairs = study.generate_all(on_batch)
    except KeyboardInterrupt:
        with suppress(LiftError):
            keep({**study.state(), "more": True})
        raise
    made = {
        "pairs": [asdict(pair) for pair in pairs],
        "seconds": study.seconds,
        "rejected": dict(+study.rejected),
    }
    try:
        keep(made)
    except LiftError as error:
        warnings.warn(f"{error}; a resumed run makes them anew", stacklevel=3)
    return made
