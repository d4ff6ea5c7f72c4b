"""The questions of self-study, made before training and kept for a run that goes on.

The model cannot write and learn at once, so that nothing is gained by doing both in turns.
"""

from __future__ import annotations

import dataclasses
import json
import warnings
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path

from liftcore.errors import LiftError
from liftcore.files import write_atomically
from liftcore.questions.pairs import GivenPairs, Pair
from liftcore.questions.self_study import SelfStudy

FILE = "questions.json"


class StudiedPairs(GivenPairs):
    """What `study` makes, all of it. With a `folder` they are kept there under `key`, which says
    what they depend on, and taken from there the next time. Raises LiftError when there are none
    and some are `needed`, else warns."""

    def __init__(
        self,
        study: SelfStudy,
        key: str,
        folder: Path | None = None,
        count: Callable[[str, int, int], None] = lambda what, done, of: None,
        needed: bool = True,
    ):
        file = None if folder is None else folder / FILE
        kept = _kept(file, key)
        if kept is None:
            pairs = study.generate_all(partial(count, "making questions"))
            kept = {
                "key": key,
                "pairs": [dataclasses.asdict(pair) for pair in pairs],
                "seconds": study.seconds,
                "rejected": dict(+study.rejected),
            }
            if file is not None:
                try:
                    write_atomically(file, lambda to: to.write_text(json.dumps(kept)))
                except LiftError as error:
                    warnings.warn(f"{error}; a resumed run makes them anew", stacklevel=2)
        super().__init__(Pair(**pair) for pair in kept["pairs"])
        self.seconds, self.rejected = kept["seconds"], Counter(kept["rejected"])
        if not kept["pairs"]:
            none = "no question could be made of this document"
            if needed:
                raise LiftError(none)
            warnings.warn(f"{none}: it is learned without", stacklevel=2)


def _kept(file: Path | None, key: str) -> dict | None:
    try:
        kept = json.loads(file.read_text()) if file is not None else None
    except (OSError, ValueError):
        return None
    return kept if isinstance(kept, dict) and kept.get("key") == key else None
