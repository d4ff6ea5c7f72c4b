"""Many questions about one document, answered at once and scored."""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch
from transformers import DynamicCache, PreTrainedModel, PreTrainedTokenizerBase

from bench.evaluations import metrics
from liftcore import model as models
from liftcore.fiction.documents import Question

# A reply counts as "the text does not say" when it holds one of these, whatever the case.
REFUSALS = (
    "not stated", "not say", "not said", "not tell", "not told", "not mention", "not specif",
    "not given", "not provide", "not record", "not known", "unknown", "don't know", "do not know",
    "doesn't say", "doesn't mention", "no information", "no mention", "cannot be determined",
)  # fmt: skip
KINDS = ("single", "two", "timeline", "unanswerable")
ANSWERABLE = KINDS[:3]
_EITHER = re.compile(r"Which came first, (.*) or (.*)\?")


@torch.no_grad()
def answers(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[list[int]],
    new_tokens: int,
) -> list[str]:
    """Greedy replies to prompts (token ids), of at most `new_tokens` tokens each.

    What all prompts begin with is read once; the rest is padded on the left.
    """
    shared = _shared(prompts)
    body, lm_head = models.body(model), models.head(model)
    device = lm_head.weight.device
    ends = {tokenizer.eos_token_id, *_ends(model)}
    cache = DynamicCache()
    if shared:
        head = torch.tensor([prompts[0][:shared]], device=device)
        body(input_ids=head, past_key_values=cache, use_cache=True)
        cache.batch_repeat_interleave(len(prompts))
    rests = [p[shared:] for p in prompts]
    width = max(map(len, rests))
    ids = torch.zeros(len(prompts), width, dtype=torch.int64, device=device)
    mask = torch.ones(len(prompts), shared + width, dtype=torch.int64, device=device)
    for b, rest in enumerate(rests):
        ids[b, width - len(rest) :] = torch.tensor(rest)
        mask[b, shared : shared + width - len(rest)] = 0
    places = (mask.cumsum(1) - 1).clamp(min=0)[:, shared:]
    replies = [[] for _ in prompts]
    going = [True] * len(prompts)
    for _ in range(new_tokens):
        hidden = body(
            input_ids=ids,
            attention_mask=mask,
            position_ids=places,
            past_key_values=cache,
            use_cache=True,
        ).last_hidden_state
        ids = lm_head.logits(hidden[:, -1]).argmax(-1, keepdim=True)  # [B, 1]
        for b, token in enumerate(ids[:, 0].tolist()):
            going[b] = going[b] and token not in ends
            if going[b]:
                replies[b].append(token)
        if not any(going):
            break
        mask = torch.cat([mask, mask.new_ones(len(prompts), 1)], dim=1)
        places = places[:, -1:] + 1
    return [str(tokenizer.decode(r, skip_special_tokens=True)).strip() for r in replies]


def _shared(prompts: Sequence[list[int]]) -> int:
    """Tokens that all prompts begin with; at least one is left of each."""
    columns = zip(*(p[:-1] for p in prompts), strict=False)
    count = 0
    for column in columns:
        if len(set(column)) > 1:
            break
        count += 1
    return count


def _ends(model: PreTrainedModel) -> set[int]:
    ends = getattr(model.generation_config, "eos_token_id", None)
    if ends is None:
        return set()
    return set(ends) if isinstance(ends, (list, tuple)) else {ends}


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
