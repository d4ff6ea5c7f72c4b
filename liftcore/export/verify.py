"""Whether a memory has arrived in another runtime: the same probes, asked here and there."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean

import numpy as np
from torch import nn

from liftcore.adapter import alone_with
from liftcore.answer import replies
from liftcore.errors import LiftError
from liftcore.layers.lora import without_adapter
from liftcore.memory import Memory
from liftcore.model import prefix_ids
from liftcore.tokens import Tokenizer, text_ids

PROBES = 32
# A runtime of other rounding, or on a quantised base, may lose so much of what the adapter gains.
KEPT = 0.8
# Alike in so large a share of the tokens is the same.
ALIKE = 0.95
SHOWN = 8  # tokens of each answer from where they part
SHIFTS = 8  # places that a probe may move on, for its prompt to be the same tokens as text

# Prompts with their token ids and texts, and how many tokens -> the texts that follow.
Complete = Callable[[Sequence["Prompt"], int], list[str]]


@dataclass(frozen=True)
class Prompt:
    """ids   tokens, with what the tokenizer puts before any text
    text     the same without it: a tokenizer makes the same tokens of it
    place    where in the document it starts, in tokens
    """

    ids: list[int]
    text: str
    place: int


@dataclass(frozen=True)
class Difference:
    """The first probe at which the answers part: where, and what both said from there on."""

    place: int  # of the first token that differs, in the document
    here: str
    there: str


@dataclass(frozen=True)
class Arrival:
    """What verify() gives.

    verdict   "arrived", "changes nothing" (the runtime answers as the base model without the
              adapter), "in part", or "cannot be told" (the adapter changes nothing here)
    recall_*  share of the document's tokens recalled: by liftcore, by the runtime, and by the base
              model without the adapter
    alike     share of tokens that the runtime says as liftcore does
    """

    verdict: str
    probes: int
    recall_here: float
    recall_there: float
    recall_base: float
    alike: float
    difference: Difference | None

    @property
    def arrived(self) -> bool:
        return self.verdict == "arrived"

    def text(self, runtime: str) -> str:
        """What people are told of it."""
        verdicts = {
            "arrived": f"the memory has arrived in {runtime}",
            "changes nothing": f"the memory has not arrived: {runtime} answers as the base model "
            "does without it. The adapter was loaded and changes nothing, or was not loaded",
            "in part": f"the memory has arrived in {runtime} in part, or another has",
            "cannot be told": "the adapter changes nothing here either, so nothing can be told",
        }
        lines = [
            f"recall here {self.recall_here:.1%}, there {self.recall_there:.1%}, without the "
            f"adapter {self.recall_base:.1%} ({self.probes} probes; {self.alike:.1%} of the tokens "
            "alike)"
        ]
        if self.difference is None:
            lines.append("the answers do not differ")
        else:
            d = self.difference
            lines.append(f"first difference at token {d.place}: here {d.here!r}, there {d.there!r}")
        return "\n".join([*lines, verdicts[self.verdict]])


def verify(memory: Memory, complete: Complete, probes: int = PROBES) -> Arrival:
    """Asks the memory, its base model and a runtime how the document goes on at the same places,
    greedily, and compares the tokens of what they say.

    complete   the runtime
    probes     places, of those at which recall was measured

    Raises LiftError for a memory without its document, and what the runtime raises.
    """
    if memory.text is None:
        raise LiftError("this memory was saved without its document, so it cannot be probed")
    report, tokenizer = memory.report, memory.tokenizer
    tokens = np.asarray(text_ids(tokenizer, memory.text))
    prompts = _prompts(memory, tokens, probes)
    there = complete(prompts, report.new_tokens)
    here, base = _said(memory, prompts)
    starts = [prompt.place + report.prompt_tokens for prompt in prompts]
    right = [tokenizer.decode(tokens[at : at + report.new_tokens].tolist()) for at in starts]
    said = {"right": right, "here": here, "there": there, "base": base}
    ids = {who: [_ids(tokenizer, text) for text in texts] for who, texts in said.items()}

    def same(a: str, b: str) -> float:
        return fmean(_share(x, y) for x, y in zip(ids[a], ids[b], strict=True))

    recalls = [same(who, "right") for who in ("here", "there", "base")]
    difference = None
    for at, x, y in zip(starts, ids["here"], ids["there"], strict=True):
        if x != y:
            n = _parting(x, y)
            difference = Difference(at + n, *(tokenizer.decode(z[n : n + SHOWN]) for z in (x, y)))
            break
    verdict = _verdict(*recalls, same("here", "there"), same("here", "base"), same("there", "base"))
    return Arrival(verdict, len(prompts), *recalls, same("here", "there"), difference)


def _verdict(
    here: float, there: float, base: float, alike: float, at_base: float, as_base: float
) -> str:
    """The verdict on recalls and on shares of equal tokens: here and there, here and the base
    model, there and the base model."""
    if at_base >= ALIKE:
        return "cannot be told"
    if as_base > alike:
        return "changes nothing"
    recalls = here > base and there - base >= KEPT * (here - base)
    return "arrived" if recalls or alike - at_base >= KEPT * (1 - at_base) else "in part"


def _prompts(memory: Memory, tokens: np.ndarray, probes: int) -> list[Prompt]:
    """Prompts at the places at which recall was measured, spread evenly over these."""
    report, tokenizer = memory.report, memory.tokenizer
    places = report.positions or [0]
    chosen = [places[i * len(places) // probes] for i in range(probes)]
    last = len(tokens) - report.prompt_tokens - report.new_tokens
    prefix, prompts = prefix_ids(tokenizer), []
    for place in chosen:
        for start in range(place, min(place + SHIFTS, last) + 1):
            ids = tokens[start : start + report.prompt_tokens].tolist()
            text = tokenizer.decode(ids)
            if text_ids(tokenizer, text) == ids:
                prompts.append(Prompt(prefix + ids, text, start))
                break
    if not prompts:
        raise LiftError("no piece of the document is the same tokens when it is read as text")
    return prompts


def _said(memory: Memory, prompts: Sequence[Prompt]) -> tuple[list[str], list[str]]:
    """What the memory says behind the prompts, and what its base model does."""
    model, tokenizer, new = memory.model, memory.tokenizer, memory.report.new_tokens
    with alone_with(model):
        memory.adapter.install()
        with memory.adapter.folded():
            here = in_process(model, tokenizer)(prompts, new)
        with without_adapter(model):
            return here, in_process(model, tokenizer)(prompts, new)


def in_process(model: nn.Module, tokenizer: Tokenizer) -> Complete:
    """A model of transformers, as it stands."""

    def complete(prompts: Sequence[Prompt], new: int) -> list[str]:
        rows = replies(model, tokenizer, [prompt.ids for prompt in prompts], new)
        return [tokenizer.decode(row, skip_special_tokens=True) for row in rows]

    return complete


def _ids(tokenizer: Tokenizer, text: str) -> list[int]:
    """The tokens of an answer that came as text: without halves of characters at its ends, and
    without white space there, which some servers drop."""
    return text_ids(tokenizer, text.strip("\ufffd").strip())


def _share(a: list[int], b: list[int]) -> float:
    """The share of places at which two answers have the same token."""
    return sum(x == y for x, y in zip(a, b, strict=False)) / max(len(a), len(b), 1)


def _parting(a: list[int], b: list[int]) -> int:
    pairs = enumerate(zip(a, b, strict=False))
    return next((n for n, (x, y) in pairs if x != y), min(len(a), len(b)))
