"""One case of the understanding benchmark: train for a given work, then ask."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from bench.evaluations.metrics import contains
from bench.recall import probes
from bench.understand.answers import CONTEXTS, answers, score
from bench.understand.documents import Told
from bench.understand.general import GENERAL
from bench.understand.lines import CHATS, KEEPING, Case
from bench.understand.train import train_for
from liftcore import answer, beginning, report
from liftcore.layers.lora import Adapter, own_adapter_after
from liftcore.model import prefix_ids
from liftcore.objectives.forgetting import Forgetting
from liftcore.questions import own_words, retrieval
from liftcore.questions.own_words import OwnWords
from liftcore.questions.pairs import GivenPairs
from liftcore.questions.quizzes import content_words
from liftcore.questions.self_study import SelfStudy
from liftcore.tokens import text_ids
from liftcore.truncation import truncate

NEW_TOKENS = 24
PROBES = 16
# The part of the document that a truncated prompt holds, half of it from each end.
SHOWN = 0.5


def run(
    case: Case,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    told: Told,
    seconds: float,
) -> dict:
    """Trains and measures one case -> a row for the file. The model is left as it was."""
    row = {"key": case.key, "document": case.document, "seed": case.seed, "line": case.line.name}
    threads = torch.get_num_threads()
    # CPU time is only a clock when one thread does the work.
    torch.set_num_threads(1)
    try:
        if not case.line.trained:
            return {**row, **measure(model, tokenizer, told, contexts=CONTEXTS)}
        config = case.line.config(case.seed)
        with own_adapter_after(model):
            adapter = Adapter.of(model, config)
            made = config.adapter_init == "document" or "replay" in config.objectives
            own = own_apart(model, tokenizer, config.replay_rows) if made else []
            tokens = [told.document.tokens]
            against = own[: case.line.own or beginning.ROWS]
            begun = beginning.begin(adapter, tokenizer, tokens, config, own=against)
            row["starting"] = round(begun, 2)
            held_out = own_words.held_out(model, tokenizer)
            forgetting = Forgetting(model, held_out) if held_out else None
            adapter.install()
            trained = train_for(
                seconds,
                model,
                tokenizer,
                adapter,
                told.document,
                config,
                sources(case, model, tokenizer, told),
                own,
                forgetting,
            )
            if forgetting is not None:
                row["forgotten"] = round(forgetting.rise(), 4)
            row["config"] = {k: v for k, v in dataclasses.asdict(config).items() if k != "seed"}
            row["training"] = dataclasses.asdict(trained)
            alone = case.line in (*CHATS, *KEEPING)
            contexts = CONTEXTS[:1] if alone else CONTEXTS[:3]
            measured = measure(model, tokenizer, told, contexts=contexts, seed=case.seed)
            return {**row, **measured}
    finally:
        torch.set_num_threads(threads)


def own_apart(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, count: int
) -> list[OwnWords]:
    """At most so many rows of the model's own words, none with a content word of the general
    questions or their answers: what is asked for is not practised."""
    asked = set().union(*(content_words(f"{q} {a}") for q, a in GENERAL))
    rows = own_words.rows(model, tokenizer, 2 * count)
    words = [content_words(str(tokenizer.decode(r.tokens, skip_special_tokens=True))) for r in rows]
    return [row for row, said in zip(rows, words, strict=True) if not said & asked][:count]


def sources(
    case: Case, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, told: Told
) -> list:
    """Where the pairs of a case come from."""

    def made(kind: str) -> GivenPairs | SelfStudy:
        if kind == "given":
            return GivenPairs(told.given)
        # "self:quiz,gap": these kinds of self-study.
        return SelfStudy(
            model,
            tokenizer,
            told.document.text,
            kinds=tuple(kind.removeprefix("self:").split(",")),
        )

    return [made(kind) for kind in case.line.pairs]


def measure(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    told: Told,
    contexts: Sequence[str],
    seed: int = 0,
) -> dict:
    """What the model answers with no document in the prompt, with half of it, with the passages
    that hold most of the question's words, and with all of it; what it recalls, and what it has
    forgotten."""
    started = time.process_time()
    row: dict[str, Any] = {"kinds": [q.kind for q in told.questions], "answers": {}}
    for context in contexts:
        replies = ask(model, tokenizer, told, context)
        scores = [score(q, r) for q, r in zip(told.questions, replies, strict=True)]
        row["answers"][context] = {
            "right": [right for right, _ in scores],
            "f1": [round(f1, 3) for _, f1 in scores],
            "replies": replies,
        }
    prefix = prefix_ids(tokenizer)
    tokens = told.document.tokens
    recall = report.measure(model, tokens, prefix=prefix, probes=PROBES, seed=seed).recall
    general = general_answered(model, tokenizer)
    assert recall is not None  # the document is long enough
    return {
        **row,
        "recall": round(recall, 4),
        "general": general,
        "general_of": len(GENERAL),
        **probes.forgetting(model, tokenizer),
        "asking": round(time.process_time() - started, 2),
    }


def ask(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, told: Told, context: str
) -> list[str]:
    """The replies to all questions on a document."""
    texts = shown(tokenizer, told, context)
    title = told.document.title
    prompts = [
        answer.question_ids(tokenizer, title, text, q.question)
        for q, text in zip(told.questions, texts, strict=True)
    ]
    return answers(model, tokenizer, prompts, NEW_TOKENS)


def shown(tokenizer: PreTrainedTokenizerBase, told: Told, context: str) -> list[str]:
    """What of the document stands in the prompt of each question."""
    if context == "passages":
        index = retrieval.SentenceIndex(told.document.text)
        room = len(told.document.tokens)

        def count(text: str) -> int:
            return len(text_ids(tokenizer, text))

        return [
            index.passages(q.question, room, count, most=retrieval.MOST) for q in told.questions
        ]
    return len(told.questions) * [_beside(tokenizer, told, context)]


def _beside(tokenizer: PreTrainedTokenizerBase, told: Told, context: str) -> str:
    if context == "none":
        return ""
    if context == "whole":
        return told.document.text
    tokens = told.document.tokens.tolist()
    return truncate(tokenizer, tokens, int(SHOWN * len(tokens)))


def general_answered(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> int:
    """How many of the general questions get an answer that holds the right one."""
    prompts = [answer.prompt_ids(tokenizer, q, "\nAnswer:") for q, _ in GENERAL]
    replies = answers(model, tokenizer, prompts, NEW_TOKENS)
    right = [max(contains(r, w) for w in known.split("|")) for r, (_, known) in
             zip(replies, GENERAL, strict=True)]  # fmt: skip
    return int(sum(right))
