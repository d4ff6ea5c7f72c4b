"""Own words of a tiny model, put where they are kept instead of being made."""

from contextlib import suppress

import torch

import liftcore
from liftcore.beginning import ROWS
from liftcore.config import LiftConfig
from liftcore.errors import LiftError
from liftcore.questions.own_words import HELD_OUT, Maker
from liftcore.tokens import text_ids


def keep(folder):
    """Rows enough for every run with this folder's model and the cache folder as it stands.

    With the vocabulary of a real model they take a minute to write, and a random one's mean no
    more than these. tests/questions/test_own_words.py tests how they are made.
    """
    rows = HELD_OUT + max(ROWS, LiftConfig().replay_rows)
    # The key is that of the rounded weights.
    for dtype in (torch.float32, torch.bfloat16):
        model, tokenizer = liftcore.load(folder, device="cpu", dtype=dtype)
        maker = Maker(model, tokenizer)
        if len(maker.known) >= rows:
            continue
        for n in range(rows):
            question = f"What is {n}?" if tokenizer.chat_template else ""
            maker.known.append((question, text_ids(tokenizer, f"It is {n} boats.")))
        maker.chunks += 1
        if maker.file is not None:
            with suppress(LiftError):  # a folder that cannot be written: they are made each time
                maker.write(maker.file)
