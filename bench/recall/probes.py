"""What a run is asked: the document, its facts, and what the model knew before."""

from __future__ import annotations

import torch

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


def recall(model, sample: Sample, prefix: list[int], probes: int, seed: int) -> float:
    """Greedy recall of the document, the share of equal tokens in [0, 1]."""
    return report.measure(model, sample.tokens, prefix=prefix, probes=probes, seed=seed).recall


def facts_completed(model, tokenizer, sample: Sample) -> int:
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
    said = [" ".join(tokenizer.decode(row, skip_special_tokens=True).split()) for row in out]
    return sum(is_right(s, f.answer) for s, f in zip(said, sample.facts, strict=True))


def _tokens_before(tokenizer, sample: Sample, fact: Fact) -> list[int]:
    end = sample.text.index(f"{fact.cue} {fact.answer}") + len(fact.cue)
    return text_ids(tokenizer, sample.text[:end])


def questions_answered(model, tokenizer, sample: Sample) -> int:
    """How many of the first four questions get an answer that holds the right one."""
    asked = sample.questions[:QUESTIONS]
    replies = [
        answer.ask(model, tokenizer, q.question, title=sample.title, max_new_tokens=16)
        for q in asked
    ]
    return sum(q.answer.lower() in r.lower() for q, r in zip(asked, replies, strict=True))


@torch.no_grad()
def forgetting(model, tokenizer) -> dict[str, float]:
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


def _chat(tokenizer, question: str) -> list[int]:
    if not tokenizer.chat_template:
        return text_ids(tokenizer, f"Question: {question}\nAnswer:")
    return answer.chat_ids(tokenizer, [{"role": "user", "content": question}])


def _loss(model, ids: list[int], first: int):
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


def _device(model) -> torch.device:
    return next(model.parameters()).device
