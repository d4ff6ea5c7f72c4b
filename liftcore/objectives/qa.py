"""Questions and answers about the document as samples (LIFT, equation 4)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from liftcore import answer
from liftcore.config import LiftConfig
from liftcore.objectives.paired import Paired
from liftcore.objectives.sample import Sample, prompted
from liftcore.questions.pairs import Pair, PairSource


class QuestionAnswering(Paired):
    """The pairs of one or more sources (liftcore.questions.pairs), as they arrive.

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
        sources: Sequence[PairSource],
        config: LiftConfig,
        window: int,
    ):
        super().__init__(sources)
        self.tokenizer, self.title, self.window = tokenizer, title, window
        self.document = tokens.tolist() if config.qa_context == "truncated" else None

    def made_of(self, pairs: Sequence[tuple[PairSource, Pair]]) -> list[Sample]:
        return [self._sample(pair) for _, pair in pairs]

    def _sample(self, pair: Pair) -> Sample:
        reply = answer.reply_ids(self.tokenizer, pair.answer)
        text = ""
        if self.document is not None:
            room = answer.room(self.tokenizer, self.title, pair.question, self.window - len(reply))
            text = answer.truncate(self.tokenizer, self.document, room) if room >= 2 else ""
        prompt = answer.question_ids(self.tokenizer, self.title, text, pair.question)
        return prompted(prompt, reply, self.name)
