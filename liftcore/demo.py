"""The demo: a fictional document goes into the weights of a real model."""

from __future__ import annotations

import os
import re
import shutil
import sys
import time
from pathlib import Path

import torch

from liftcore import document as documents
from liftcore import embedded, info, report
from liftcore import model as models
from liftcore.answer import complete
from liftcore.config import LiftConfig
from liftcore.fiction import Fact, Fiction, fictional_document
from liftcore.lift import absorb
from liftcore.memory import INFO, check_output
from liftcore.usage import gib, peak_bytes

# Facts in the table; all are counted.
ROWS = 14


def demo(out: Path, *, seed: int = 0) -> dict:
    """Runs the demo, prints its tables, leaves the adapter in `out` and returns the figures."""
    started = time.perf_counter()
    check_output(out, force=(out / INFO).is_file())
    model, tokenizer = models.load(embedded.NAME)
    device = next(model.parameters()).device
    fiction = fictional_document(seed)
    source = documents.read(fiction.text, tokenizer, fiction.title)
    config = LiftConfig(seed=seed)
    print(
        f'"{fiction.title}": a fictional document of {len(source.tokens):,} tokens, made up just '
        f"now.\nThe model {embedded.NAME} has never seen it. Before: what does it know?"
    )
    _say("asking the model before training")
    prefix = models.prefix_ids(tokenizer)
    before = report.measure(model, source.tokens, prefix=prefix)
    facts_before = [_completion(model, tokenizer, fact) for fact in fiction.facts]
    memory = absorb(model, tokenizer, fiction.text, title=fiction.title, config=config)
    _say("asking the model after training")
    facts_after = [_completion(model, tokenizer, fact) for fact in fiction.facts]
    memory.save(out, force=True)
    right_before = _count(fiction, facts_before)
    right_after = _count(fiction, facts_after)
    _table(fiction, facts_before, facts_after)
    training = memory.training
    total = time.perf_counter() - started
    print(
        f"\nfacts completed exactly: {right_before} of {len(fiction.facts)} before, "
        f"{right_after} of {len(fiction.facts)} after\n"
        f"recall before {before.recall:.1%}\nafter: {memory.report.text()}\n\n"
        f"training {training.seconds:.0f} s for {training.token_passes:,} token-passes "
        f"({training.token_passes / training.seconds:,.0f} tokens/s), all in all {total:.0f} s; "
        f"peak memory {gib(peak_bytes(device))}\n"
        f"device {device} ({info.device_name(device)})\n"
        f"adapter in {out}\n\nnext:\n"
        f'  {_command()} ask {out} --complete "{min((f.cue for f in fiction.facts), key=len)}"\n'
        f"  {_command()} absorb YOUR-FILE.txt --out my-memory"
    )
    return {
        "recall_before": before.recall,
        "recall_after": memory.report.recall,
        "facts_before": right_before,
        "facts_after": right_after,
        "facts": len(fiction.facts),
        "seconds": round(total, 2),
        "training_seconds": round(training.seconds, 2),
        "tokens": len(source.tokens),
        "token_passes": training.token_passes,
        "adapter": str(out),
        "device": str(device),
        "versions": info.versions(),
    }


@torch.no_grad()
def _completion(model, tokenizer, fact: Fact) -> str:
    """What the model writes after the fact's cue, about as long as the answer."""
    length = len(tokenizer(" " + fact.answer, add_special_tokens=False)["input_ids"])
    return " ".join(complete(model, tokenizer, fact.cue, length + 3).split())


def is_right(completion: str, answer: str) -> bool:
    """Whether the completion begins with the answer, word for word."""
    return re.match(re.escape(answer) + r"(?!\w)", completion) is not None


def _count(fiction: Fiction, completions: list[str]) -> int:
    return sum(is_right(c, f.answer) for f, c in zip(fiction.facts, completions, strict=True))


def _table(fiction: Fiction, before: list[str], after: list[str]) -> None:
    every = max(1, len(fiction.facts) // ROWS)
    rows = list(zip(fiction.facts, before, after, strict=True))[::every][:ROWS]
    print(
        "\nWith no document in the prompt, the model goes on with these words "
        f"({len(rows)} of {len(fiction.facts)} facts):\n"
    )
    widths = (46, 24, 24)
    print(_row(("the document's words up to the fact", "before", "after"), widths))
    print(_row(tuple("-" * w for w in widths), widths))
    for fact, old, new in rows:
        cells = (_end_of(fact.cue, widths[0]), _mark(old, fact), _mark(new, fact))
        print(_row(cells, widths))
    print("\n+ the fact exactly as in the document, - something else")


def _end_of(cue: str, width: int) -> str:
    """The last whole words of a cue that fit."""
    words = cue.split()
    while len(" ".join(words)) > width - 2:
        del words[0]
    return "… " + " ".join(words)


def _mark(completion: str, fact: Fact) -> str:
    if is_right(completion, fact.answer):
        return "+ " + fact.answer
    return "- " + completion[: max(8, len(fact.answer) + 4)]


def _row(cells: tuple[str, ...], widths: tuple[int, ...]) -> str:
    return "  ".join(c[:w].ljust(w) for c, w in zip(cells, widths, strict=True)).rstrip()


def _command() -> str:
    """liftcore as the user can type it: the name when it is on the PATH, else the path."""
    if shutil.which("liftcore") or not sys.argv[0].endswith("liftcore"):
        return "liftcore"
    return os.path.relpath(sys.argv[0])


def _say(text: str) -> None:
    if sys.stderr.isatty():
        print(f"{text} …", file=sys.stderr)
