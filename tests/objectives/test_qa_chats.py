"""Several questions in one chat: what is scored, which may stand together, what an epoch takes."""

import numpy as np
import pytest
import torch
from errors_and_seeds import fresh_seed

from liftcore import answer
from liftcore.config import LiftConfig
from liftcore.objectives.qa import QuestionAnswering
from liftcore.questions.pairs import GivenPairs, Pair

TITLE = "Lamps"
TOKENS = np.zeros(4, dtype=np.int64)
PAIRS = [Pair(f"Who keeps lamp {n}?", f"Clara {n}", window=n, group=f"{n}/0") for n in range(12)]


class Batches:
    """A source whose pairs come in given batches."""

    seconds, failed = 0.0, 0

    def __init__(self, *batches):
        self.batches = list(batches)
        self.expected = sum(map(len, batches))

    def poll(self):
        return self.batches.pop(0) if self.batches else []

    @property
    def done(self):
        return not self.batches


def objective(tokenizer, source, room=256, **settings):
    config = LiftConfig(segment_length=room, **settings)
    return QuestionAnswering(tokenizer, TITLE, TOKENS, [source], config, 1024)


def scored(tokenizer, row):
    """The scored stretches of a row, as text."""
    assert row.source == "qa" and row.soft is None and row.weights.dtype == np.float32
    assert set(row.weights) <= {0.0, 1.0} and row.ids.dtype == np.int32
    edges = np.flatnonzero(np.diff(np.pad(row.weights, 1)))
    return [tokenizer.decode(row.ids[a:b]) for a, b in edges.reshape(-1, 2)]


def test_a_row_is_a_chat_whose_answers_are_scored(tokenizer):
    rows = objective(tokenizer, GivenPairs(PAIRS)).samples(0)
    assert 1 < len(rows) <= 4
    said = [text for row in rows for text in scored(tokenizer, row)]
    assert sorted(said) == sorted(f"{pair.answer}<|im_end|>" for pair in PAIRS)
    for row in rows:
        asked = [p for p in PAIRS if p.question in tokenizer.decode(row.ids)]
        asked.sort(key=lambda p: tokenizer.decode(row.ids).index(p.question))
        first = answer.question_ids(tokenizer, TITLE, "", asked[0].question)
        assert row.ids[: len(first)].tolist() == first, "it begins as asking does"
        # The template's own form of the whole chat, up to the end of the last answer.
        prompts = [f'Please answer a question about "{TITLE}".\n\nQuestion: {asked[0].question}']
        prompts += [f"Question: {p.question}" for p in asked[1:]]
        turns = []
        for prompt, pair in zip(prompts, asked, strict=True):
            turns += [{"role": "user", "content": prompt}]
            turns += [{"role": "assistant", "content": pair.answer}]
        whole = tokenizer.apply_chat_template(turns, tokenize=False)
        assert whole.strip() == tokenizer.decode(row.ids).strip()


def test_no_row_is_longer_than_a_segment_and_few_are_needed(tokenizer):
    alone = objective(tokenizer, GivenPairs(PAIRS), room=2)
    single = alone.samples(0)
    assert len(single) == len(PAIRS) and alone.longest == max(map(len, single))
    for room in (100, 128, 200):
        packed = objective(tokenizer, GivenPairs(PAIRS), room=room)
        rows = packed.samples(0)
        assert max(map(len, rows)) <= room == packed.longest
        assert sum(map(len, rows)) < sum(map(len, single))
        apart = objective(tokenizer, GivenPairs(PAIRS), room=16, qa_length=room)
        assert [r.ids.tolist() for r in apart.samples(0)] == [r.ids.tolist() for r in rows]


def test_questions_of_one_sentence_never_share_a_chat(tokenizer):
    seed = fresh_seed().initial_seed() % 10**6
    alike = [Pair(f"Who keeps lamp {n}?", f"C {n}", window=n % 3, group=f"{n}") for n in range(12)]
    for epoch in range(3):
        for row in objective(tokenizer, GivenPairs(alike), 512, seed=seed).samples(epoch):
            asked = [p.window for p in alike if f"C {p.group}<" in tokenizer.decode(row.ids)]
            assert len(asked) == len(set(asked)) and asked


def test_an_epoch_takes_one_form_of_each_fact_and_each_has_its_turn(tokenizer):
    seed = fresh_seed().initial_seed() % 10**6
    forms = [Pair(f"Form {f} of lamp {n}?", f"C{n}.{f}", window=n, group=f"{n}")
             for n in range(5) for f in range(3)]  # fmt: skip
    made = objective(tokenizer, GivenPairs(forms), seed=seed)
    drawn = [sorted(t for row in made.samples(e) for t in scored(tokenizer, row)) for e in range(6)]
    for epoch in drawn:
        assert [text.partition(".")[0] for text in epoch] == [f"C{n}" for n in range(5)]
    assert sorted(drawn[0] + drawn[1] + drawn[2]) == sorted(f"{p.answer}<|im_end|>" for p in forms)
    assert drawn[:3] == drawn[3:] and len({tuple(epoch) for epoch in drawn}) > 1


def test_rows_derive_from_seed_and_epoch_and_not_from_how_pairs_arrive(tokenizer):
    seed = fresh_seed().initial_seed() % 10**6
    pairs = [Pair(f"Form {f} of lamp {n}?", f"C{n}.{f}", window=n, group=f"{n}")
             for n in range(40) for f in range(2)]  # fmt: skip

    def rows(*batches, seed=seed, epochs=(0, 1)):
        made = objective(tokenizer, Batches(*batches), seed=seed)
        while not made.done:
            made.poll()
        assert made.expected == len(made.samples(0))
        return [[row.ids.tolist() for row in made.samples(e)] for e in epochs]

    whole = rows(pairs)
    cuts = sorted(torch.randint(0, 80, (3,)).tolist())
    parts = [pairs[a:b] for a, b in zip([0, *cuts], [*cuts, 80], strict=True)]
    assert rows(*parts) == whole == rows(pairs, epochs=(1, 0))[::-1]
    assert whole[0] != whole[1] and rows(pairs, seed=seed + 1) != whole


def test_what_was_given_out_stays_as_it_was(tokenizer):
    """Pairs that arrive while an epoch runs come behind those that it knows."""
    pairs = [Pair(f"Who keeps lamp {n}?", f"Clara {n}", window=n) for n in range(45)]
    made = objective(tokenizer, Batches(pairs[:40], [], pairs[40:]))
    first = made.samples(1)
    assert first and not made.done and made.expected >= len(first)
    new = []
    while not made.done:
        new += made.poll()
    again = made.samples(1)
    assert [row.ids.tolist() for row in again] == [row.ids.tolist() for row in first + new]


@pytest.mark.parametrize("template", [None, "reverse"])
def test_without_a_template_that_goes_on_each_question_has_a_row(tokenizer, template):
    import copy

    words = copy.deepcopy(tokenizer)
    # One that shows an earlier answer otherwise than a new one.
    words.chat_template = template and (
        "{% for m in messages %}{% if m['role'] == 'assistant' %}<old>{% endif %}"
        "{{ m['content'] }}<|im_end|>{% endfor %}{% if add_generation_prompt %}: {% endif %}"
    )
    rows = objective(words, GivenPairs(PAIRS)).samples(0)
    assert len(rows) == len(PAIRS) and all(len(scored(words, row)) == 1 for row in rows)
