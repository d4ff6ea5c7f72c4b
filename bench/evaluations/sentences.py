"""Where the sentences of a text end."""

from __future__ import annotations

import re

# A full stop and the like with the quotes and brackets that close after it, or a blank line.
_END = re.compile(r"[.!?][\"'”’)\]]*(?=\s)|(?<=\S)(?=\n\s*\n)")


def sentence_ends(text: str) -> list[int]:
    """Offsets just behind the last character of each sentence; the last is the text's own end."""
    end = len(text.rstrip())
    found = [m.end() for m in _END.finditer(text, 0, end)]
    return sorted({e for e in found if e < end} | ({end} if end else set()))


def sentences(text: str) -> list[str]:
    """The sentences in order, without the white space between them."""
    ends = sentence_ends(text)
    return [text[a:b].strip() for a, b in zip([0, *ends], ends, strict=False)]
