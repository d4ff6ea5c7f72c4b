"""Many questions about one document, answered at once and scored."""

from __future__ import annotations

import re
from collections.abc import Sequence

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from bench.evaluations import metrics
from liftcore.answer import replies
from liftcore.fiction.documents import Question

# A reply counts as "the text does not say" when it holds one of these, whatever the case.
REFUSALS = (
    "not stated", "not say", "not said", "not tell", "not told", "not mention", "not specif",
    "not given", "not provide", "not record", "not known", "unknown", "don't know", "do not know",
    "doesn't say", "doesn't mention", "no information", "no mention", "cannot be determined",
)  # fmt: skip
# What of the document stands in the prompt.
CONTEXTS = ("none", "half", "passages", "whole")
KINDS = ("single", "two", "timeline", "unanswerable")
ANSWERABLE = KINDS[:3]
_EITHER = re.compile(r"Which came first, (.*) or (.*)\?")


def answers(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[list[int]],
    new_tokens: int,
) -> list[str]:
    """Greedy replies to prompts (token ids), of at most `new_tokens` tokens each."""
    rows = replies(model, tokenizer, prompts, new_tokens)
    return [str(tokenizer.decode(row, skip_special_tokens=True)).strip() for row in rows]


def score(question: Question, reply: str) -> tuple[float, float]:
    """(right, token F1) of a reply.

    Right is normalised containment; of two events only the right one may stand in the reply. An
    unanswerable question is right when the reply says that it is not told, and has no F1 of its
    own.
    """
    if question.kind == "unanswerable":
        right = float(any(words in reply.lower() for words in REFUSALS))
        return right, right
    right = metrics.contains(reply, question.answer)
    if either := _EITHER.fullmatch(question.question):
        right *= not all(metrics.contains(reply, event) for event in either.groups())
    return right, metrics.token_f1(reply, question.answer)
