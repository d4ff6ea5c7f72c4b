"""Generation: answers from the weights alone (LIFT), or beside a truncated copy (LIFT+ICL)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from liftcore import model as models
from liftcore.errors import UsageError
from liftcore.groups import evaluating

CONTEXTS = ("none", "truncated")


@torch.no_grad()
def greedy(model: nn.Module, prompts: Tensor, new_tokens: int) -> Tensor:
    """Greedy continuation of prompts int64 [B, P] of equal length -> int64 [B, new_tokens].

    No end-of-text stops it: recall compares a fixed number of tokens.
    """
    lm_head = models.head(model)
    body = models.body(model)
    caches = keeps_a_cache(model)
    cache, step, out = None, prompts, []
    for _ in range(new_tokens):
        if caches:
            result = body(input_ids=step, past_key_values=cache, use_cache=True)
            cache = result.past_key_values
        else:
            result = body(input_ids=torch.cat([prompts, *out], dim=1), use_cache=False)
        step = lm_head.logits(result.last_hidden_state[:, -1]).argmax(-1, keepdim=True)  # [B, 1]
        out.append(step)
    return torch.cat(out, dim=1)


@torch.no_grad()
def keeps_a_cache(model: nn.Module) -> bool:
    """Whether the decoder goes on from `past_key_values` as if it read everything anew.

    Tried once. Other models (Mamba, RWKV) have a state of another kind: what they read is then
    computed again for every token.
    """
    kept = vars(model).get("_liftcore_caches")
    if kept is None:
        with evaluating(model):
            kept = model._liftcore_caches = _continues(models.body(model), model)
    return kept


def _continues(body: nn.Module, model: nn.Module) -> bool:
    weight = model.get_input_embeddings().weight
    random = torch.Generator().manual_seed(0)
    ids = torch.randint(weight.shape[0], (2, 12), generator=random).to(weight.device)
    right = body(input_ids=ids, use_cache=False).last_hidden_state[:, -1].float()
    alone = body(input_ids=ids[:, -1:], use_cache=False).last_hidden_state[:, -1].float()
    try:
        cache = None
        for part in (ids[:, :10], ids[:, 10:11], ids[:, 11:]):
            result = body(input_ids=part, past_key_values=cache, use_cache=True)
            cache = result.past_key_values
        error = (result.last_hidden_state[:, -1].float() - right).norm()
    except Exception:
        return False
    # Much nearer than what a model without a memory would say.
    return cache is not None and bool(error <= 1e-3 * right.norm() + 0.2 * (alone - right).norm())


def complete(model: nn.Module, tokenizer, text: str, max_new_tokens: int) -> str:
    """The text that follows `text` as the document would go on, greedily."""
    ids = models.prefix_ids(tokenizer) + tokenizer(text, add_special_tokens=False)["input_ids"]
    return generate(model, tokenizer, ids, max_new_tokens)


def ask(
    model: nn.Module,
    tokenizer,
    question: str,
    *,
    title: str,
    document: list[int] | None = None,
    max_new_tokens: int,
) -> str:
    """The answer to a question about the document called `title`.

    With `document` (token ids) the prompt also holds it, truncated to fill the model's window:
    head half, "...", tail half.
    """
    if not question.strip():
        raise UsageError("the question is empty")
    text = ""
    if document is not None:
        left = room(tokenizer, title, question, models.window(model) - max_new_tokens)
        if left < 2:
            raise UsageError("the question and the answer leave no room for the document")
        text = truncate(tokenizer, document, left)
    ids = question_ids(tokenizer, title, text, question)
    return generate(model, tokenizer, ids, max_new_tokens)


def room(tokenizer, title: str, question: str, window: int) -> int:
    """Tokens of the document that fit beside the question into a prompt of `window` tokens."""
    return window - len(question_ids(tokenizer, title, "...", question)) - 8


def truncate(tokenizer, tokens: list[int], room: int) -> str:
    """The document's text when it has at most `room` tokens, else head half + "..." + tail half."""
    if len(tokens) <= room:
        return tokenizer.decode(tokens)
    half = max(1, room // 2)
    return tokenizer.decode(tokens[:half]) + "\n...\n" + tokenizer.decode(tokens[-half:])


def question_ids(tokenizer, title: str, text: str, question: str) -> list[int]:
    """The prompt of a question about the document called `title`, up to where the answer begins;
    `text` stands in it unless it is empty."""
    about = f'Please answer a question about "{title}".\n\n'
    prompt = (f"{about}{text}\n\n" if text else about) + f"Question: {question.strip()}"
    return prompt_ids(tokenizer, prompt, "\nAnswer:")


def prompt_ids(tokenizer, prompt: str, cue: str) -> list[int]:
    """A user's turn and the beginning of the model's; without a chat template prompt + cue."""
    if tokenizer.chat_template:
        return chat_ids(tokenizer, [{"role": "user", "content": prompt}])
    ids = tokenizer(prompt + cue, add_special_tokens=False)["input_ids"]
    return models.prefix_ids(tokenizer) + ids


def chat_ids(tokenizer, messages: list[dict[str, str]]) -> list[int]:
    """A chat in the tokenizer's template, up to where the model's next turn begins."""
    return tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, tokenize=True, return_dict=True
    )["input_ids"]


def reply_ids(tokenizer, reply: str) -> list[int]:
    """A reply behind prompt_ids() as the model should give it: its tokens and the end of its
    turn."""
    text = reply.strip() if tokenizer.chat_template else " " + reply.strip()
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    return [*ids, *end_of_turn(tokenizer)]


def end_of_turn(tokenizer) -> list[int]:
    """The token that ends the model's turn: the first special one that the chat template puts
    behind a reply, else the end of text; empty when the tokenizer has neither."""
    if tokenizer.chat_template:
        turns = [{"role": "user", "content": "?"}, {"role": "assistant", "content": "REPLY"}]
        behind = tokenizer.apply_chat_template(turns, tokenize=False).rpartition("REPLY")[2]
        special = set(tokenizer.all_special_ids)
        special |= {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
        ids = tokenizer(behind, add_special_tokens=False)["input_ids"]
        if found := [i for i in ids if i in special]:
            return found[:1]
    return [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]


@torch.no_grad()
def generate(model: nn.Module, tokenizer, ids: list[int], max_new_tokens: int) -> str:
    """The text that follows the prompt `ids`, greedily, up to the end of the model's turn."""
    prompt = torch.tensor([ids], device=next(model.parameters()).device)
    out = model.generate(
        input_ids=prompt,
        attention_mask=torch.ones_like(prompt),
        max_new_tokens=max_new_tokens,
        do_sample=False,
        temperature=None,
        top_p=None,
        top_k=None,
        pad_token_id=tokenizer.pad_token_id
        if tokenizer.pad_token_id is not None
        else tokenizer.eos_token_id,
    )
    return tokenizer.decode(out[0, len(ids) :], skip_special_tokens=True)
