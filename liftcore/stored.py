"""Dataclasses out of the JSON of a file that somebody else may have written."""

from __future__ import annotations

import typing


def from_json(kind: type, values: dict):
    """kind(**values), once each value is of the type that the dataclass names for it.

    Knows int, float, str, dict and lists of these. Raises TypeError for anything else.
    """
    if not isinstance(values, dict):
        raise TypeError(f"{kind.__name__} is no JSON object")
    for name, wanted in typing.get_type_hints(kind).items():
        if name in values and not _is(values[name], wanted):
            raise TypeError(f"{name} of {kind.__name__} is not what it should be")
    return kind(**values)


def _is(value, wanted) -> bool:
    if typing.get_origin(wanted) is list:
        (each,) = typing.get_args(wanted)
        return isinstance(value, list) and all(_is(v, each) for v in value)
    if isinstance(value, bool):
        return wanted is bool
    return isinstance(value, (int, float) if wanted is float else wanted)
