"""How often a question goes to the right one of ten memories, or rightly to none of them.

python -m bench selection

Nothing is trained: what chooses a memory sees the documents alone. Three are invented, of three
kinds, whose questions avoid the text's own words; seven are pages of this repository, with
questions written for it. The general questions have nothing to do with any of them.
"""

from __future__ import annotations

import argparse
import json
import platform
from pathlib import Path

import numpy as np

from bench.common import RESULTS
from bench.understand.general import GENERAL
from liftcore.fiction.documents import fictional_document, questions
from liftcore.questions.choice import MATCH, Documents

ROOT = Path(__file__).resolve().parent.parent
DRAWS = (0, 10, 20)  # first seeds of the invented documents
WORDS = 450
THRESHOLDS = (0.4, 0.6, 0.7, 0.8, 0.9, 1.0, 1.2)
# Page -> questions on it.
PAGES: dict[str, tuple[str, ...]] = {
    "docs/card.md": (
        "How long does the benchmark for a graphics card take?",
        "Which part of the half hour on a card comes first?",
        "What should be built with nvcc before the card is rented?",
        "Where do the rows of the profile of a replayed step go?",
        "What does the archive option of bench gpu do?",
        "What to change first when the kernels are slow on the card?",
    ),
    "docs/drop-in.md": (
        "How do I use liftcore under the Trainer of Hugging Face?",
        "Can an adapter be served with vLLM?",
        "What does accelerate replace in a PEFT model?",
        "How is restore used after training with PEFT?",
        "Does the official LIFT code run faster with it?",
        "How do I call linear_cross_entropy in a loop of my own?",
    ),
    "SECURITY.md": (
        "Is trust_remote_code ever set?",
        "What happens to terminal escape sequences in a text?",
        "Where does the key of a server come from?",
        "How are pickled base models read?",
        "What is the largest document that is accepted?",
        "Is an adapter that somebody else made checked?",
    ),
    "LICENSE": (
        "Does each contributor grant a patent license?",
        "What must be done with the NOTICE file when redistributing derivative works?",
        "May I charge a fee for accepting warranty or support?",
        "Who may use the trademarks of the licensor?",
        "When do patent licenses terminate because of litigation?",
        "What does Contribution mean?",
    ),
    "docs/design.md": (
        "Which folder holds what is put under a model and taken off again?",
        "Where is the weight of a token decided?",
        "How many shapes of CUDA graphs are captured?",
        "What happens when the memory for a step runs out?",
        "In which direction do imports run?",
        "What is a sample made of?",
    ),
    "CONTRIBUTING.md": (
        "How do I add an objective?",
        "Why was markitdown not chosen to read documents?",
        "What does make lint run?",
        "How long may a file be?",
        "How are Triton kernels tested without a GPU?",
        "Where do the rows of a new benchmark go?",
    ),
    "docs/guide.md": (
        "How does one resume an interrupted run?",
        "What does the forgetting budget do?",
        "Which formats of files can be read?",
        "How do I export a memory for llama.cpp?",
        "How can questions be made by an OpenAI-compatible server?",
        "What is the preset understand for?",
    ),
}


def drawn(seed: int) -> list[tuple[str, tuple[str, ...]]]:
    """Ten documents, each its text with the title, and the questions on it."""
    invented = [fictional_document(seed + kind, WORDS) for kind in range(3)]
    told = [
        (f"{each.title}\n{each.text}", tuple(q.question for q in questions(each)))
        for each in invented
    ]
    pages = [(f"{name}\n{(ROOT / name).read_text()}", asked) for name, asked in PAGES.items()]
    return told + pages


def measure(seed: int) -> dict:
    """What becomes of all questions, at each threshold."""
    ten = drawn(seed)
    documents = Documents([text for text, _ in ten])
    own = [(i, documents.ranked(q)[0]) for i, (_, asked) in enumerate(ten) for q in asked]
    other = np.array([documents.ranked(question)[0][1] for question, _ in GENERAL])
    scores = np.array([score for _, (_, score) in own])
    right = np.array([best == i for i, (best, _) in own])
    at = [
        {
            "threshold": threshold,
            "own_to_base": int((scores < threshold).sum()),
            "own_to_another": int(((scores >= threshold) & ~right).sum()),
            "general_to_memory": int((other >= threshold).sum()),
        }
        for threshold in THRESHOLDS
    ]
    return {"seed": seed, "own": len(own), "general": len(other), "at": at}


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench selection", description=__doc__)
    parser.add_argument("--out", type=Path, default=RESULTS / "cpu-epyc")
    args = parser.parse_args(argv)
    draws = [measure(seed) for seed in DRAWS]
    own, general = (sum(draw[name] for draw in draws) for name in ("own", "general"))
    print(f"{own} questions on the documents, {general} others")
    print(f"{'threshold':>9}  {'own: none':>9}  {'own: another':>12}  {'others: one':>11}")
    for i, threshold in enumerate(THRESHOLDS):
        names = ("own_to_base", "own_to_another", "general_to_memory")
        counts = [sum(draw["at"][i][name] for draw in draws) for name in names]
        mark = " <" if threshold == MATCH else ""
        print(f"{threshold:>9}  {counts[0]:>9}  {counts[1]:>12}  {counts[2]:>11}{mark}")
    result = {
        "command": "python -m bench selection",
        "match": MATCH,
        "draws": draws,
        "python": platform.python_version(),
    }
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "selection.json").write_text(json.dumps(result, indent=1) + "\n")
    return 0
