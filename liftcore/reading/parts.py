"""What a reader of a format gives."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Parts:
    """The text of a file in parts, such as pages.

    kind    what the file is, for people: "PDF"
    texts   (what stands before it when it is not the first, the text) of each part
    notes   what was done, for people
    unit    what a part is called: "page", "slide", "chapter"; "" for a text of one part
    """

    kind: str
    texts: list[tuple[str, str]]
    notes: list[str] = field(default_factory=list)
    unit: str = ""
