"""Questions that a memory was trained on, asked once more, and what is to be thought of the
answers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from liftcore.answer import question_ids, replies
from liftcore.memory import Memory
from liftcore.questions.pairs import Pair
from liftcore.questions.words import words

BATCH = 16  # questions asked at once
NEW = 48  # tokens of an answer, at most
# Words of the answer and of the reply in common (F1), from which a reply is right in part.
PARTLY = 0.5


@dataclass(frozen=True)
class Asked:
    """A pair, what the model said, and the verdict: "right", "in part" or "wrong"."""

    pair: Pair
    reply: str
    verdict: str


def ask_some(
    memory: Memory, most: int, say: Callable[[int, int], None] = lambda done, of: None
) -> list[Asked]:
    """Asks at most `most` of the questions that the memory was trained on, spread evenly over the
    document; of one fact one form. The adapter must be installed."""
    chosen = some(memory.questions, most)
    said: list[str] = []
    for n in range(0, len(chosen), BATCH):
        part = chosen[n : n + BATCH]
        prompts = [question_ids(memory.tokenizer, memory.title, "", p.question) for p in part]
        rows = replies(memory.model, memory.tokenizer, prompts, NEW)
        said += [memory.tokenizer.decode(row, skip_special_tokens=True).strip() for row in rows]
        say(len(said), len(chosen))
    return [
        Asked(pair, reply, verdict(reply, pair)) for pair, reply in zip(chosen, said, strict=True)
    ]


def some(pairs: Sequence[Pair], most: int) -> list[Pair]:
    """At most `most` pairs of different facts, evenly from first to last, and of each fact another
    form than of the one before."""
    facts: dict[object, list[Pair]] = {}
    for number, pair in enumerate(pairs):
        facts.setdefault(pair.group or number, []).append(pair)
    every = list(facts.values())
    count = min(most, len(every))
    chosen = [every[n * len(every) // count] for n in range(count)]
    return [forms[n % len(forms)] for n, forms in enumerate(chosen)]


def verdict(reply: str, pair: Pair) -> str:
    """What a reply is worth: "right" where the answer stands in it word by word; "in part" where
    they share half of their words, and where the question itself offers the answer, so that a
    reply may name it and mean the other; else "wrong"."""
    said, wanted, offered = (words(text) for text in (reply, pair.answer, pair.question))
    at = _place(wanted, said)
    if at == 0 or (at > 0 and _place(wanted, offered) < 0):
        return "right"
    same = sum((Counter(said) & Counter(wanted)).values())
    half = 2 * same >= PARTLY * (len(said) + len(wanted)) > 0
    return "in part" if at > 0 or half else "wrong"


def _place(part: list[str], whole: list[str]) -> int:
    """Where `part` stands in `whole`; −1 for nowhere."""
    if not part:
        return -1
    return next((n for n in range(len(whole)) if whole[n : n + len(part)] == part), -1)
