"""The passage of a document that a question is about, by the words they share."""

from __future__ import annotations

from collections import Counter, defaultdict

from liftcore.questions.windows import blocks
from liftcore.questions.words import words

SENTENCES = 16


class Passages:
    """Overlapping passages of `count` sentences each, a new one every half of that."""

    def __init__(self, text: str, count: int = SENTENCES):
        self.texts = [w.text for w in blocks(text, count, max(1, count // 2))] or [text]
        self.holding: dict[str, list[int]] = defaultdict(list)  # word -> numbers of passages
        self.words = [words(passage) for passage in self.texts]
        for number, held in enumerate(self.words):
            for word in set(held):
                self.holding[word].append(number)

    def about(self, text: str, evidence: str = "") -> str:
        """The passage with most of the words of `text`, where a rare word counts for more; one
        that holds the evidence, where there is such a passage."""
        shared: Counter[int] = Counter({0: 0.0})
        asked = words(evidence)
        # The last of several words may be cut off.
        wanted = f" {' '.join(asked)}{'' if len(asked) > 1 else ' '}"
        for number, held in enumerate(self.words if asked else ()):
            # More than all shared words together.
            shared[number] += (wanted in f" {' '.join(held)} ") * (len(text) + 1)
        for word in sorted(set(words(text))):
            holders = self.holding.get(word, ())
            for number in holders:
                shared[number] += 1 / len(holders)
        return self.texts[min(shared, key=lambda number: (-shared[number], number))]
