"""The base model's own words: short questions that it writes itself, and its own replies to them.

They stand for what the model knew before a document was trained into it: trained on again they
keep it (objectives/replay.py), held out they tell how much of it is lost.

The model goes on with the user's turn of its chat template from a few openings (temperature 1,
top-p 0.95), then replies greedily. Without a chat template it writes from the beginning of text.
Rows are made in chunks, each a left-padded batch, and kept in the cache folder of liftcore under
the model's fingerprint: they do not depend on a document. Those of the embedded model are shipped.

    python -m liftcore.questions.own_words --rows 576 --out FILE    # makes a file to ship
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import time
import warnings
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from liftcore import locks
from liftcore import model as models
from liftcore.answer import end_of_turn, replies
from liftcore.device_memory import out_of_memory
from liftcore.embedded import cache_folder
from liftcore.errors import LiftError
from liftcore.files import write_atomically
from liftcore.layers.attention import own_attention
from liftcore.layers.determinism import any_algorithm
from liftcore.layers.lora import without_adapter
from liftcore.questions.cache import fingerprint
from liftcore.tokens import Tokenizer, chat_ids, text_ids, user_turn_ids

# Tokens of a question, its opening included, and of a reply, the end of the turn included.
QUESTION, REPLY = 16, 12
TOP_P = 0.95
# The first rows are never trained on: the loss on them tells what a run forgets.
HELD_OUT = 64
# Rows that are drawn in one batch. Another number gives other rows.
CHUNK = 128
# Chunks in a row that may bring no new row.
FRUITLESS = 3
SEED = 0
OPENINGS = (
    *("", "What", "How", "Who", "Why", "Where", "When", "Which"),
    *("Is", "Can you", "Do", "Tell me", "Give me", "Write", "Explain", "Name"),
)
VERSION = 1  # of what a key stands for
SHIPPED = Path(__file__).with_name("own_words_smollm2.json")


@dataclass(frozen=True)
class OwnWords:
    """A row in the model's own form: prompt and reply."""

    tokens: np.ndarray  # int64 [n], the whole row as the template gives it
    reply_start: int  # number of the reply's first token, at least 1


@dataclass(frozen=True)
class Collection:
    """rows are to be trained on, held_out never; seconds: what making them took this time."""

    rows: list[OwnWords]
    held_out: list[OwnWords]
    seconds: float


def rows(model: nn.Module, tokenizer: Tokenizer, count: int, **options: Any) -> list[OwnWords]:
    """The first `count` rows to train on; the options and errors are those of collect()."""
    return collect(model, tokenizer, count, **options).rows


def collect(
    model: nn.Module,
    tokenizer: Tokenizer,
    count: int,
    *,
    kept_in: Path | None = None,
    say: Callable[[str, int, int], None] = lambda what, done, of: None,
) -> Collection:
    """`count` rows to train on, and HELD_OUT others, of the model as it is without an adapter.

    The same model always gives the same rows, and more of them begin with the fewer. What is
    missing is made and kept in `kept_in` (folder()), a chunk at a time, so that a killed
    run goes on. `say` hears how many there are. Raises LiftError when the model writes too few
    rows that differ.
    """
    maker = Maker(model, tokenizer, kept_in)
    maker.make(HELD_OUT + count, say)
    trained = maker.rows(HELD_OUT, HELD_OUT + count)
    return Collection(trained, maker.rows(0, HELD_OUT), maker.seconds)


def held_out(model: nn.Module, tokenizer: Tokenizer) -> list[OwnWords]:
    """The rows that are never trained on where they are known already, else none."""
    maker = Maker(model, tokenizer)
    return maker.rows(0, HELD_OUT) if len(maker.known) >= HELD_OUT else []


def folder() -> Path | None:
    """Where own words are kept; None for a user without a folder for caches."""
    with suppress(LiftError):
        return cache_folder() / "own-words"
    return None


class Maker:
    """The rows of a model that are known, shipped or in `kept_in`, and the making of more.

    known    a question and the tokens of its reply each; the question is "" without a chat
             template
    seconds  what making took
    """

    def __init__(self, model: nn.Module, tokenizer: Tokenizer, kept_in: Path | None = None):
        self.model, self.tokenizer = model, tokenizer
        with without_adapter(model):
            own = fingerprint(model, with_dtype=False)
        # What a row begins with.
        form = tokenizer.chat_template or models.prefix_ids(tokenizer)
        self.key = hashlib.sha256(f"{VERSION} {own} {form}".encode()).hexdigest()
        place = kept_in or folder()
        self.file = None if place is None else place / f"{self.key[:32]}.json"
        self.known: list[tuple[str, list[int]]] = []
        self.chunks, self.seconds = 0, 0.0
        self._read(SHIPPED)
        self._read(self.file)

    def _read(self, file: Path | None) -> None:
        """Takes the rows of a file that is of this model and has more of them."""
        if file is None:
            return
        with suppress(OSError, ValueError, LookupError, TypeError):
            kept = json.loads(file.read_bytes())
            known = [(str(question), list(map(int, reply))) for question, reply in kept["rows"]]
            if kept["key"] == self.key and kept["chunks"] > self.chunks:
                self.known, self.chunks = known, kept["chunks"]

    def write(self, file: Path) -> None:
        """Writes all that is known. Raises LiftError where it cannot."""
        entries = ",\n".join(json.dumps(row, ensure_ascii=False) for row in self.known)
        head = json.dumps({"key": self.key, "chunks": self.chunks})[:-1]
        text = f'{head}, "rows": [\n{entries}\n]}}\n'
        write_atomically(file, lambda to: to.write_text(text, encoding="utf-8"))

    def rows(self, start: int, stop: int) -> list[OwnWords]:
        """The known rows start to stop − 1, in the order in which they were made."""
        return [self._row(question, reply) for question, reply in self.known[start:stop]]

    def _row(self, question: str, reply: list[int]) -> OwnWords:
        start = self._prompt(question) if question else models.prefix_ids(self.tokenizer)
        # A row without a beginning has no context for its first token.
        return OwnWords(np.array([*start, *reply], dtype=np.int64), max(1, len(start)))

    def _prompt(self, question: str) -> list[int]:
        return chat_ids(self.tokenizer, [{"role": "user", "content": question}])

    def make(
        self, count: int, say: Callable[[str, int, int], None] = lambda what, done, of: None
    ) -> None:
        """Makes rows until `count` are known. Raises LiftError when no more come.

        One process at a time, and each goes on from what the one before has kept: the rows follow
        the rounding of whoever made them, and two runs must not differ by that.
        """
        started, fruitless, told = time.perf_counter(), 0, False
        while len(self.known) < count:
            before = len(self.known)
            with locks.making(self.file):
                self._read(self.file)
                if len(self.known) > before:
                    continue
                with self._ready():
                    self._chunk()
                self.chunks += 1
                fruitless = 0 if len(self.known) > before else fruitless + 1
                try:
                    if self.file is not None:
                        self.write(self.file)
                except LiftError as error:
                    if not told:
                        warnings.warn(f"{error}; the next run makes them anew", stacklevel=3)
                    told = True
            if fruitless == FRUITLESS:
                raise LiftError(
                    f"the model wrote only {before} different short rows of its own, and {count} "
                    "are needed to replay them: train without the objective replay and keep"
                )
            self.seconds += time.perf_counter() - started
            started = time.perf_counter()
            say("writing the model's own words", min(len(self.known), count), count)

    @contextmanager
    def _ready(self) -> Generator[None]:
        """Within it the model is the base model and can generate; other random numbers stay as
        they are."""
        device = next(self.model.parameters()).device
        with (
            any_algorithm(),
            own_attention(self.model),
            models.evaluating(self.model),
            without_adapter(self.model),
            torch.random.fork_rng(devices=[device] if device.type == "cuda" else []),
        ):
            torch.manual_seed(1_000_003 * SEED + self.chunks)
            yield

    def _chunk(self) -> None:
        """Draws CHUNK rows and takes those that are new and whole."""
        if not self.tokenizer.chat_template:
            self._take([("", text) for text in self._texts()])
            return
        questions = self._questions()
        prompts = [self._prompt(question) for question in questions]
        end = end_of_turn(self.tokenizer)
        answers = self._generated(prompts, REPLY)
        ended = [a + end if len(a) < REPLY else a for a in answers]
        self._take(list(zip(questions, ended, strict=True)))

    def _take(self, made: list[tuple[str, list[int]]]) -> None:
        seen = {_same(row) for row in self.known}
        for question, reply in made:
            if reply and _same((question, reply)) not in seen:
                seen.add(_same((question, reply)))
                self.known.append((question, reply))

    def _questions(self) -> list[str]:
        """The first line of each user's turn that ends within QUESTION tokens; of a model that
        hardly ends any, the others cut short."""
        head = user_turn_ids(self.tokenizer)
        openings = [OPENINGS[n % len(OPENINGS)] for n in range(CHUNK)]
        begun = [text_ids(self.tokenizer, opening) for opening in openings]
        room = QUESTION - max(map(len, begun))
        drawn = self._generated([[*head, *ids] for ids in begun], room + 1, TOP_P)
        whole, cut = [], []
        for opening, row in zip(openings, drawn, strict=True):
            text = opening + self.tokenizer.decode(row[:room], skip_special_tokens=True)
            line, *rest = text.strip().splitlines() or [""]
            asked = re.match(r".*?\?", line)
            line = " ".join((asked.group() if asked else line).split())
            ends = asked is not None or bool(rest) or len(row) <= room
            if len(line.split()) > 1 and "\ufffd" not in line:
                (whole if ends else cut).append(line)
        return whole if 8 * len(whole) >= len(drawn) else whole + cut

    def _texts(self) -> list[list[int]]:
        """The tokens of texts from their beginning, each QUESTION + REPLY of them at most."""
        tokenizer = self.tokenizer
        marks = (tokenizer.bos_token_id, tokenizer.eos_token_id, 0)
        start = models.prefix_ids(tokenizer) or [next(t for t in marks if t is not None)]
        drawn = self._generated([list(start)] * CHUNK, QUESTION + REPLY, TOP_P)
        return [row for row in drawn if len(row) > REPLY]

    def _generated(
        self, prompts: list[list[int]], new_tokens: int, top_p: float | None = None
    ) -> list[list[int]]:
        """replies() of the prompts as one batch, or as two halves where memory does not do."""
        if not prompts:
            return []
        try:
            # A chat template's beginning is the same for all, and often half of the row.
            return replies(self.model, self.tokenizer, prompts, new_tokens, worth=8, top_p=top_p)
        except RuntimeError as error:
            if not out_of_memory(error) or len(prompts) == 1:
                raise
        half = len(prompts) // 2
        return [
            row
            for part in (prompts[:half], prompts[half:])
            for row in self._generated(part, new_tokens, top_p)
        ]


def _same(row: tuple[str, list[int]]) -> str:
    """What two rows that are taken for one have in common."""
    question, reply = row
    return question.casefold() or repr(reply)


def main() -> None:
    """Makes the rows of a model and writes them where they can be shipped from."""
    parser = argparse.ArgumentParser(description="Make the own words of a model.")
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--rows", type=int, default=512 + HELD_OUT, help="with those held out")
    parser.add_argument("--out", type=Path, default=SHIPPED)
    args = parser.parse_args()
    maker = Maker(*models.load(args.model, dtype=torch.float32))
    maker.make(args.rows, lambda what, done, of: print(f"{what}: {done} of {of}", flush=True))
    maker.known = maker.known[: args.rows]
    maker.write(args.out)
    print(f"{len(maker.known)} rows in {args.out}; made in {maker.seconds:.0f} s")


if __name__ == "__main__":
    main()
