"""Distillation: the model without its adapter, which may read the text, teaches the one with it,
which may not.

The targets are the teacher's likeliest tokens with their probabilities, in place of the token
that stands in the document. Two kinds of samples:
    DistilledSegments   pieces of the document; the teacher has read much more before each
    DistilledPairs      answers to questions; the teacher has read the text that they are about
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from torch import nn

from liftcore import answer
from liftcore import model as models
from liftcore.config import LiftConfig
from liftcore.document import Document
from liftcore.objectives import Objective
from liftcore.objectives.qa import Paired
from liftcore.objectives.sample import Sample, SoftTargets, prompted
from liftcore.objectives.teacher import K, Reading, Teacher
from liftcore.questions.pairs import Pair, PairSource
from liftcore.questions.windows import Passages
from liftcore.segments import cut
from liftcore.tokens import Tokenizer, text_ids
from liftcore.truncation import truncate

# Tokens that the teacher reads at once, and the longest piece that the student does.
WINDOW = 1024
PIECE = 64


class DistilledSegments(Objective):
    """Pieces of the document of at most `piece` tokens, cut anew each epoch with moving boundaries.

    The student reads the piece alone, behind the prefix; the teacher has read at least half of its
    window before a token, at most all of it, as far as the document goes back. The weights are
    those of overlap_loss "all".

    window   tokens that the teacher reads at once, at most the model's
    k, cache   of liftcore.objectives.teacher
    """

    name = "distill"

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Tokenizer,
        document: Document,
        config: LiftConfig,
        *,
        window: int = WINDOW,
        piece: int = PIECE,
        k: int = K,
        cache: str | Path | None = None,
    ):
        self.tokens = document.tokens.astype(np.int32)
        self.prefix = np.array(models.prefix_ids(tokenizer), dtype=np.int32)
        self.window = min(window, models.window(model))
        piece = max(2, min(piece, config.segment_length, self.window - len(self.prefix)))
        self.cutting = LiftConfig(segment_length=piece, seed=config.seed)
        self.teacher = Teacher(model, k, cache)
        self.soft: SoftTargets | None = None

    def readings(self) -> list[tuple[Reading, int]]:
        """What the teacher reads, and where in the document the tokens begin that it speaks of.

        Windows that overlap by half; the first speaks of all its tokens, the others of the second
        half.
        """
        p, length = len(self.prefix), len(self.tokens)
        size = self.window - p
        step = max(1, size // 2)
        begin, readings = (0 if p else 1), []
        while begin < length:
            stop = min(length, size if not readings else begin + step)
            start = max(0, stop - size)
            ids = np.concatenate([self.prefix, self.tokens[start:stop]])
            readings.append((Reading(ids, p + begin - start), begin))
            begin = stop
        return readings

    def samples(self, epoch: int) -> list[Sample]:
        if self.soft is None:
            self.soft = self._taught()
        segments, samples = cut(len(self.tokens), self.cutting, epoch), []
        for start, stop, own in zip(segments.start, segments.stop, segments.weights, strict=True):
            soft = SoftTargets(self.soft.ids[start:stop], self.soft.probs[start:stop])
            samples.append(prompted(self.prefix, self.tokens[start:stop], self.name, own, soft))
        return samples

    def _taught(self) -> SoftTargets:
        """The teacher's targets for each token of the document, [L, k]."""
        readings = self.readings()
        parts = self.teacher.targets([reading for reading, _ in readings])
        ids = np.zeros((len(self.tokens), self.teacher.k), dtype=np.int32)
        probs = np.zeros(ids.shape, dtype=np.float16)
        for part, (_, begin) in zip(parts, readings, strict=True):
            ids[begin : begin + len(part.ids)] = part.ids
            probs[begin : begin + len(part.ids)] = part.probs
        return SoftTargets(ids, probs)


class DistilledPairs(Paired):
    """The answers of pairs as they arrive: the teacher reads the prompt of a question with the text
    that it is about, the student the same prompt without a text.

    That text is the passage of the document that shares most words with question, answer and
    evidence. Answer and end of turn are scored, with the teacher's targets; where the text does
    not fit beside the question, with the answer itself.

    window   tokens that the teacher reads at most, at most the model's
    k, cache   of liftcore.objectives.teacher
    """

    name = "distill"

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Tokenizer,
        document: Document,
        sources: Sequence[PairSource],
        *,
        window: int = WINDOW,
        k: int = K,
        cache: str | Path | None = None,
    ):
        super().__init__(sources)
        self.tokenizer, self.title = tokenizer, document.title
        self.window = min(window, models.window(model))
        self.passages = Passages(document.text)
        self.teacher = Teacher(model, k, cache)

    def made_of(self, pairs: Sequence[Pair]) -> list[Sample]:
        readings = [self.reading(pair, self._text(pair)) for pair in pairs]
        taught = iter(self.teacher.targets([r for r in readings if r is not None]))
        return [
            self._student(pair, next(taught) if reading is not None else None)
            for pair, reading in zip(pairs, readings, strict=True)
        ]

    def _student(self, pair: Pair, soft: SoftTargets | None) -> Sample:
        prompt = answer.question_ids(self.tokenizer, self.title, "", pair.question)
        reply = answer.reply_ids(self.tokenizer, pair.answer)
        return prompted(prompt, reply, self.name, soft=soft)

    def reading(self, pair: Pair, text: str) -> Reading | None:
        """What the teacher reads; None when no text fits beside the question."""
        reply = answer.reply_ids(self.tokenizer, pair.answer)
        window = self.window - len(reply)
        room = answer.room(self.tokenizer, self.title, pair.question, window)
        if room < 2:
            return None
        tokens = text_ids(self.tokenizer, text)
        if len(tokens) > room:
            text = truncate(self.tokenizer, tokens, room)
        prompt = answer.question_ids(self.tokenizer, self.title, text, pair.question)
        if len(prompt) > window:
            return None
        return Reading(np.array([*prompt, *reply], dtype=np.int32), len(prompt))

    def _text(self, pair: Pair) -> str:
        """The text that the pair is about."""
        about = f"{pair.question} {pair.answer} {pair.evidence}"
        return self.passages.about(about, pair.evidence)
