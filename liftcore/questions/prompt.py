"""What a server is asked about a window, and which of its answers are pairs."""

from __future__ import annotations

import json
import re
from collections import Counter
from typing import Any

from liftcore.questions.pairs import Pair, stands_in
from liftcore.questions.windows import Window
from liftcore.questions.words import has_words

LONGEST = 2000  # characters of a question, an answer or an evidence
LONGEST_REPLY = 200_000  # characters of all that a model says about a window
EFFORT = 20  # times that a reply is read at most, in search of JSON that is whole
PROMPT = """\
Below is a part of "{title}".

<part>
{text}
</part>

Write questions about this sentence of it:
<sentence>
{sentence}
</sentence>

Rules:
- At most {count} questions, each on something else that the sentence states. Fewer are fine.
- Whoever reads a question does not see the text: name every person, place and thing in full, \
never "he", "it" or "the text".
- Use other words than the sentence where you can.
- An answer is short and complete, and follows from the text alone.
- "evidence" is copied from the text, word for word: the few words that show the answer.

Reply with JSON only, in this form:
{{"pairs": [{{"question": "...", "answer": "...", "evidence": "..."}}]}}"""

_SENTENCE = "For 31 years only the bees crossed its hedge."
_TEXT = f"The orchard at Pell was planted by two sisters. {_SENTENCE}"
_PAIRS = json.dumps(
    {
        "pairs": [
            {
                "question": "How long did nobody but the bees cross the hedge of the orchard at "
                "Pell?",
                "answer": "31 years",
                "evidence": "For 31 years only the bees crossed",
            }
        ]
    }
)

_ABOUT_TEXT = re.compile(
    r"^(?:according to|based on|in|from) (?:the|this) "
    r"(?:given |provided |above )?(?:text|passage|sentence|excerpt|part|paragraph|context),?\s+",
    re.IGNORECASE,
)


class BadAnswerError(ValueError):
    """An answer that holds no pairs in the form asked for; the message says why."""


def messages(window: Window, title: str, count: int) -> list[dict[str, str]]:
    """The chat that asks about a window. It begins with an example, the same for every window, so
    that a server computes that part once; small models do not find the form without one."""
    example = PROMPT.format(title="The Orchards", text=_TEXT, sentence=_SENTENCE, count=count)
    wanted = PROMPT.format(title=title, text=window.text, sentence=window.sentence, count=count)
    turns = [("user", example), ("assistant", _PAIRS), ("user", wanted)]
    return [{"role": role, "content": content} for role, content in turns]


def read_answer(content: str) -> list[dict[str, str]]:
    """The question, answer and evidence of each object in a model's answer; "" where it has none.

    Code fences, words around the JSON, objects one after the other and an end that is missing are
    all fine. An empty list is an answer: there was nothing to ask. Raises BadAnswerError when
    there is no JSON, or none of that form, and for a reply of more than LONGEST_REPLY characters.
    """
    if len(content) > LONGEST_REPLY:
        raise BadAnswerError("too long")
    values = _json_values(_without_thoughts(content))
    if not values:
        raise BadAnswerError("invalid JSON")
    items = [item for value in values if not _is_empty(value) for item in _items(value)]
    good = any(item["question"] and item["answer"] for item in items)
    if not good and not any(_is_empty(value) for value in values):
        raise BadAnswerError("wrong schema")
    return items


def _without_thoughts(content: str) -> str:
    """A reply without its <think> ... </think>. What is never closed stays: the answer may stand
    in it."""
    said, at = "", 0
    while (start := content.find("<think>", at)) >= 0:
        stop = content.find("</think>", start)
        if stop < 0:
            break
        said, at = said + content[at:start], stop + len("</think>")
    return said + content[at:]


def accept(items: list, window: Window, count: int, rejected: Counter[str]) -> list[Pair]:
    """The pairs among `items`, at most `count`; the others are counted by what is wrong."""
    good: list[Pair] = []
    for item in items:
        pair = _pair(item, window)
        if pair is None:
            rejected["wrong schema"] += 1
        elif pair.evidence and not stands_in(pair.evidence, window.text):
            rejected["evidence not in the text"] += 1
        elif len(good) == count:
            rejected["too many"] += 1
        else:
            good.append(pair)
    return good


def plain_question(question: str) -> str:
    """A question without "According to the text, …", which says nothing to who does not see it."""
    bare = _ABOUT_TEXT.sub("", question.strip())
    return bare[:1].upper() + bare[1:]


def _pair(item: Any, window: Window) -> Pair | None:
    if not isinstance(item, dict) or not all(isinstance(v, str) for v in item.values()):
        return None
    question, answer = plain_question(item.get("question", "")), item.get("answer", "").strip()
    evidence = item.get("evidence", "").strip()
    if not has_words(question) or not answer:
        return None
    if max(len(question), len(answer), len(evidence)) > LONGEST:
        return None
    return Pair(question, answer, evidence, window.number)


def _json_values(content: str) -> list:
    """All objects and lists of a text that are JSON, the outermost of each."""
    values, at, decoder = [], 0, json.JSONDecoder(strict=False)
    opening, left = re.compile(r"[\[{]"), EFFORT * len(content)
    for _ in range(1000):
        start = opening.search(content, at)
        if start is None or left <= 0:
            break
        try:
            value, at = decoder.raw_decode(content, start.start())
            values.append(value)
        except (ValueError, RecursionError) as error:
            at = start.end()
            left -= getattr(error, "pos", len(content)) - start.start() + 1
    return [value for value in values if value == [] or _objects(value)]


def _objects(value: Any) -> list[dict]:
    """The objects of a list of objects, of an object that holds such lists, or the object alone."""
    if isinstance(value, list):
        return [v for v in value if isinstance(v, dict)]
    inner = [o for v in value.values() if isinstance(v, list) for o in _objects(v)]
    return inner or ([value] if value else [])


def _items(value: Any) -> list[dict[str, str]]:
    items = []
    for each in _objects(value):
        item = {str(k).strip().casefold(): v for k, v in each.items()}
        items.append({k: _text(item.get(k)) for k in ("question", "answer", "evidence")})
    return items


def _text(value: Any) -> str:
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        value = str(value)
    # Half a character, as "\\ud83d" stands for, is no text.
    return value.strip() if isinstance(value, str) and _is_unicode(value) else ""


def _is_unicode(text: str) -> bool:
    return not any("\ud800" <= c <= "\udfff" for c in text)


def _is_empty(value: Any) -> bool:
    """[], {"pairs": []} and the like."""
    return value == [] or (isinstance(value, dict) and list(value.values()) == [[]])
