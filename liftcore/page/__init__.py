"""A memory as one page to look at: what it recalls word by word, what it answers, how it was made.

The page is one file that loads nothing; its own script and style are named by their hashes.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

from liftcore.adapter import alone_with
from liftcore.files import write_atomically
from liftcore.layers.lora import without_adapter
from liftcore.memory import Memory
from liftcore.model import prefix_ids
from liftcore.page.asked import ask_some
from liftcore.page.forced import forced
from liftcore.page.html import html
from liftcore.page.pieces import pieces
from liftcore.page.words import Seen
from liftcore.tokens import text_ids

QUESTIONS = 48


def write_page(
    memory: Memory,
    file: str | Path,
    *,
    questions: int = QUESTIONS,
    command: str = "",
    say: Callable[[str, int, int], None] = lambda what, done, of: None,
) -> Path:
    """Writes the page of a memory: its text by the probability of each token, with the adapter and
    without it, and at most `questions` of those it was trained on, asked once more.

    command   the command that makes such a memory again
    say       hears what is being done, how much of it is done, and of how much

    A memory without its document has a page without the text. Raises LiftError when the file
    cannot be written.
    """
    model, seen = memory.model, Seen()
    with alone_with(model):
        memory.adapter.install()
        if memory.text is not None:
            ids = text_ids(memory.tokenizer, memory.text)
            seen.pieces = pieces(memory.tokenizer, ids)
            read = partial(forced, model, np.asarray(ids), prefix=prefix_ids(memory.tokenizer))
            with without_adapter(model):
                seen.before = read(say=partial(say, "reading the document without the adapter"))
            with memory.adapter.folded():
                seen.after = read(say=partial(say, "reading the document"))
        with memory.adapter.folded():
            seen.asked = ask_some(memory, questions, partial(say, "asking its questions"))
    text = html(memory, seen, command)
    write_atomically(Path(file), lambda to: to.write_text(text, "utf-8", newline="\n"))
    return Path(file)
