"""Questions and answers about the document as samples (LIFT, equation 4)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from liftcore import answer
from liftcore.config import LiftConfig
from liftcore.objectives import Objective
from liftcore.objectives.sample import Sample, prompted


class QuestionAnswering(Objective):
    """The pairs of one or more sources (liftcore.objectives.pairs), as they arrive.

    The prompt is the one that asking uses; the answer and the token that ends the turn are
    scored. config.qa_context says whether the document, cut to the model's window of `window`
    tokens, stands in it.
    """

    name = "qa"

    def __init__(
        self,
        tokenizer,
        title: str,
        tokens: np.ndarray,
        sources: Sequence,
        config: LiftConfig,
        window: int,
    ):
        self.tokenizer, self.title, self.window = tokenizer, title, window
        self.document = tokens.tolist() if config.qa_context == "truncated" else None
        self.sources = list(sources)
        self.known: list[Sample] = []

    def samples(self, epoch: int) -> list[Sample]:
        self.poll()
        return list(self.known)

    def poll(self) -> list[Sample]:
        new = [self._sample(pair) for source in self.sources for pair in source.poll()]
        self.known += new
        return new

    def _sample(self, pair) -> Sample:
        reply = answer.reply_ids(self.tokenizer, pair.answer)
        text = ""
        if self.document is not None:
            room = answer.room(self.tokenizer, self.title, pair.question, self.window - len(reply))
            text = answer.truncate(self.tokenizer, self.document, room) if room >= 2 else ""
        prompt = answer.question_ids(self.tokenizer, self.title, text, pair.question)
        return prompted(prompt, reply, self.name)

    @property
    def done(self) -> bool:
        return all(source.done for source in self.sources)

    @property
    def expected(self) -> int:
        return sum(source.expected for source in self.sources)

    @property
    def seconds(self) -> float:
        """How long making the pairs took so far."""
        return max((source.seconds for source in self.sources), default=0.0)

    def close(self) -> None:
        for source in self.sources:
            source.close()
