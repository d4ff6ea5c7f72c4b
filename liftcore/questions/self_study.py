"""Self-study: the model reads its document in small parts and makes the pairs itself, offline.

In rotation it is asked for questions, summaries, rephrasings and key facts; quizzes, their order
in time, gaps and continuations are cut from the text. A question is made for a name or a number of
a sentence, then put to the model together with that sentence: it stays when the answer is the same.
For a sentence without either the model chooses the question, and its answer must rest on it.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from itertools import zip_longest
from typing import Any

from torch import nn

from liftcore import model as models
from liftcore.answer import replies
from liftcore.config import QA_KINDS
from liftcore.errors import UsageError
from liftcore.layers.attention import own_attention
from liftcore.layers.determinism import any_algorithm
from liftcore.model import evaluating
from liftcore.questions import kinds as kinds_
from liftcore.questions.forms import forms
from liftcore.questions.pairs import Deduplicator, Pair
from liftcore.questions.quizzes import Topics, continuation, ends, gaps, is_english, terms
from liftcore.questions.timeline import orders
from liftcore.questions.windows import Window, blocks, every_sentence
from liftcore.tokens import Tokenizer, chat_ids, text_ids

BLOCK = 3  # sentences of a summary, a rephrasing, a list of facts
BEFORE = 300  # characters shown before a sentence when a question is checked


@dataclass(frozen=True)
class _Job:
    kind: str
    window: Window
    target: str = ""
    pairs: tuple[Pair, ...] = ()  # made already


class SelfStudy:
    """Pairs about a text, made by the model that will learn them. See PairSource.

    without_adapter   a context in which the model is the base model
    kinds             which of QA_KINDS to make; quizzes and order are made of English texts only
    batch_size        rows generated at once; each poll() makes one batch

    A pair's window is the number of its first sentence, its evidence the sentences themselves.
    The model is used between the steps of a run as well as before it: its attention and its mode
    are put back. Not while another thread uses it. `tokens` counts what was
    generated, `seconds` the time of that. Raises UsageError for a kind it does not know.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Tokenizer,
        text: str,
        *,
        without_adapter: Callable[[], AbstractContextManager] = nullcontext,
        kinds: tuple[str, ...] = QA_KINDS,
        batch_size: int = 16,
    ):
        if unknown := [kind for kind in kinds if kind not in QA_KINDS]:
            raise UsageError(
                f"unknown kind of pairs {unknown[0]!r}: choose of {', '.join(QA_KINDS)}"
            )
        if not kinds or batch_size < 1:
            raise UsageError("self-study needs a kind and a batch size of at least 1")
        self.model, self.tokenizer = model, tokenizer
        self._without_adapter, self._batch_size = without_adapter, batch_size
        self._topics = Topics(text)
        self._jobs = _plan(text, kinds)
        self._at, self.pairs = 0, list[Pair]()  # of the jobs, what is done; what passed so far
        self._seen, self._lock = Deduplicator(), threading.Lock()
        self.seconds, self.tokens = 0.0, 0
        self.failures: Counter[str] = Counter()
        self.rejected: Counter[str] = Counter()

    def poll(self) -> list[Pair]:
        """Makes the next batch, and gives the pairs of it that passed."""
        with self._lock:
            if self.done:
                return []
            before = self._at, Counter(self.rejected)
            jobs = self._next_jobs()
            started = time.perf_counter()
            try:
                with self._ready():
                    made = self._make(jobs)
            except BaseException:
                self._at, self.rejected = before
                raise
            self.seconds += time.perf_counter() - started
            pairs = self._seen.fresh(pair for group in made for pair in group)
            self.rejected += Counter(duplicate=sum(map(len, made)) - len(pairs))
            self.pairs += pairs
            return pairs

    def state(self) -> dict[str, Any]:
        """What go_on() needs to make the rest of the pairs, as JSON knows it."""
        return {
            "at": self._at,
            "pairs": [asdict(pair) for pair in self.pairs],
            "seconds": self.seconds,
            "rejected": dict(+self.rejected),
        }

    def go_on(self, state: dict[str, Any]) -> None:
        """Goes on where another of the same text, kinds and batch size was when it gave state()."""
        self._at, self.seconds = state["at"], state["seconds"]
        self.pairs = self._seen.fresh(Pair(**pair) for pair in state["pairs"])
        self.rejected = Counter(state["rejected"])

    def generate_all(
        self, on_batch: Callable[[int, int], None] = lambda done, all: None
    ) -> list[Pair]:
        """All pairs at once; on_batch hears how many of the jobs are done."""
        while not self.done:
            self.poll()
            on_batch(self._at, len(self._jobs))
        return self.pairs

    @property
    def done(self) -> bool:
        return self._at >= len(self._jobs)

    @property
    def expected(self) -> int:
        share = len(self.pairs) / self._at if self._at else 0.7
        return len(self.pairs) + round(share * max(0, len(self._jobs) - self._at))

    def close(self) -> None:
        """Makes no more."""
        with self._lock:
            self._jobs = self._jobs[: self._at]

    def _next_jobs(self) -> list[_Job]:
        """The jobs up to a full batch."""
        jobs, rows = [], 0
        for job in self._jobs[self._at :]:
            rows += not job.pairs
            if rows > self._batch_size:
                break
            jobs.append(job)
        self._at += len(jobs)
        return jobs

    def _make(self, jobs: list[_Job]) -> list[list[Pair]]:
        """The pairs of each job."""
        asking = [job for job in jobs if job.kind == "question"]
        writing = [job for job in jobs if job.kind in kinds_.TEXTS]
        asked, written = iter(self._questions(asking)), iter(self._texts(writing))
        made = {"question": asked, **dict.fromkeys(kinds_.TEXTS, written)}
        return [next(made[job.kind]) if job.kind in made else list(job.pairs) for job in jobs]

    def _questions(self, jobs: list[_Job]) -> list[list[Pair]]:
        turns = [kinds_.question_turns(job.window.sentence, job.target) for job in jobs]
        written = self._generate(turns, kinds_.QUESTION_TOKENS)
        questions = [
            kinds_.first_question(f"{kinds_.opening(job.target)} {rest}".strip())
            for job, rest in zip(jobs, written, strict=True)
        ]
        kept = []
        for n, (job, question) in enumerate(zip(jobs, questions, strict=True)):
            problem = kinds_.question_problem(question, job.target, job.window.text)
            self.rejected += Counter({problem: 1} if problem else {})
            if not problem:
                kept.append(n)
        checks = [kinds_.answer_turns(jobs[n].window.sentence, questions[n]) for n in kept]
        answers = self._generate(checks, kinds_.ANSWER_TOKENS)
        pairs: list[list[Pair]] = [[] for _ in jobs]
        for n, answer in zip(kept, answers, strict=True):
            job, question = jobs[n], questions[n]
            sentence = " ".join(job.window.sentence.split())
            if not job.target:
                problem = kinds_.answer_problem(answer, question, sentence)
            elif kinds_.answers(answer, job.target, question, sentence):
                problem = ""
            else:
                problem = "another answer"
            if problem:
                self.rejected[problem] += 1
            else:
                answer = job.target or answer
                pairs[n] = [Pair(question, answer, sentence, job.window.number)]
        return pairs

    def _texts(self, jobs: list[_Job]) -> list[list[Pair]]:
        pairs: list[list[Pair]] = [[] for _ in jobs]
        turns = [kinds_.text_turns(job.kind, job.window.sentence) for job in jobs]
        for n, written in enumerate(self._generate(turns, kinds_.TEXT_TOKENS)):
            passage = jobs[n].window.sentence
            text, problem = kinds_.good_part(written, passage)
            if text:
                topic = self._topics.of(passage)
                question = kinds_.TEXTS[jobs[n].kind].question.format(topic=topic)
                pairs[n] = [Pair(question, text, passage, jobs[n].window.number)]
            else:
                self.rejected[problem] += 1
        return pairs

    def _generate(self, prompts: list[kinds_.Turns], new_tokens: int) -> list[str]:
        """The text that follows each of the prompts, generated as one batch."""
        if not prompts:
            return []
        room = models.window(self.model) - new_tokens
        rows = [self._prompt_ids(turns)[-room:] for turns in prompts]
        written = replies(self.model, self.tokenizer, rows, new_tokens)
        self.tokens += sum(map(len, written))
        return [self.tokenizer.decode(r, skip_special_tokens=True).strip() for r in written]

    def _prompt_ids(self, turns: kinds_.Turns) -> list[int]:
        """Tokens of the turns; a last one of the assistant is the beginning of its answer."""
        begun = turns[-1][1] if turns[-1][0] == "assistant" else ""
        turns = turns[:-1] if begun else turns
        if self.tokenizer.chat_template:
            messages = [{"role": role, "content": text} for role, text in turns]
            ids = chat_ids(self.tokenizer, messages)
            return ids + text_ids(self.tokenizer, begun)
        form = {"user": "{}\nAnswer:", "assistant": " {}\n\n"}
        text = "".join(form[role].format(said) for role, said in turns)
        text += f" {begun}" if begun else ""
        return models.prefix_ids(self.tokenizer) + text_ids(self.tokenizer, text)

    @contextmanager
    def _ready(self) -> Generator[None]:
        """Within it the model is the base model and can generate, whatever it is used for."""
        with (
            # Positions use ops that have no deterministic form on a GPU.
            any_algorithm(),
            own_attention(self.model),
            evaluating(self.model),
            self._without_adapter(),
        ):
            yield


def _plan(text: str, kinds: tuple[str, ...]) -> list[_Job]:
    """The jobs in the order of the document."""
    windows = every_sentence(text, BEFORE)
    if not is_english(text):
        kinds = tuple(kind for kind in kinds if kind not in ("quiz", "order"))
    jobs: list[tuple[int, _Job]] = []
    for window, following in zip_longest(windows, windows[1:]):
        for kind, cut in (("quiz", forms), ("gap", gaps)):
            if kind in kinds and (pairs := cut(window)):
                jobs.append((window.stop, _Job(kind, window, pairs=tuple(pairs))))
        if "continue" in kinds and following is not None:
            pair = continuation(window, following.sentence)
            jobs += [(window.stop, _Job("continue", window, pairs=(pair,)))] if pair else []
        if "question" in kinds and ends(window.sentence):
            for target in terms(window.sentence)[:2] or [""]:
                jobs.append((window.stop, _Job("question", window, target)))
    for pairs in orders(windows) if "order" in kinds else ():
        window = windows[pairs[0].window]
        jobs.append((window.stop, _Job("order", window, pairs=tuple(pairs))))
    texts = [kind for kind in kinds if kind in kinds_.TEXTS]
    sentence_at = {window.start: window.number for window in windows}
    for n, block in enumerate(blocks(text, BLOCK)):
        if texts:
            block = replace(block, number=sentence_at[block.start])
            jobs.append((block.stop, _Job(texts[n % len(texts)], block)))
    return [job for _, job in sorted(jobs, key=lambda entry: entry[0])]
