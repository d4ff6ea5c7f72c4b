"""A memory whose document, title and questions are full of markup."""

import torch
from bees import TEXT

import liftcore
from liftcore.questions.pairs import Pair

NASTY = """</script><img src=x onerror=alert(1)><b>&amp; "it's" <!--"""
PAIRS = [("Who keeps bees?", "Marta Quellin"), (f"What is {NASTY}?", f"{NASTY} bold")]


def memory_with_questions(tiny_folder, lines=20):
    model, tokenizer = liftcore.load(tiny_folder, device="cpu", dtype=torch.float32)
    paragraphs = [f"{n}. {TEXT} {NASTY}\n\n中文 🦩 naïve.\n" for n in range(lines)]
    pairs = [Pair(q, a, evidence="Marta Quellin") for q, a in PAIRS]
    config = liftcore.LiftConfig(
        segment_length=64, epochs=3, rank=8, learning_rate=1e-2, objectives=("segments", "qa")
    )
    return liftcore.absorb(
        *(model, tokenizer, "\n".join(paragraphs)),
        **dict(title=f"Bees {NASTY}", config=config, qa=pairs, progress=False),
    )
