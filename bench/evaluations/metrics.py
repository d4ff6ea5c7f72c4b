"""Scores of an answer against reference answers, as SQuAD, LongBench and LooGLE define them.

Every score lies between 0 and 1. With several reference answers the best counts. ROUGE-L and BLEU
come from the libraries that the benchmarks' own code uses: `pip install 'liftcore[eval]'`.
"""

from __future__ import annotations

import difflib
import functools
import importlib
import re
import string
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

from liftcore.errors import LiftError
from liftcore.pretrained import from_pretrained

# Frames that the recursive search of `rouge` may need for one long sentence.
ROUGE_RECURSION = 20_000


class MissingPackage(LiftError):
    """A metric needs a package that is not installed."""


def normalise(text: str) -> str:
    """Lower case, without punctuation, articles and extra white space (SQuAD)."""
    text = "".join(c for c in text.lower() if c not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


def best(score: Callable[..., float]) -> Callable[..., float]:
    """A score of (prediction, answer) -> the best of (prediction, one or several answers)."""

    @functools.wraps(score)
    def over_all(prediction: str, answers: str | Sequence[str], **options: Any) -> float:
        answers = [answers] if isinstance(answers, str) else answers
        return max((float(score(prediction, answer, **options)) for answer in answers), default=0.0)

    return over_all


@best
def exact_match(prediction: str, answer: str) -> float:
    """1 if both are the same once normalised."""
    return normalise(prediction) == normalise(answer)


@best
def token_f1(prediction: str, answer: str) -> float:
    """F1 of the normalised words as bags (SQuAD; QA F1 of LongBench)."""
    said, wanted = normalise(prediction).split(), normalise(answer).split()
    if not said or not wanted:
        return said == wanted
    same = sum((Counter(said) & Counter(wanted)).values())
    return 2 * same / (len(said) + len(wanted))


@best
def contains(prediction: str, answer: str) -> float:
    """1 if the normalised answer stands in the normalised prediction, as whole words."""
    said, wanted = normalise(prediction), normalise(answer)
    if not wanted:
        return said == wanted
    return f" {wanted} " in f" {said} "


@best
def rouge_l(prediction: str, answer: str, part: str = "f") -> float:
    """ROUGE-L of the package `rouge`; part "f" is F1 (LongBench), "r" the recall (LooGLE)."""
    rouge = package("rouge", "eval")
    if not _has_words(prediction) or not _has_words(answer):
        return 0.0
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(max(limit, ROUGE_RECURSION))
    try:
        return rouge.Rouge(metrics=["rouge-l"]).get_scores(prediction, answer)[0]["rouge-l"][part]
    finally:
        sys.setrecursionlimit(limit)


def _has_words(text: str) -> bool:
    """Whether `rouge` finds a word: it cuts at full stops and at white space."""
    return bool(text.replace(".", " ").split())


@best
def bleu(prediction: str, answer: str, order: int = 1) -> float:
    """The precision of n-grams of one order, times BLEU's brevity penalty (LooGLE: 1 and 4)."""
    translate = package("nltk.translate.bleu_score", "eval")
    said, wanted = prediction.split(), answer.split()
    if not said:
        return 0.0
    ngrams = translate.modified_precision([wanted], said, n=order)
    return float(ngrams) * translate.brevity_penalty(len(wanted), len(said))


def bert_score(
    predictions: Sequence[str], answers: Sequence[str], model: str | None = None
) -> list[float]:
    """F1 of BERTScore for pairs of texts.

    model   a name or a folder, by default the package's own for English; of one that the package
            has no layer for, the last is taken
    """
    scorer = package("bert_score", "bertscore")
    if model is None:
        options = {"lang": "en"}
    else:
        options = {"model_type": model}
        if model not in importlib.import_module("bert_score.utils").model2layers:
            options["num_layers"] = from_pretrained("AutoConfig", model).num_hidden_layers
    return scorer.score(list(predictions), list(answers), **options)[2].tolist()


@best
def retrieval(prediction: str, answer: str) -> float:
    """Of the numbers named in the prediction, the share that is the answer's "Paragraph N"."""
    wanted = re.search(r"Paragraph (\d+)", answer)
    return _share_of_numbers(prediction, wanted.group(1)) if wanted else 0.0


@best
def count(prediction: str, answer: str) -> float:
    """Of the numbers named in the prediction, the share that is the answer."""
    return _share_of_numbers(prediction, answer)


def _share_of_numbers(prediction: str, wanted: str) -> float:
    numbers = re.findall(r"\d+", prediction)
    return numbers.count(wanted) / len(numbers) if numbers else 0.0


@best
def classification(prediction: str, answer: str, classes: Sequence[str] = ()) -> float:
    """1 over the number of classes that the prediction names, if the answer is among them.

    A class that is only a part of the right answer's name is not held against it.
    """
    named = [name for name in classes if name in prediction]
    if answer not in named:
        return 0.0
    return 1 / sum(name == answer or name not in answer for name in named)


@best
def code_similarity(prediction: str, answer: str) -> float:
    """Edit similarity of the prediction's first line of code, in whole percents."""
    lines = prediction.lstrip("\n").split("\n")
    code = next((x for x in lines if not any(mark in x for mark in ("`", "#", "//"))), "")
    if not code or not answer:
        return 0.0
    return round(100 * difflib.SequenceMatcher(None, code, answer).ratio()) / 100


def first_line(prediction: str) -> str:
    """The first line that is not empty: few-shot prompts make a model go on with more examples."""
    return prediction.lstrip("\n").split("\n")[0]


def package(name: str, extra: str) -> ModuleType:
    """A package that a metric needs. Raises MissingPackage with the extra that installs it."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise MissingPackage(
            f"this metric needs the package {name.split('.')[0]}: pip install 'liftcore[{extra}]'"
        ) from error
