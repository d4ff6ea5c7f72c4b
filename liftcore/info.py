"""What liftcore.json says about a saved memory, which somebody else may have written."""

from __future__ import annotations

import dataclasses
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from liftcore import adapter as adapters
from liftcore.config import LiftConfig
from liftcore.document import title_as_text
from liftcore.errors import LiftError
from liftcore.output import INFO
from liftcore.reading import Source
from liftcore.report import Report
from liftcore.training.log import Result

T = TypeVar("T")


@dataclass
class About:
    """What liftcore.json says about the document, and of what else the memory consists."""

    title: str
    sha256: str
    tokens: int
    base_model: str
    adapter_sha256: str
    source: dict = field(default_factory=dict)  # the fields of a Source

    def __post_init__(self) -> None:
        self.title = title_as_text(self.title)


@dataclass
class Info:
    """What liftcore.json says about a memory."""

    about: About
    config: LiftConfig
    report: Report
    training: Result
    files: list[str] | None
    source: Source | None


def read_info(folder: Path) -> Info:
    """The description of a saved memory, which somebody else may have written. Raises LiftError
    when it is missing or damaged."""
    info = adapters.read_json(folder / INFO)
    try:
        known = {**info, **info["document"]}
        names = [f.name for f in dataclasses.fields(About) if f.name in known]
        about = from_json(About, {name: known[name] for name in names})
        report, training = from_json(Report, info["report"]), from_json(Result, info["training"])
        report.text()
        source = from_json(Source, about.source) if about.source else None
        config = LiftConfig(**info["config"])
        return Info(about, config, report, training, info.get("files"), source)
    except (LookupError, TypeError, ArithmeticError, ValueError) as error:
        raise LiftError(f"{folder / INFO} is damaged or of another version: {error}") from error


def from_json(kind: type[T], values: Any) -> T:
    """kind(**values), once each value is of the type that the dataclass names for it.

    Knows int, float, str, dict and lists of these. Raises TypeError for anything else.
    """
    if not isinstance(values, dict):
        raise TypeError(f"{kind.__name__} is no JSON object")
    for name, wanted in typing.get_type_hints(kind).items():
        if name in values and not _is(values[name], wanted):
            raise TypeError(f"{name} of {kind.__name__} is not what it should be")
    return kind(**values)


def _is(value: Any, wanted: Any) -> bool:
    if typing.get_origin(wanted) is list:
        (each,) = typing.get_args(wanted)
        return isinstance(value, list) and all(_is(v, each) for v in value)
    if isinstance(value, bool):
        return wanted is bool
    return isinstance(value, (int, float) if wanted is float else wanted)
