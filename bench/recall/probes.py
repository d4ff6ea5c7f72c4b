"""What a run is asked, on the way and at its end: the document, its facts, and what the model knew
before."""

from __future__ import annotations

import time
from typing import Protocol

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from bench.recall.documents import CHAT, UNRELATED, Sample
from liftcore import answer, report
from liftcore.answer import greedy
from liftcore.cli.demo import is_right
from liftcore.fiction.documents import Fact
from liftcore.kernels.head_loss import linear_cross_entropy
from liftcore.model import body, head, prefix_ids
from liftcore.tokens import text_ids

CUE_TOKENS = 32
QUESTIONS = 4
# Passes over the document after which recall is measured.
BUDGETS = (4, 6, 8, 10, 12, 15, 18, 21, 25, 30, 35, 40)
ENOUGH = 0.95


class Watch(Protocol):
    """What looks on while an adapter is trained."""

    prefix: list[int]
    points: list[dict]
    started: tuple[float, float]

    def step(self, passes: int, loss: float) -> None:
        """After a training step, so many token-passes in; may raise Enough."""

    def measure(self, passes: int) -> float:
        """At the end of the run."""


class Enough(Exception):
    """Recall is high enough: the rest of the run would show nothing."""


class Curve:
    """Recall against token-passes; the clocks stand still while it is measured.

    With at_end it is measured at the end of the run alone.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        sample: Sample,
        seed: int,
        number_of_probes: int,
        at_end: bool = False,
    ):
        self.model, self.sample, self.seed = model, sample, seed
        self.prefix, self.number = prefix_ids(tokenizer), number_of_probes
        self.points: list[dict] = []
        self.losses: list[float] = []
        self.at_end = at_end
        self.budgets = [b * len(sample.tokens) for b in BUDGETS]
        self.paused = (0.0, 0.0)
        self.started = clocks()

    def step(self, passes: int, loss: float) -> None:
        """After a training step; raises Enough when recall has reached 95 %."""
        if self.at_end:
            self.losses = [loss]
            return
        self.losses.append(loss)
        if not self.budgets or passes < self.budgets[0]:
            return
        self.budgets = [b for b in self.budgets if b > passes]
        if self.measure(passes) >= ENOUGH:
            raise Enough

    def measure(self, passes: int) -> float:
        now = clocks()
        wall, cpu = (n - s - p for n, s, p in zip(now, self.started, self.paused, strict=True))
        share = recall(self.model, self.sample, self.prefix, self.number, self.seed)
        loss = sum(self.losses) / max(1, len(self.losses))
        self.losses = []
        self.points.append(
            {
                "passes": passes,
                "recall": round(share, 4),
                "loss": round(loss, 4),
                "seconds": round(wall, 2),
                "cpu_seconds": round(cpu, 2),
            }
        )
        then = clocks()
        self.paused = (self.paused[0] + then[0] - now[0], self.paused[1] + then[1] - now[1])
        return share


def clocks() -> tuple[float, float]:
    """Seconds on the wall and of the processor, when all that was sent to a GPU is done."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter(), time.process_time()


def recall(
    model: PreTrainedModel, sample: Sample, prefix: list[int], probes: int, seed: int
) -> float:
    """Greedy recall of the document, the share of equal tokens in [0, 1]."""
    share = report.measure(model, sample.tokens, prefix=prefix, probes=probes, seed=seed).recall
    assert share is not None  # the documents are long enough
    return share


def facts_completed(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, sample: Sample
) -> int:
    """How many facts the model completes after the 32 tokens of the document before them.

    Equal prompts make them one batch.
    """
    if not sample.facts:
        return 0
    ids = [_tokens_before(tokenizer, sample, fact) for fact in sample.facts]
    size = min(CUE_TOKENS, min(map(len, ids)))
    prefix = prefix_ids(tokenizer)
    prompts = torch.tensor([prefix + i[-size:] for i in ids], device=_device(model))
    lengths = [len(text_ids(tokenizer, " " + fact.answer)) for fact in sample.facts]
    out = greedy(model, prompts, max(lengths) + 3)
    said = [" ".join(str(tokenizer.decode(row, skip_special_tokens=True)).split()) for row in out]
    return sum(is_right(s, f.answer) for s, f in zip(said, sample.facts, strict=True))


def _tokens_before(tokenizer: PreTrainedTokenizerBase, sample: Sample, fact: Fact) -> list[int]:
    end = sample.text.index(f"{fact.cue} {fact.answer}") + len(fact.cue)
    return text_ids(tokenizer, sample.text[:end])


def questions_answered(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, sample: Sample
) -> int:
    """How many of the first four questions get an answer that holds the right one."""
    asked = sample.questions[:QUESTIONS]
    replies = [
        answer.ask(model, tokenizer, q.question, title=sample.title, max_new_tokens=16)
        for q in asked
    ]
    return sum(q.answer.lower() in r.lower() for q, r in zip(asked, replies, strict=True))


@torch.no_grad()
def forgetting(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> dict[str, float]:
    """Mean loss in nats a token on an unrelated text, and on the answers to chat questions."""
    text = prefix_ids(tokenizer) + text_ids(tokenizer, UNRELATED)
    total, count = 0.0, 0
    for question, reply in CHAT:
        prompt = _chat(tokenizer, question)
        ids = prompt + text_ids(tokenizer, reply)
        total += _loss(model, ids, len(prompt)).item()
        count += len(ids) - len(prompt)
    return {
        "text": round(_loss(model, text, 1).item() / (len(text) - 1), 4),
        "chat": round(total / count, 4),
    }


def _chat(tokenizer: PreTrainedTokenizerBase, question: str) -> list[int]:
    if not tokenizer.chat_template:
        return text_ids(tokenizer, f"Question: {question}\nAnswer:")
    return answer.chat_ids(tokenizer, [{"role": "user", "content": question}])


def _loss(model: PreTrainedModel, ids: list[int], first: int) -> Tensor:
    """Sum of the losses of ids[first:]."""
    tokens = torch.tensor([ids], device=_device(model))
    hidden = body(model)(input_ids=tokens[:, :-1], use_cache=False).last_hidden_state[0]
    lm_head = head(model)
    return linear_cross_entropy(
        hidden[first - 1 :],
        lm_head.weight.detach(),
        tokens[0, first:],
        reduction="sum",
        softcap=lm_head.softcap,
        logit_scale=lm_head.logit_scale,
    )


def _device(model: PreTrainedModel) -> torch.device:
    return next(model.parameters()).device
