"""Questions and answers about the document as samples, as they arrive (LIFT, equation 4)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from liftcore import answer
from liftcore.config import LiftConfig
from liftcore.objectives import Objective
from liftcore.objectives.sample import Sample, prompted
from liftcore.questions.pairs import Pair, PairSource
from liftcore.tokens import Tokenizer


class Paired(Objective):
    """The samples of the pairs of one or more sources, as the pairs arrive."""

    def __init__(self, sources: Sequence[PairSource]):
        self.sources = list(sources)
        self.known: list[Sample] = []

    def made_of(self, pairs: Sequence[Pair]) -> list[Sample]:
        """One sample of each pair."""
        raise NotImplementedError

    def samples(self, epoch: int) -> list[Sample]:
        self.poll()
        return list(self.known)

    def poll(self) -> list[Sample]:
        new = self.made_of([pair for source in self.sources for pair in source.poll()])
        self.known += new
        return new

    @property
    def done(self) -> bool:
        return all(source.done for source in self.sources)

    @property
    def expected(self) -> int:
        return sum(source.expected for source in self.sources)

    @property
    def seconds(self) -> float:
        return max((source.seconds for source in self.sources), default=0.0)

    def close(self) -> None:
        for source in self.sources:
            source.close()


class QuestionAnswering(Paired):
    """The pairs of one or more sources (liftcore.questions.pairs), as they arrive.

    The prompt is the one that asking uses; the answer and the token that ends the turn are
    scored. config.qa_context says whether the document, cut to the model's window of `window`
    tokens, stands in it.
    """

    name = "qa"

    def __init__(
        self,
        tokenizer: Tokenizer,
        title: str,
        tokens: np.ndarray,
        sources: Sequence[PairSource],
        config: LiftConfig,
        window: int,
    ):
        super().__init__(sources)
        self.tokenizer, self.title, self.window = tokenizer, title, window
        self.document = tokens.tolist() if config.qa_context == "truncated" else None

    def made_of(self, pairs: Sequence[Pair]) -> list[Sample]:
        return [self._sample(pair) for pair in pairs]

    def _sample(self, pair: Pair) -> Sample:
        reply = answer.reply_ids(self.tokenizer, pair.answer)
        text = ""
        if self.document is not None:
            room = answer.room(self.tokenizer, self.title, pair.question, self.window - len(reply))
            text = answer.truncate(self.tokenizer, self.document, room) if room >= 2 else ""
        prompt = answer.question_ids(self.tokenizer, self.title, text, pair.question)
        return prompted(prompt, reply, self.name)
