"""The English tasks of LongBench: how each is asked, how long an answer may be, how it is scored.

The prompts have the structure of the benchmark's own (instruction, context, instruction again,
question, form of the answer) in words of our own; lengths and metrics are the benchmark's. The
few-shot and the code tasks do without the chat template, as there.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from bench.evaluations import metrics
from bench.evaluations.prompts import Prompt


@dataclass(frozen=True)
class Task:
    """metric       prediction, answers -> score; "classification" also takes the classes
    first_line   score only the first line: the prompt is a list of examples
    query        the question of a task whose records have none
    tail         lines of code that are cut off the context's end and stand as the question
    """

    name: str
    prompt: Prompt
    max_new_tokens: int
    metric: Callable[..., float]
    first_line: bool = False
    query: str = ""
    tail: int = 0

    def score(self, prediction: str, answers: list[str], classes: list[str] | None) -> float:
        """The task's score of a prediction, between 0 and 1."""
        if self.first_line:
            prediction = metrics.first_line(prediction)
        if self.metric is metrics.classification:
            return self.metric(prediction, answers, classes=classes or ())
        return self.metric(prediction, answers)


def _asked(
    opening: str, label: str, again: str, question: str = "Question: {question}\nAnswer:"
) -> Prompt:
    """The instruction, the context under its label, the instruction again, the question."""
    return Prompt(
        beside=f"{opening}\n\n{label}\n{{document}}\n\n{again}\n\n{question}",
        alone=f"{again}\n\n{question}",
    )


def _examples(instruction: str) -> Prompt:
    """Examples, then a record in the same form that stops where the answer begins."""
    return Prompt(
        beside=f"{instruction} Examples come first.\n\n{{document}}\n{{question}}",
        alone=f"{instruction}\n\n{{question}}",
        chat=False,
    )


_SHORT = "Reply with the answer alone and add nothing."
_PASSAGES = _asked(
    f"Use the passages to answer the question. {_SHORT}",
    "Passages:",
    f"Use the passages you were given to answer. {_SHORT}",
)
_PHRASE = (
    "Keep the answer as short as you can, one phrase if that is enough, and do not explain it."
)
_PAPER = (
    "Keep the answer as short as you can, one phrase or sentence if that is enough, and do not "
    'explain it. A question that the article does not answer gets "unanswerable"; a yes/no '
    'question gets "yes", "no" or "unanswerable".'
)
_CODE = Prompt(
    beside="Continue the code below.\n{document}{question}\nThe next line of code:\n",
    alone="Continue the code below.\n{question}\nThe next line of code:\n",
    chat=False,
)
_PAGE = "Write a summary of about one page."
_DISTINCT = "Say how many different paragraphs there are when copies are not counted."

_ALL = (
    Task(
        "narrativeqa",
        _asked(
            f"You get a story, a novel or a film script, and a question about it. {_PHRASE}",
            "Story:",
            f"Answer the question about the story. {_PHRASE}",
        ),
        128,
        metrics.token_f1,
    ),
    Task(
        "qasper",
        _asked(
            f"You get a scientific article and a question about it. {_PAPER}",
            "Article:",
            f"Answer the question about the article. {_PAPER}",
        ),
        128,
        metrics.token_f1,
    ),
    Task(
        "multifieldqa_en",
        _asked(
            "Read the text and give a short answer.",
            "Text:",
            f"Answer the question about the text. {_SHORT}",
        ),
        64,
        metrics.token_f1,
    ),
    Task("hotpotqa", _PASSAGES, 32, metrics.token_f1),
    Task("2wikimqa", _PASSAGES, 32, metrics.token_f1),
    Task("musique", _PASSAGES, 32, metrics.token_f1),
    Task(
        "gov_report",
        _asked("You get a report of a government agency.", "Report:", _PAGE, "Summary:"),
        512,
        metrics.rouge_l,
        query="the main findings and recommendations of the report",
    ),
    Task(
        "qmsum",
        _asked(
            "You get the transcript of a meeting and a request about it.",
            "Transcript:",
            "Do what the request about the meeting asks, in one or more sentences.",
            "Request: {question}\nAnswer:",
        ),
        512,
        metrics.rouge_l,
    ),
    Task(
        "multi_news",
        _asked("You get several pieces of news.", "News:", _PAGE, "Summary:"),
        512,
        metrics.rouge_l,
        query="the main events of the news",
    ),
    Task("trec", _examples("Name the type of the question."), 64, metrics.classification, True),
    Task(
        "triviaqa",
        _examples(f"Answer the question about the passage. {_SHORT}"),
        32,
        metrics.token_f1,
        True,
    ),
    Task(
        "samsum", _examples("Sum the dialogue up in a few sentences."), 128, metrics.rouge_l, True
    ),
    Task(
        "passage_count",
        _asked(
            f"You get paragraphs of an encyclopedia; some are copies of others. {_DISTINCT}",
            "Paragraphs:",
            f"{_DISTINCT} Reply with the number alone, such as 1, 2 or 3.",
            "Number of different paragraphs:",
        ),
        32,
        metrics.count,
        query="paragraph",
    ),
    Task(
        "passage_retrieval_en",
        _asked(
            "You get thirty paragraphs of an encyclopedia and a summary of one of them. Find out "
            "which.",
            "Paragraphs:",
            "Name the paragraph that this is a summary of.",
            'Summary: {question}\n\nReply in the form "Paragraph 1", "Paragraph 2" and so on.\n\n'
            "Answer:",
        ),
        32,
        metrics.retrieval,
    ),
    Task("lcc", _CODE, 64, metrics.code_similarity, tail=20),
    Task("repobench-p", _CODE, 64, metrics.code_similarity),
)
TASKS = {task.name: task for task in _ALL}
