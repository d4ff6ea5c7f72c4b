"""Questions and answers about the document as samples, as they arrive (LIFT, equation 4)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from liftcore import answer
from liftcore.config import LiftConfig
from liftcore.errors import LiftError
from liftcore.objectives import Objective
from liftcore.objectives.sample import Sample, prompted
from liftcore.questions.pairs import Pair, PairSource
from liftcore.tokens import Tokenizer, chat_ids
from liftcore.truncation import truncate

CHUNK = 32  # facts whose questions may stand in one chat


@dataclass(frozen=True)
class Asked:
    """A pair and its sample."""

    pair: Pair
    sample: Sample


@dataclass
class _Chunk:
    """Facts that arrived one after the other: for each the pairs that ask for it."""

    facts: list[list[Asked]] = field(default_factory=list)
    places: dict[str, int] = field(default_factory=dict)  # group -> place in facts

    def add(self, asked: Asked) -> None:
        group = asked.pair.group
        if group in self.places:
            self.facts[self.places[group]].append(asked)
            return
        if group:
            self.places[group] = len(self.facts)
        self.facts.append([asked])


class Paired(Objective):
    """The samples of the pairs of one or more sources, as the pairs arrive.

    An epoch takes one pair of each group, each in its turn, in an order of (seed, group). What is
    given depends on the pairs and their order alone, and not on how many arrive at once.
    """

    chunk = 1  # facts that rows() puts together

    def __init__(self, sources: Sequence[PairSource], seed: int = 0):
        self.sources, self.seed = list(sources), seed
        self.known: list[_Chunk] = []
        self._given = 0  # of these, handed out
        self._epoch = 0

    def made_of(self, pairs: Sequence[Pair]) -> list[Sample]:
        """One sample of each pair."""
        raise NotImplementedError

    def rows(self, asked: Sequence[Asked], rng: np.random.Generator) -> list[Sample]:
        """The rows that are trained on, of what an epoch takes of one chunk."""
        return [each.sample for each in asked]

    def samples(self, epoch: int) -> list[Sample]:
        self.poll()
        self._epoch = epoch
        return self._drawn(0, epoch)

    def poll(self) -> list[Sample]:
        # Asked first: what comes after it is there at the next poll.
        last = all(source.done for source in self.sources)
        pairs = [pair for source in self.sources for pair in source.poll()]
        last = last or all(source.done for source in self.sources)
        for pair, sample in zip(pairs, self.made_of(pairs) if pairs else [], strict=True):
            if self._closed(pair):
                self.known.append(_Chunk())
            self.known[-1].add(Asked(pair, sample))
        begin, self._given = self._given, len(self.known) - self._held(last)
        return self._drawn(begin, self._epoch)

    def _closed(self, pair: Pair) -> bool:
        """Whether a pair begins a chunk: the last one is full, or was handed out."""
        if len(self.known) == self._given:
            return True
        newest = self.known[-1]
        return len(newest.facts) >= self.chunk and pair.group not in newest.places

    def _held(self, last: bool) -> int:
        """Chunks that may still grow: the last one, as long as pairs may come."""
        if last or not self.known:
            return 0
        newest = self.known[-1]
        grows = len(newest.facts) < self.chunk or newest.facts[-1][0].pair.group
        return int(bool(grows) and len(self.known) > self._given)

    @property
    def pairs(self) -> list[Pair]:
        """The pairs that were handed out so far, of each fact all its forms."""
        handed = self.known[: self._given]
        return [asked.pair for chunk in handed for fact in chunk.facts for asked in fact]

    def _drawn(self, begin: int, epoch: int) -> list[Sample]:
        """The rows in an epoch of the chunks from `begin` on that were handed out."""
        rows: list[Sample] = []
        for number in range(begin, self._given):
            asked = []
            for fact, pairs in enumerate(self.known[number].facts):
                order = np.random.default_rng([self.seed, number, fact]).permutation(len(pairs))
                asked.append(pairs[order[epoch % len(pairs)]])
            rows += self.rows(asked, np.random.default_rng([self.seed, epoch, number, 2]))
        return rows

    @property
    def done(self) -> bool:
        return all(source.done for source in self.sources) and self._given == len(self.known)

    @property
    def expected(self) -> int:
        rows = len(self._drawn(0, self._epoch))
        if self.done:
            return rows
        pairs = sum(source.expected for source in self.sources)
        drawn = sum(len(fact) for chunk in self.known[: self._given] for fact in chunk.facts)
        return max(rows, round(pairs * rows / drawn)) if drawn else pairs

    @property
    def longest(self) -> int:
        chunks = self.known[: self._given]
        return max((len(a.sample) for c in chunks for f in c.facts for a in f), default=0)

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

    Where it does not, and the tokenizer has a chat template, several questions are the turns of
    one chat of up to config.qa_length tokens, which share what stands before the first one.
    Questions made of one sentence never stand in one chat, for they could answer each other.
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
        super().__init__(sources, config.seed)
        self.tokenizer, self.title, self.window = tokenizer, title, window
        self.document = tokens.tolist() if config.qa_context == "truncated" else None
        self.room = min(window, config.qa_length or config.segment_length)
        self._before = 0 if self.document is not None else _before_a_turn(tokenizer)
        self._turns: dict[Pair, Sample] = {}  # a pair as a later turn of a chat
        if self._before:
            self.chunk = CHUNK

    def made_of(self, pairs: Sequence[Pair]) -> list[Sample]:
        return [self._sample(pair) for pair in pairs]

    def _sample(self, pair: Pair) -> Sample:
        reply = answer.reply_ids(self.tokenizer, pair.answer)
        text = ""
        if self.document is not None:
            room = answer.room(self.tokenizer, self.title, pair.question, self.window - len(reply))
            text = truncate(self.tokenizer, self.document, room) if room >= 2 else ""
        elif self._before:
            asked = {"role": "user", "content": f"Question: {pair.question.strip()}"}
            turn = chat_ids(self.tokenizer, [*_TURN, asked])[self._before :]
            self._turns[pair] = prompted(turn, reply, self.name)
        prompt = answer.question_ids(self.tokenizer, self.title, text, pair.question)
        return prompted(prompt, reply, self.name)

    def rows(self, asked: Sequence[Asked], rng: np.random.Generator) -> list[Sample]:
        """Chats of questions in random order, each filled up with what fits."""
        if not self._before:
            return super().rows(asked, rng)
        rows, left = [], [asked[i] for i in rng.permutation(len(asked))]
        while left:
            parts, size, sentences, later = [left[0].sample], len(left[0].sample), set(), []
            sentences.add(left[0].pair.window)
            for each in left[1:]:
                turn = self._turns[each.pair]
                known = each.pair.window >= 0 and each.pair.window in sentences
                if known or size + len(turn) > self.room:
                    later.append(each)
                    continue
                parts.append(turn)
                size += len(turn)
                sentences.add(each.pair.window)
            ids, weights = ([getattr(p, name) for p in parts] for name in ("ids", "weights"))
            rows.append(Sample(np.concatenate(ids), np.concatenate(weights), source=self.name))
            left = later
        return rows

    @property
    def longest(self) -> int:
        """No chat of an epoch is longer than the room, but for a question that fills it alone."""
        alone = super().longest
        facts = sum(len(chunk.facts) for chunk in self.known[: self._given])
        return max(alone, self.room) if self._before and facts > 1 else alone


# A first turn and its answer, to see what a chat template puts before the next.
_TURN = [{"role": "user", "content": "?"}, {"role": "assistant", "content": "REPLY"}]


def _before_a_turn(tokenizer: Tokenizer) -> int:
    """Tokens of _TURN as they stand in a row, its answer and the end of the turn included; 0 where
    the tokenizer has no chat template, or one that shows a turn otherwise when others follow."""
    if not tokenizer.chat_template:
        return 0
    row = chat_ids(tokenizer, _TURN[:1]) + answer.reply_ids(tokenizer, "REPLY")
    try:
        chat = chat_ids(tokenizer, [*_TURN, {"role": "user", "content": "?"}])
    except LiftError:
        return 0
    return len(row) if chat[: len(row)] == row else 0
