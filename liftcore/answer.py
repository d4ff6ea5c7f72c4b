"""Generation: answers from the weights alone (LIFT), or beside text of the document: a truncated
copy (LIFT+ICL), or passages (LIFT+RAG)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from liftcore import model as models
from liftcore.errors import UsageError
from liftcore.tokens import Tokenizer, chat_ids, chat_pieces, text_ids

CONTEXTS = ("none", "truncated", "passages")
SHARED = 512  # tokens at the beginning of all prompts of a batch that are worth reading apart


@torch.no_grad()
def greedy(model: nn.Module, prompts: Tensor, new_tokens: int) -> Tensor:
    """Greedy continuation of prompts int64 [B, P] -> int64 [B, new_tokens].

    No end-of-text stops it: recall compares a fixed number of tokens. A model that gives no
    past_key_values reads all again for each token. It runs in evaluation mode.
    """
    lm_head = models.head(model)
    body = models.body(model)
    caches = keeps_a_cache(model)
    cache, step, out = None, prompts, []
    with models.evaluating(model):
        for _ in range(new_tokens):
            how = {"past_key_values": cache, "use_cache": True} if caches else {"use_cache": False}
            result = body(input_ids=step, **how)
            token = lm_head.logits(result.last_hidden_state[:, -1]).argmax(-1, keepdim=True)
            out.append(token)  # [B, 1]
            if caches:
                cache, step = result.past_key_values, token
            else:
                step = torch.cat([step, token], dim=1)
    return torch.cat(out, dim=1)


@torch.no_grad()
def keeps_a_cache(model: nn.Module) -> bool:
    """Whether the decoder goes on from `past_key_values` as if it read everything anew.

    Tried once. Other models (Mamba, RWKV) have a state of another kind: what they read is then
    computed again for every token.
    """
    kept = vars(model).get("_liftcore_caches")
    if kept is None:
        with models.evaluating(model):
            kept = vars(model)["_liftcore_caches"] = _continues(models.body(model), model)
    return kept


def _continues(body: nn.Module, model: nn.Module) -> bool:
    weight = models.causal_lm(model).get_input_embeddings().weight
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


def complete_all(
    model: nn.Module, tokenizer: Tokenizer, texts: Sequence[str], new_tokens: Sequence[int]
) -> list[str]:
    """What complete() gives for each text, of at most so many tokens each, in one batch."""
    prefix = models.prefix_ids(tokenizer)
    prompts = [prefix + text_ids(tokenizer, text) for text in texts]
    rows = replies(model, tokenizer, prompts, max(new_tokens))
    return [
        tokenizer.decode(row[:most], skip_special_tokens=True)
        for row, most in zip(rows, new_tokens, strict=True)
    ]


def complete(
    model: nn.Module,
    tokenizer: Tokenizer,
    text: str,
    max_new_tokens: int,
    on_text: Callable[[str], None] | None = None,
) -> str:
    """The text that follows `text` as the document would go on, greedily; `on_text` as in ask()."""
    ids = models.prefix_ids(tokenizer) + text_ids(tokenizer, text)
    if not ids:
        raise UsageError("there is nothing to complete: the text is empty")
    return generate(model, tokenizer, ids, max_new_tokens, on_text)


def ask(
    model: nn.Module,
    tokenizer: Tokenizer,
    question: str,
    *,
    title: str,
    context: Callable[[int], str] | None = None,
    max_new_tokens: int,
    on_text: Callable[[str], None] | None = None,
) -> str:
    """The answer to a question about the document called `title`.

    context   gives text of the document that stands in the prompt too, of at most so many tokens
    on_text   is called with each piece of the answer as it is generated
    """
    if not question.strip():
        raise UsageError("the question is empty")
    text = ""
    if context is not None:
        left = room(tokenizer, title, question, models.window(model) - max_new_tokens)
        if left < 2:
            raise UsageError("the question and the answer leave no room for the document")
        text = context(left)
    ids = question_ids(tokenizer, title, text, question)
    return generate(model, tokenizer, ids, max_new_tokens, on_text)


def room(tokenizer: Tokenizer, title: str, question: str, window: int) -> int:
    """Tokens of the document that fit beside the question into a prompt of `window` tokens."""
    return window - len(question_ids(tokenizer, title, "...", question)) - 8


def question_ids(tokenizer: Tokenizer, title: str, text: str, question: str) -> list[int]:
    """The prompt of a question about the document called `title`, up to where the answer begins;
    `text` stands in it unless it is empty."""
    about = f'Please answer a question about "{title}".\n\n'
    prompt = (f"{about}{text}\n\n" if text else about) + f"Question: {question.strip()}"
    return prompt_ids(tokenizer, prompt, "\nAnswer:")


def prompt_ids(tokenizer: Tokenizer, prompt: str, cue: str) -> list[int]:
    """A user's turn and the beginning of the model's; without a chat template prompt + cue."""
    if tokenizer.chat_template:
        return chat_ids(tokenizer, [{"role": "user", "content": prompt}])
    return models.prefix_ids(tokenizer) + text_ids(tokenizer, prompt + cue)


def reply_ids(tokenizer: Tokenizer, reply: str) -> list[int]:
    """A reply behind prompt_ids() as the model should give it: its tokens and the end of its
    turn."""
    text = reply.strip() if tokenizer.chat_template else " " + reply.strip()
    return [*text_ids(tokenizer, text), *end_of_turn(tokenizer)]


def end_of_turn(tokenizer: Tokenizer) -> list[int]:
    """The token that ends the model's turn: the first special one that the chat template puts
    behind a reply, else the end of text; empty when the tokenizer has neither."""
    if tokenizer.chat_template:
        turns = [{"role": "user", "content": "?"}, {"role": "assistant", "content": "REPLY"}]
        pieces = chat_pieces(tokenizer, turns)
        last = max(n for n, (_, said) in enumerate(pieces) if said)
        behind = "".join(text for text, _ in pieces[last + 1 :])
        special = set(tokenizer.all_special_ids)
        special |= {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
        ids = tokenizer(behind, add_special_tokens=False)["input_ids"]
        if ends := [i for i in ids if i in special]:
            return ends[:1]
    return [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]


def generate(
    model: nn.Module,
    tokenizer: Tokenizer,
    ids: list[int],
    max_new_tokens: int,
    on_text: Callable[[str], None] | None = None,
) -> str:
    """The text that follows the prompt `ids`, greedily, up to the end of the model's turn.

    `on_text` is called with each piece as it comes; together they are the text.
    """
    models.check_tokens(model, ids)
    stream = None if on_text is None else _Stream(tokenizer, on_text)
    (reply,) = replies(model, tokenizer, [ids], max_new_tokens, streamer=stream)
    text = tokenizer.decode(reply, skip_special_tokens=True)
    if stream is not None:
        stream.say(text)
    return text


class _Stream:
    """A streamer of transformers' generate(): new tokens become pieces of text."""

    def __init__(self, tokenizer: Tokenizer, on_text: Callable[[str], None]):
        self.tokenizer, self.on_text = tokenizer, on_text
        self.ids: list[int] = []
        self.calls = self.said = 0  # said: characters given on

    def put(self, ids: Tensor) -> None:
        """The prompt first, then a token at a time."""
        if self.calls:
            # The newest may end the turn, which is known later; the last may be half a character.
            text = self.tokenizer.decode(self.ids, skip_special_tokens=True)
            self.say(text.rstrip("\ufffd"))
            self.ids += ids.flatten().tolist()
        self.calls += 1

    def end(self) -> None:
        pass

    def say(self, text: str) -> None:
        if len(text) > self.said:
            self.on_text(text[self.said :])
            self.said = len(text)


@torch.no_grad()
def replies(
    model: nn.Module,
    tokenizer: Tokenizer,
    prompts: Sequence[list[int]],
    new_tokens: int,
    *,
    worth: int | None = None,
    top_p: float | None = None,
    streamer: Any = None,
) -> list[list[int]]:
    """The tokens that follow each prompt, greedily and in one batch: at most `new_tokens`, up to
    the one that ends the model's turn.

    Nothing of the model's generation_config counts but the tokens that end a turn: no penalty,
    no forced or forbidden token, no length, no beams. Of prompts that begin alike with at least
    `worth` tokens (SHARED), such as a document, these are read once. With top_p the tokens are
    drawn at temperature 1 from the likeliest that have this probability together, by torch's own
    random numbers.
    """
    from transformers import GenerationConfig

    causal = models.causal_lm(model)
    own, end, pad = causal.generation_config, tokenizer.eos_token_id, tokenizer.pad_token_id
    # Not every model has a generation_config.
    given = getattr(own, "eos_token_id", None)
    ends = end if given is None else given
    pad = (0 if end is None else end) if pad is None else pad
    width, shared = max(map(len, prompts)), alike(prompts)
    many = len(prompts) > 1 and shared >= (SHARED if worth is None else worth)
    shared = shared if many and keeps_a_cache(model) else 0
    gaps = [width - len(prompt) for prompt in prompts]
    # Padded before what is not shared.
    rows = [p[:shared] + [pad] * gap + p[shared:] for p, gap in zip(prompts, gaps, strict=True)]
    seen = [[1] * shared + [0] * gap + [1] * (width - shared - gap) for gap in gaps]
    device = next(model.parameters()).device
    ids, mask = (torch.tensor(x, device=device) for x in (rows, seen))
    options: dict = dict(max_new_tokens=new_tokens, do_sample=False, use_cache=True)
    if top_p is not None:
        options |= dict(do_sample=True, temperature=1.0, top_p=top_p, top_k=0)
    options |= {} if streamer is None else {"streamer": streamer}
    causal.generation_config = GenerationConfig(eos_token_id=ends, pad_token_id=pad)
    try:
        with models.evaluating(model):
            if shared:
                options["past_key_values"] = read_once(model, ids[:1, :shared], len(prompts))
            out = causal.generate(input_ids=ids, attention_mask=mask, **options)
    finally:
        causal.generation_config = own
    stops = set(ends) if isinstance(ends, (list, tuple)) else {ends}
    new = out[:, width:].tolist()
    return [row[: next((n for n, t in enumerate(row) if t in stops), None)] for row in new]


def read_once(model: nn.Module, ids: Tensor, rows: int) -> Any:
    """The cache of a model that has read ids int64 [1, n], for so many rows that begin with them;
    for a model that keeps_a_cache()."""
    cache = models.body(model)(input_ids=ids, use_cache=True).past_key_values
    cache.batch_repeat_interleave(rows)
    return cache


def alike(prompts: Sequence[Sequence[int] | np.ndarray]) -> int:
    """Tokens that all prompts begin with; at least one is left of each."""
    columns = enumerate(zip(*(p[:-1] for p in prompts), strict=False))
    return next((n for n, c in columns if len(set(c)) > 1), min(map(len, prompts)) - 1)
