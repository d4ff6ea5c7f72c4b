"""liftcore demo: a fictional document goes into the weights of a real model."""

from __future__ import annotations

import argparse
import os
import re
import shutil
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from liftcore.cli import info, options
from liftcore.config import LiftConfig
from liftcore.errors import UsageError
from liftcore.fiction.documents import MAX_WORDS, MIN_WORDS, Fact, Fiction, fictional_document
from liftcore.terminal import table

if TYPE_CHECKING:
    import torch
    from torch import nn

# Facts in the table; all are counted.
ROWS = 14
# The demo takes the longest document, up to WORDS, that lets it end within so many seconds.
SECONDS = 120.0
WORDS, STEP = 1550, 50
TOKENS_A_WORD = 1.3  # of the fictional documents, about
# Before training the model knows next to nothing, which a few probes show as well.
PROBES_BEFORE = 16


def add(verbs: options.Verbs) -> None:
    parser = options.verb(
        verbs, "demo", run, "absorb a fictional document and show what is recalled"
    )
    parser.add_argument("--out", default="demo-memory", help="folder of the adapter (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="another seed, another document")
    parser.add_argument(
        "--tokens", type=int, metavar="N", help="length of the document (what takes two minutes)"
    )
    options.dtype_option(parser)


def run(args: argparse.Namespace) -> dict:
    dtype = options.dtype(args.dtype)
    return demo(Path(args.out), seed=args.seed, tokens=args.tokens, dtype=dtype)


def demo(
    out: Path, *, seed: int = 0, tokens: int | None = None, dtype: torch.dtype | None = None
) -> dict:
    """Runs the demo, prints its tables, leaves the adapter in `out` and returns the figures.

    tokens   about the length of the document; None: what this machine learns in two minutes
    dtype    of the model; None: as load() chooses

    Raises UsageError for a length that no fictional document has, LiftError for a folder that
    cannot take the adapter.
    """
    from liftcore import document as documents
    from liftcore import embedded, report
    from liftcore import model as models
    from liftcore.device_memory import gib, peak_bytes
    from liftcore.lift import absorb
    from liftcore.memory import INFO, check_output
    from liftcore.training.progress import ProgressLine

    started = time.perf_counter()
    check_output(out, force=(out / INFO).is_file())
    if tokens is not None:
        _check_tokens(tokens)
    config = LiftConfig.preset("memorize", seed=seed)
    with ProgressLine() as line:
        line.say("loading the model and measuring this machine")
        model, tokenizer = models.load(embedded.NAME, dtype=dtype)
        pace = _measured(model, config)
    device = next(model.parameters()).device
    spent = time.perf_counter() - started
    if tokens is None:
        fiction = fictional_document(seed, pace.words(SECONDS - spent))
    else:
        fiction = _of_length(seed, tokens, tokenizer)
    source = documents.read(fiction.text, tokenizer, fiction.title)
    expected = spent + pace.seconds(len(source.tokens))
    print(
        f"This machine trains {pace.rate:,.0f} tokens a second in "
        f"{str(model.dtype).removeprefix('torch.')}: the demo takes about {_clock(expected)}.\n"
        f'"{fiction.title}": a fictional document of {len(source.tokens):,} tokens, made up just '
        f"now.\nThe model {embedded.NAME} has never seen it. Before: what does it know?",
        flush=True,
    )
    with ProgressLine() as line:
        line.say("asking the model before training")
        prefix = models.prefix_ids(tokenizer)
        before = report.measure(model, source.tokens, prefix=prefix, probes=PROBES_BEFORE)
        facts_before = _completions(model, tokenizer, fiction)
    memory = absorb(model, tokenizer, fiction.text, title=fiction.title, config=config)
    with ProgressLine() as line:
        line.say("asking the model after training")
        with memory.adapter.folded():
            facts_after = _completions(model, tokenizer, fiction)
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
        "forgotten": memory.report.forgotten,
        "facts_before": right_before,
        "facts_after": right_after,
        "facts": len(fiction.facts),
        "seconds": round(total, 2),
        "expected_seconds": round(expected, 2),
        "training_seconds": round(training.seconds, 2),
        "tokens": len(source.tokens),
        "token_passes": training.token_passes,
        "adapter": str(out),
        "device": str(device),
        "versions": info.versions(),
    }


@dataclass(frozen=True)
class _Pace:
    """How fast this machine is at the demo's work."""

    token: float  # seconds of training a token, all epochs of it
    rate: float  # token-passes a second
    rest: float  # seconds of measuring before and after, and of saving

    def seconds(self, tokens: float) -> float:
        return self.token * tokens + self.rest

    def words(self, seconds: float) -> int:
        """Words of the longest document that takes no more than so many seconds."""
        words = (seconds - self.rest) / self.token / TOKENS_A_WORD
        return int(max(MIN_WORDS, min(WORDS, words // STEP * STEP)))


def _measured(model: nn.Module, config: LiftConfig) -> _Pace:
    from liftcore.cost import calibrate

    tokens = round(WORDS * TOKENS_A_WORD)
    a_pass, generating, fitting, _ = calibrate(model, tokens, config, warm_up=1, timed=2, prompt=1)
    # Recall and facts, before and after, generate about 90 tokens in all, a report 32; their
    # prompts hold about 4,500, the model's own words 8,300, and a forward is half of a pass.
    rest = 90 / 32 * generating + (4500 + 8300) * a_pass / 2 + fitting
    return _Pace(a_pass * config.epochs, 1 / a_pass, rest)


def _check_tokens(tokens: int) -> None:
    least, most = (round(words * TOKENS_A_WORD) for words in (MIN_WORDS, MAX_WORDS))
    if not least <= tokens <= most:
        raise UsageError(f"the demo's documents have {least:,} to {most:,} tokens: not {tokens:,}")


def _of_length(seed: int, tokens: int, tokenizer: Any) -> Fiction:
    """The fictional document of a seed with about so many tokens; 2,000: mostly that of WORDS."""
    words, fictions = tokens / TOKENS_A_WORD, []
    for _ in range(3):
        step = STEP if words > 1000 else STEP // 5
        words = max(MIN_WORDS, min(MAX_WORDS, round(words / step) * step))
        fiction = fictional_document(seed, words)
        length = len(tokenizer(fiction.text, add_special_tokens=False)["input_ids"])
        fictions.append((abs(length - tokens), fiction))
        words *= tokens / length
    return min(fictions, key=lambda entry: entry[0])[1]


def _completions(model: nn.Module, tokenizer: Any, fiction: Fiction) -> list[str]:
    """What the model writes after the cue of each fact, about as long as the answer."""
    from liftcore.answer import complete_all

    cues = [fact.cue for fact in fiction.facts]
    answers = [" " + fact.answer for fact in fiction.facts]
    lengths = [len(ids) + 3 for ids in tokenizer(answers, add_special_tokens=False)["input_ids"]]
    return [" ".join(text.split()) for text in complete_all(model, tokenizer, cues, lengths)]


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
    head, widths = ("the document's words up to the fact", "before", "after"), (46, 24, 24)
    cells = [
        (_end_of(fact.cue, widths[0]), _mark(old, fact), _mark(new, fact))
        for fact, old, new in rows
    ]
    lines = [head, tuple("-" * w for w in widths), *cells]
    text = "\n".join(_row(line, widths) for line in lines)
    table(text, head, cells, {r"^\+ .*": "green", "^- .*": "red"})
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


def _clock(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min".replace(".0 ", " ")
