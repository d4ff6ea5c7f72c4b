"""The passage of a document that a question is about, by the words they share."""

from __future__ import annotations

import re
from collections import Counter, defaultdict

from liftcore.objectives.pairs import normalised
from liftcore.objectives.windows import blocks

SENTENCES = 16


class Passages:
    """Overlapping passages of `count` sentences each, a new one every half of that."""

    def __init__(self, text: str, count: int = SENTENCES):
        self.texts = [w.text for w in blocks(text, count, max(1, count // 2))] or [text]
        self.holding: dict[str, list[int]] = defaultdict(list)  # word -> numbers of passages
        for number, passage in enumerate(self.texts):
            for word in set(_words(passage)):
                self.holding[word].append(number)

    def about(self, text: str, evidence: str = "") -> str:
        """The passage with most of the words of `text`, where a rare word counts for more; one
        that holds the evidence, where there is such a passage."""
        shared: Counter[int] = Counter({0: 0.0})
        words = _words(evidence)
        for number, passage in enumerate(self.texts if words else ()):
            # More than all shared words together.
            held = " ".join(words) in " ".join(_words(passage))
            shared[number] += held * (len(text) + 1)
        for word in sorted(set(_words(text))):
            holders = self.holding.get(word, ())
            for number in holders:
                shared[number] += 1 / len(holders)
        return self.texts[min(shared, key=lambda number: (-shared[number], number))]


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", normalised(text))
