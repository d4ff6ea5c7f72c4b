"""Helpers of the tests of distillation: a document, a tokenizer, a model, and what is right."""

import numpy as np
import torch
from tiny import tiny_model

from liftcore.objectives.teacher import Reading

TEXT = " ".join(
    f"The keeper of lamp {n} is called {name} and she counts {3 * n + 2} boats."
    for n, name in enumerate(["Ada", "Berta", "Clara", "Dora", "Elsa", "Frida"])
)


class Letters:
    """A tokenizer with a token a letter."""

    chat_template, eos_token_id, pad_token_id = None, 2, 0

    def __init__(self, bos=True):
        self.bos_token_id = 1 if bos else None

    def __call__(self, text, add_special_tokens=True, **options):
        bos = [1] if add_special_tokens and self.bos_token_id else []
        return {"input_ids": bos + [3 + ord(c) % 200 for c in text]}

    def decode(self, ids, **options):
        return "".join(chr(i - 3) for i in ids if i > 2)


def lively(family="llama", seed=0, **changes):
    """A tiny model that is not indifferent to what it reads."""
    model = tiny_model(family, seed=seed, max_position_embeddings=640, **changes)
    for p in model.parameters():
        if p.ndim == 2:
            p.data.mul_(4)
    return model


def assert_taught(ids, probs, model, context):
    """One token's targets against the model's own logits behind `context` and a full softmax."""
    logits = model(input_ids=torch.tensor([list(map(int, context))])).logits[0, -1]
    right = logits.double().softmax(-1)
    ours = torch.tensor(probs).double()
    close = dict(rtol=2e-3, atol=1e-6)
    # The k highest, each with the probability of its own id: equal ones may change places.
    assert torch.allclose(ours, right.topk(len(ids)).values, **close)
    assert torch.allclose(ours, right[torch.tensor(ids).long()], **close)
    assert len(set(ids.tolist())) == len(ids)


def random_readings(rng, lengths):
    return [
        Reading(rng.integers(0, 211, n).astype(np.int32), int(rng.integers(1, n))) for n in lengths
    ]
