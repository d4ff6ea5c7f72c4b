"""Self-study: the model reads its document in small parts and makes the pairs itself, offline.

In rotation it is asked for questions, summaries, rephrasings and key facts; quizzes, gaps and
continuations are cut from the text. A question is made for a name or a number of a sentence, then
put to the model together with that sentence: it stays when the answer is the same. For a sentence
without either the model chooses the question, and its answer must rest on the sentence.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from itertools import zip_longest

import torch
from torch import nn

from liftcore import model as models
from liftcore.answer import plain_generation
from liftcore.config import QA_KINDS
from liftcore.errors import UsageError
from liftcore.layers.attention import own_attention
from liftcore.layers.determinism import any_algorithm
from liftcore.model import evaluating
from liftcore.questions import kinds as kinds_
from liftcore.questions.pairs import Deduplicator, Pair
from liftcore.questions.quizzes import Topics, continuation, ends, gaps, is_english, quizzes, terms
from liftcore.questions.windows import Window, blocks, every_sentence
from liftcore.tokens import chat_ids, text_ids

BLOCK = 3  # sentences of a summary, a rephrasing, a list of facts


@dataclass(frozen=True)
class _Job:
    kind: str
    window: Window
    target: str = ""
    pairs: tuple[Pair, ...] = ()  # made already


class SelfStudy:
    """Pairs about a text, made by the model that will learn them. See PairSource.

    without_adapter   a context in which the model is the base model, such as adapter.disabled
    kinds             which of QA_KINDS to make; quizzes are made of English texts only
    rounds            passes over the text; from the second on the model samples, and a part gets
                      another kind of text each time
    batch_size        rows generated at once; each poll() makes one batch
    before            characters shown before a sentence when a question is checked

    A pair's window is the number of its first sentence, its evidence the sentences themselves.
    The model is used between the steps of a run as well as before it: its attention, its random
    numbers and its mode are put back. Not while another thread uses it. `tokens` counts what was
    generated, `seconds` the time of that. Raises UsageError for a kind it does not know.
    """

    failed = 0

    def __init__(
        self,
        model: nn.Module,
        tokenizer,
        text: str,
        *,
        without_adapter: Callable[[], AbstractContextManager] = nullcontext,
        kinds: tuple[str, ...] = QA_KINDS,
        rounds: int = 1,
        batch_size: int = 16,
        before: int = 300,
        temperature: float = 0.5,
        seed: int = 0,
    ):
        if unknown := [kind for kind in kinds if kind not in QA_KINDS]:
            raise UsageError(
                f"unknown kind of pairs {unknown[0]!r}: choose of {', '.join(QA_KINDS)}"
            )
        if not kinds or rounds < 1 or batch_size < 1:
            raise UsageError("self-study needs a kind, a round and a batch size of at least 1")
        self.model, self.tokenizer = model, tokenizer
        self._without_adapter, self._batch_size = without_adapter, batch_size
        self._temperature, self._seed = temperature, seed
        self._topics = Topics(text)
        self._rounds = [_plan(text, kinds, before, n) for n in range(rounds)]
        self._jobs = [(n, job) for n, jobs in enumerate(self._rounds) for job in jobs]
        self._at = self._batches = self._delivered = 0
        self._seen, self._lock = Deduplicator(), threading.Lock()
        self.seconds, self.tokens = 0.0, 0
        self.failures: Counter[str] = Counter()
        self.rejected: Counter[str] = Counter()

    def poll(self) -> list[Pair]:
        """Makes the next batch, and gives the pairs of it that passed."""
        with self._lock:
            if self.done:
                return []
            jobs, number = self._next_jobs()
            started = time.perf_counter()
            with self._ready(number):
                made = self._make(jobs, sample=number > 0)
            self.seconds += time.perf_counter() - started
            pairs = self._seen.fresh(pair for group in made for pair in group)
            self.rejected += Counter(duplicate=sum(map(len, made)) - len(pairs))
            self._delivered += len(pairs)
            return pairs

    def generate_all(self, on_batch: Callable[[int, int], None] = lambda done, all: None):
        """All pairs at once; on_batch hears how many of the jobs are done."""
        pairs = []
        while not self.done:
            pairs += self.poll()
            on_batch(self._at, len(self._jobs))
        return pairs

    @property
    def done(self) -> bool:
        return self._at >= len(self._jobs)

    @property
    def expected(self) -> int:
        share = self._delivered / self._at if self._at else 0.7
        return self._delivered + round(share * max(0, len(self._jobs) - self._at))

    def close(self) -> None:
        """Makes no more."""
        with self._lock:
            self._jobs = self._jobs[: self._at]

    def _next_jobs(self) -> tuple[list[_Job], int]:
        """The jobs up to a full batch of one round, and the round's number."""
        number = self._jobs[self._at][0]
        jobs, rows = [], 0
        while self._at < len(self._jobs) and self._jobs[self._at][0] == number:
            job = self._jobs[self._at][1]
            rows += not job.pairs
            if rows > self._batch_size:
                break
            jobs.append(job)
            self._at += 1
        self._batches += 1
        return jobs, number

    def _make(self, jobs: list[_Job], sample: bool) -> list[list[Pair]]:
        """The pairs of each job."""
        made = {id(job): list(job.pairs) for job in jobs}
        asking = [job for job in jobs if job.kind == "question"]
        for job, pair in zip(asking, self._questions(asking, sample), strict=True):
            made[id(job)] = pair
        writing = [job for job in jobs if job.kind in kinds_.TEXTS]
        for job, pair in zip(writing, self._texts(writing, sample), strict=True):
            made[id(job)] = pair
        return [made[id(job)] for job in jobs]

    def _questions(self, jobs: list[_Job], sample: bool) -> list[list[Pair]]:
        turns = [kinds_.question_turns(job.window.sentence, job.target) for job in jobs]
        written = self._generate(turns, kinds_.QUESTION_TOKENS, sample)
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
        answers = self._generate(checks, kinds_.ANSWER_TOKENS, False)
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

    def _texts(self, jobs: list[_Job], sample: bool) -> list[list[Pair]]:
        pairs: list[list[Pair]] = [[] for _ in jobs]
        turns = [kinds_.text_turns(job.kind, job.window.sentence) for job in jobs]
        for n, written in enumerate(self._generate(turns, kinds_.TEXT_TOKENS, sample)):
            passage = jobs[n].window.sentence
            text, problem = kinds_.good_part(written, passage)
            if text:
                topic = self._topics.of(passage)
                question = kinds_.TEXTS[jobs[n].kind].question.format(topic=topic)
                pairs[n] = [Pair(question, text, passage, jobs[n].window.number)]
            else:
                self.rejected[problem] += 1
        return pairs

    def _generate(self, prompts: list[kinds_.Turns], new_tokens: int, sample: bool) -> list[str]:
        """The text that follows each of the prompts, generated as one batch."""
        if not prompts:
            return []
        rows = [self._prompt_ids(turns) for turns in prompts]
        room = models.window(self.model) - new_tokens
        rows = [ids[-room:] for ids in rows]
        width = max(map(len, rows))
        end = self.tokenizer.eos_token_id
        pad = end if self.tokenizer.pad_token_id is None else self.tokenizer.pad_token_id
        device = next(self.model.parameters()).device
        ids = torch.tensor([[pad] * (width - len(r)) + r for r in rows], device=device)
        mask = torch.tensor([[0] * (width - len(r)) + [1] * len(r) for r in rows], device=device)
        # top_k 0: every token may be sampled.
        how = {"temperature": self._temperature, "top_p": 0.95, "top_k": 0} if sample else {}
        with plain_generation(self.model, self.tokenizer):
            out = self.model.generate(
                input_ids=ids,
                attention_mask=mask,
                max_new_tokens=new_tokens,
                do_sample=sample,
                **how,
            )[:, width:].tolist()
            ends_ = self.model.generation_config.eos_token_id
        stops = {pad, *(ends_ if isinstance(ends_, list) else [ends_])}
        found = []
        for new in out:
            length = next((n for n, token in enumerate(new) if token in stops), len(new))
            self.tokens += length
            found.append(self.tokenizer.decode(new[:length], skip_special_tokens=True).strip())
        return found

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
    def _ready(self, number: int):
        """Within it the model is the base model and can generate, whatever it is used for."""
        device = next(self.model.parameters()).device
        devices = [device] if device.type == "cuda" else []
        with (
            # Sampling and positions use ops that have no deterministic form on a GPU.
            any_algorithm(),
            own_attention(self.model),
            torch.no_grad(),
            torch.random.fork_rng(devices),
            evaluating(self.model),
            self._without_adapter(),
        ):
            torch.manual_seed(self._seed * 1_000_003 + self._batches)
            yield


def _plan(text: str, kinds: tuple[str, ...], before: int, number: int) -> list[_Job]:
    """The jobs of one round, in the order of the document."""
    windows = every_sentence(text, before)
    if not is_english(text):
        kinds = tuple(kind for kind in kinds if kind != "quiz")
    jobs: list[tuple[int, _Job]] = []
    for window, following in zip_longest(windows, windows[1:]):
        for kind, cut in (("quiz", quizzes), ("gap", gaps)):
            if kind in kinds and number == 0 and (pairs := cut(window)):
                jobs.append((window.stop, _Job(kind, window, pairs=tuple(pairs))))
        if "continue" in kinds and number == 0 and following is not None:
            pair = continuation(window, following.sentence)
            jobs += [(window.stop, _Job("continue", window, pairs=(pair,)))] if pair else []
        if "question" in kinds and ends(window.sentence):
            for target in terms(window.sentence)[:2] or [""]:
                jobs.append((window.stop, _Job("question", window, target)))
    texts = [kind for kind in kinds if kind in kinds_.TEXTS]
    sentence_at = {window.start: window.number for window in windows}
    for n, block in enumerate(blocks(text, BLOCK)):
        if texts:
            block = replace(block, number=sentence_at[block.start])
            jobs.append((block.stop, _Job(texts[(n + number) % len(texts)], block)))
    return [job for _, job in sorted(jobs, key=lambda entry: entry[0])]
