"""Distillation: the targets token by token, and what the student sees."""

import numpy as np
import pytest
import torch
from distill_checks import TEXT, Letters, assert_taught, lively

import liftcore
from liftcore import answer, document
from liftcore.config import LiftConfig
from liftcore.kernels.reference import linear_soft_cross_entropy
from liftcore.layers.lora import Adapter
from liftcore.model import head
from liftcore.objectives.distill import DistilledPairs, DistilledSegments
from liftcore.questions.pairs import GivenPairs, Pair, SharedPairs
from liftcore.questions.windows import Passages
from liftcore.training.batch import batch_loss, make

PAIR = Pair("Who keeps lamp 2?", "Clara", evidence="lamp 2 is called Clara")


def segments(model, bos=True, text=TEXT, **options):
    tokenizer = Letters(bos)
    read = document.from_text(text, tokenizer, "Lamps")
    config = LiftConfig(segment_length=40, seed=3)
    return read, DistilledSegments(model, tokenizer, read, config, **options)


@pytest.mark.parametrize("bos", [True, False])
def test_segments_token_by_token(bos):
    model, window, p = lively(), 24, int(bos)
    read, objective = segments(model, bos, TEXT[:80], window=window, piece=9, k=4)
    length, size = len(read.tokens), window - p
    for epoch in range(2):
        samples, at = objective.samples(epoch), 0
        for sample in samples:
            n = len(sample) - p
            piece = read.tokens[at : at + n]
            # The student has no window: the piece, and nothing before it but the prefix.
            assert sample.ids.tolist() == [1] * p + piece.tolist() and n <= 9
            scored = np.ones(p + n)
            scored[0] = 0
            assert np.array_equal(sample.weights, scored) and sample.source == "distill"
            for j in range(n):
                ids, probs = sample.soft.ids[p + j], sample.soft.probs[p + j]
                t = at + j
                if t + p == 0:
                    assert not probs.any()  # nothing stands before it
                    continue
                half = size // 2
                stop = size if t < size else size + ((t - size) // half + 1) * half
                start = max(0, min(stop, length) - size)
                assert t < size or t - start >= half
                assert_taught(ids, probs, model, [1] * p + read.tokens[start:t].tolist())
            at += n
        assert at == length
    first, second = ([len(s) for s in objective.samples(e)] for e in (0, 1))
    assert first != second and first == [len(s) for s in objective.samples(0)]
    assert objective.done and objective.expected == len(first) and objective.poll() == []


def test_the_document_is_read_once():
    _, objective = segments(lively(), window=64, piece=16)
    for epoch in range(3):
        objective.samples(epoch)
    read = objective.teacher.computed
    assert read == len(objective.readings())


class Arriving:
    """A source of pairs that come when the test says so."""

    expected, seconds, done = 3, 0.5, False

    def __init__(self):
        self.new, self.closed = [], False

    def poll(self):
        new, self.new = self.new, []
        return new

    def close(self):
        self.closed = True


def pairs(model, *sources, text=TEXT, **options):
    tokenizer = Letters()
    read = document.from_text(text, tokenizer, "Lamps")
    return tokenizer, DistilledPairs(model, tokenizer, read, sources, **options)


def test_pairs_token_by_token():
    model = lively()
    tokenizer, objective = pairs(model, GivenPairs([PAIR]), k=5, window=640)
    (sample,) = objective.samples(0)
    reply = answer.reply_ids(tokenizer, "Clara")
    prompt = answer.question_ids(tokenizer, "Lamps", "", PAIR.question)
    assert sample.ids.tolist() == prompt + reply and reply[-1] == tokenizer.eos_token_id
    assert "called" not in tokenizer.decode(sample.ids)  # the student does not see the text
    assert sample.weights.tolist() == [0.0] * len(prompt) + [1.0] * len(reply)
    read = answer.question_ids(tokenizer, "Lamps", TEXT, PAIR.question)
    assert len(read) + len(reply) <= 640
    assert not sample.soft.probs[: len(prompt)].any()
    for j in range(len(reply)):
        ids, probs = sample.soft.ids[len(prompt) + j], sample.soft.probs[len(prompt) + j]
        assert_taught(ids, probs, model, read + reply[:j])
    assert objective.done


def test_pairs_that_arrive_get_their_targets_then():
    source = Arriving()
    _, objective = pairs(lively(), source)
    assert objective.samples(0) == [] and objective.poll() == [] and not objective.done
    source.new = [PAIR, Pair("How many boats?", "17")]
    first = objective.poll()
    assert [s.soft is not None for s in first] == [True, True] and objective.teacher.computed == 2
    source.new, source.done = [Pair("Who counts 5 boats?", "Berta")], True
    assert len(objective.samples(1)) == 3 and objective.samples(1)[:2] == first
    assert objective.teacher.computed == 3 and objective.poll() == []
    assert objective.done and objective.expected == 3 and objective.seconds == 0.5
    objective.close()
    assert source.closed


def test_a_long_text_is_cut_and_a_question_without_room_keeps_its_answer():
    tokenizer, objective = pairs(lively(), window=180)
    reading = objective.reading(PAIR, TEXT)
    assert len(reading.ids) <= 180 and "\n...\n" in tokenizer.decode(reading.ids)
    source = GivenPairs([Pair("Who " * 40, "Clara"), PAIR])
    _, objective = pairs(lively(), source, window=180)
    hard, soft = objective.samples(0)
    assert hard.soft is None and hard.weights.any() and soft.soft is not None


def test_the_passage_of_a_question():
    text = " ".join(f"Lamp {n} belongs to Keeper{n}. It is green. It shines." for n in range(30))
    passages = Passages(text, 6)
    assert len(passages.texts) > 10
    assert "Keeper17" in passages.about("Which lamp has Keeper17?")
    assert "Keeper4." in passages.about("Which lamp? It belongs to Keeper4.")
    assert passages.about("zebra") == passages.texts[0]
    assert Passages("word", 6).about("zebra") == "word"


def test_a_passage_with_the_evidence_comes_before_one_with_more_words():
    text = "The red mill of Orne had a wheel. " * 4 + "Nobody knew it. " * 8 + "Paul left in May."
    passages = Passages(text, 4)
    question = "Who left the red mill of Orne with a wheel?"
    assert "Paul" not in passages.about(question)
    assert "Paul left" in passages.about(question, "Paul left in May.")


def test_two_objectives_share_a_source():
    source = Arriving()
    shared = SharedPairs(source)
    one, two = shared.reader(), shared.reader()
    source.new = [PAIR]
    assert one.poll() == [PAIR] and one.poll() == []
    source.done = True
    assert one.done and not two.done
    assert two.poll() == [PAIR] and two.done and two.expected == 3


@pytest.mark.parametrize("questions", [False, True])
def test_absorb(questions, tmp_path):
    """The whole run, with the teacher's folder there until the memory is saved."""
    model, tokenizer, text = lively(), Letters(), TEXT[:130]
    objectives = ("segments", "qa", "distill") if questions else ("segments", "distill")
    config = LiftConfig(segment_length=40, epochs=1, rank=4, objectives=objectives)
    qa = [PAIR, Pair("Who keeps lamp 0?", "Ada")] if questions else None

    def absorb():
        return liftcore.absorb(
            model, tokenizer, text, config=config, resume=tmp_path, progress=False, qa=qa
        )

    memory, passes = absorb(), 2 * len(text)
    if questions:  # each of the two objectives has every pair
        prompts = [
            answer.question_ids(tokenizer, "the document", "", p.question)
            + answer.reply_ids(tokenizer, p.answer)
            for p in qa
        ]
        passes = len(text) + 2 * sum(len(p) - 1 for p in prompts)
    assert memory.training.token_passes >= passes
    kept = sorted(f.name for f in (tmp_path / "samples").iterdir())
    again = absorb()
    assert torch.equal(again.adapter.values, memory.adapter.values)
    assert sorted(f.name for f in (tmp_path / "samples").iterdir()) == kept
    again.save(tmp_path)
    assert not (tmp_path / "samples").exists()


def divergence(model, samples):
    """Mean of Σ p log(p / q) over the scored tokens and the whole vocabulary."""
    total = count = 0
    for sample in samples:
        rows = np.flatnonzero(sample.weights)
        ids = torch.from_numpy(sample.soft.ids[rows]).long()
        p = torch.from_numpy(sample.soft.probs[rows]).float()
        logits = model(input_ids=torch.from_numpy(sample.ids).long()[None]).logits[0, rows - 1]
        q = logits.log_softmax(-1).gather(-1, ids)
        total += (p * (p.clamp_min(1e-8).log() - q)).sum()
        count += len(rows)
    return float(total / count)


def test_a_student_approaches_its_teacher():
    model = lively()
    model.get_output_embeddings().weight.data.mul_(8)
    given = [PAIR, Pair("Who counts 17 boats?", "Frida"), Pair("Who keeps lamp 0?", "Ada")]
    (_, whole), (_, objective) = (pairs(model, GivenPairs(given), k=k) for k in (211, 20))
    samples, all_classes = objective.samples(0), whole.samples(0)
    adapter = Adapter(model, rank=8, alpha=16.0)
    adapter.install()
    with torch.no_grad():
        before = divergence(model, all_classes)
    values = [p for m in adapter.layers.values() for p in (m.lora_a, m.lora_b)]
    optimizer = torch.optim.AdamW(values, lr=1e-2, weight_decay=0.0)
    batch, lm_head = make(samples), head(model)
    for _ in range(40):
        optimizer.zero_grad(set_to_none=False)
        batch_loss(model, lm_head, batch, 1.0).backward()
        optimizer.step()
    with torch.no_grad():
        after = divergence(model, all_classes)
    print("divergence", before, after)
    assert before > 0.3 and 0 < after < 0.3 * before


def test_the_loss_of_samples_is_that_of_their_targets():
    """From samples through the batch to the loss, against the reference on each row alone."""
    model = lively()
    _, objective = segments(model, window=64, piece=16, k=5)
    samples = objective.samples(0)[:4]
    ours = batch_loss(model, head(model), make(samples), 1.0)
    right = 0.0
    for s in samples:
        hidden = model.get_decoder()(torch.from_numpy(s.ids).long()[None]).last_hidden_state[0]
        right += linear_soft_cross_entropy(
            hidden[:-1],
            model.get_output_embeddings().weight,
            torch.from_numpy(s.soft.ids[1:]).long(),
            torch.from_numpy(s.soft.probs[1:]).float(),
            token_weights=torch.from_numpy(s.weights[1:]),
            reduction="sum",
        )
    assert torch.allclose(ours, right, rtol=1e-4)
