"""Distillation: the teacher's targets token by token, what the student sees, and the cache."""

import numpy as np
import pytest
import torch
from tiny import tiny_model

import liftcore
from liftcore import answer, document, sample_batch
from liftcore.config import LiftConfig
from liftcore.kernels.reference import linear_soft_cross_entropy
from liftcore.lora import Adapter
from liftcore.model import head, prefix_ids
from liftcore.objectives import teacher as teaching
from liftcore.objectives.distill import DistilledPairs, DistilledSegments
from liftcore.objectives.pairs import GivenPairs, Pair
from liftcore.objectives.passages import Passages
from liftcore.objectives.shared_pairs import SharedPairs
from liftcore.objectives.teacher import Reading, Teacher
from liftcore.sample_steps import sample_loss

TEXT = " ".join(
    f"The keeper of lamp {n} is called {name} and she counts {3 * n + 2} boats."
    for n, name in enumerate(["Ada", "Berta", "Clara", "Dora", "Elsa", "Frida"])
)
PAIR = Pair("Who keeps lamp 2?", "Clara", evidence="lamp 2 is called Clara")


class Letters:
    """A tokenizer with a token a letter."""

    chat_template, eos_token_id, pad_token_id = None, 2, 0

    def __init__(self, bos=True):
        self.bos_token_id = 1 if bos else None

    def __call__(self, text, add_special_tokens=True, **options):
        bos = [1] if add_special_tokens and self.bos_token_id else []
        return {"input_ids": bos + [3 + ord(c) % 200 for c in text]}

    def decode(self, ids, **options):
        return "".join(chr(i - 3) for i in ids if i > 2)


@pytest.fixture(params=["llama", "gemma2", "granite"])
def family(request):
    return request.param


def lively(family="llama", seed=0, **changes):
    """A tiny model that is not indifferent to what it reads."""
    model = tiny_model(family, seed=seed, max_position_embeddings=640, **changes)
    for p in model.parameters():
        if p.ndim == 2:
            p.data.mul_(4)
    return model


def naive(model, ids, k):
    """The k likeliest tokens behind `ids` by the model's own logits and a full softmax."""
    logits = model(input_ids=torch.tensor([list(map(int, ids))])).logits[0, -1]
    return logits.double().softmax(-1).topk(k)


def assert_taught(ids, probs, model, context):
    """One token's targets against the naive computation."""
    right = naive(model, context, len(ids))
    assert torch.allclose(torch.tensor(probs).double(), right.values, rtol=2e-3, atol=1e-6)
    # Equal probabilities may change places.
    close = torch.tensor(np.abs(probs - np.roll(probs, 1)) + np.abs(probs - np.roll(probs, -1)))
    sure = close > 4e-3 * torch.tensor(probs)
    assert (torch.tensor(ids).long() == right.indices)[sure].float().mean() > 0.9


def random_readings(rng, lengths):
    return [
        Reading(rng.integers(0, 211, n).astype(np.int32), int(rng.integers(1, n))) for n in lengths
    ]


def test_targets_token_by_token(family, rng, monkeypatch):
    monkeypatch.setattr(teaching, "BATCH_TOKENS", 30)  # several batches, with padding
    monkeypatch.setattr(teaching, "CHUNK_BYTES", 4 * 211 * 3)  # three rows of logits at once
    model = lively(family)
    readings = random_readings(rng, [9, 2, 31, 14, 12])
    found = Teacher(model, 6).targets(readings)
    for reading, targets in zip(readings, found, strict=True):
        n = len(reading.ids) - reading.first
        assert targets.ids.shape == targets.probs.shape == (n, 6)
        assert targets.ids.dtype == np.int32 and targets.probs.dtype == np.float16
        for j in range(n):
            context = reading.ids[: reading.first + j]
            assert_taught(targets.ids[j], targets.probs[j], model, context)


def test_the_mass_of_k_tokens(rng):
    model = lively()
    readings = random_readings(rng, [20, 7])
    for few, all_of_them in zip(
        Teacher(model, 5).targets(readings), Teacher(model, 500).targets(readings), strict=True
    ):
        assert all_of_them.ids.shape[1] == 211  # no more than the vocabulary
        assert np.abs(all_of_them.probs.astype(float).sum(1) - 1).max() < 5e-3
        mass = few.probs.astype(float).sum(1)
        assert (mass < 1).all() and (mass > 5 / 211).all()  # not renormalised
        assert (np.diff(few.probs.astype(float), axis=1) <= 0).all()


def with_adapter(model):
    adapter = Adapter(model, rank=4, alpha=64.0)
    adapter.values.normal_(generator=torch.Generator().manual_seed(0))
    adapter.install()
    return adapter


def test_the_teacher_never_sees_the_adapter(rng, monkeypatch, tmp_path):
    model = lively()
    readings = random_readings(rng, [20, 7])
    right = Teacher(model, 5, tmp_path).targets(readings)
    adapter, ids = with_adapter(model), torch.tensor([[5, 6, 7]])
    before = model(input_ids=ids).logits
    model.train()
    teacher = Teacher(model, 5)
    for ours, wanted in zip(teacher.targets(readings), right, strict=True):
        assert np.array_equal(ours.ids, wanted.ids) and np.array_equal(ours.probs, wanted.probs)
    assert model.training and model._liftcore_adapter is adapter
    assert torch.equal(model.eval()(input_ids=ids).logits, before)
    # The cache knows the teacher again, whatever is installed.
    cached = Teacher(model, 5, tmp_path)
    cached.targets(readings)
    assert cached.computed == 0

    def fails(*args):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(teacher, "_read", fails)
    with pytest.raises(RuntimeError):
        teacher.targets(readings)
    assert model._liftcore_adapter is adapter


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


def test_the_source_says_what_a_pair_is_about():
    source = Arriving()
    source.window_text = lambda number: f"window {number}"
    _, objective = pairs(lively(), source)
    assert objective._text(source, Pair("Who keeps lamp 2?", "Clara", window=4)) == "window 4"
    assert "Clara" in objective._text(source, PAIR)  # window -1: the user's


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


def test_two_objectives_share_a_source():
    source = Arriving()
    shared = SharedPairs(source)
    one, two = shared.reader(), shared.reader()
    source.new = [PAIR]
    assert one.poll() == [PAIR] and one.poll() == []
    source.done = True
    assert one.done and not two.done
    assert two.poll() == [PAIR] and two.done and two.expected == 3


def test_cache_round_trip(rng, tmp_path, monkeypatch):
    monkeypatch.setattr(teaching, "BATCH_TOKENS", 40)
    model, readings = lively(), random_readings(rng, [20, 7, 33])
    first = Teacher(model, 5, tmp_path)
    right = first.targets(readings[:2])
    assert first.computed == 2
    again = Teacher(model, 5, tmp_path)
    for ours, wanted in zip(again.targets(readings), right, strict=False):
        assert np.array_equal(ours.ids, wanted.ids) and np.array_equal(ours.probs, wanted.probs)
        assert ours.ids.dtype == np.int32 and ours.probs.dtype == np.float16
    assert again.computed == 1
    other_tokens = [Reading(r.ids, r.first % (len(r.ids) - 1) + 1) for r in readings]
    for teacher, wanted in (
        (Teacher(model, 4, tmp_path), readings),
        (Teacher(lively(seed=1), 5, tmp_path), readings),
        (Teacher(model, 5, tmp_path), other_tokens),
    ):
        teacher.targets(wanted)
        assert teacher.computed == 3


def test_a_damaged_or_full_cache_costs_time_only(rng, tmp_path):
    model, readings = lively(), random_readings(rng, [20])
    (right,) = Teacher(model, 5, tmp_path).targets(readings)
    (file,) = tmp_path.glob("*.safetensors")
    for damage in (file.read_bytes()[:-30], b"nothing"):
        opened = Teacher(model, 5, tmp_path)
        file.write_bytes(damage)
        for teacher in (opened, Teacher(model, 5, tmp_path)):
            (found,) = teacher.targets(readings)
            assert teacher.computed == 1 and np.array_equal(found.ids, right.ids)
            file.write_bytes(damage)
    teacher = Teacher(model, 5, tmp_path / "new")
    (tmp_path / "new").rmdir()
    (tmp_path / "new").write_text("in the way")
    (found,) = teacher.targets(readings)
    assert np.array_equal(found.ids, right.ids) and "cannot write" in teacher.cache.problem


def test_what_was_computed_before_a_failure_is_kept(rng, tmp_path, monkeypatch):
    monkeypatch.setattr(teaching, "BATCH_TOKENS", 20)
    model, readings = lively(), random_readings(rng, [20, 10])
    teacher = Teacher(model, 5, tmp_path)
    read = teacher._read

    def fails(batch):
        if teacher.computed:
            raise KeyboardInterrupt
        return read(batch)

    monkeypatch.setattr(teacher, "_read", fails)
    with pytest.raises(KeyboardInterrupt):
        teacher.targets(readings)
    resumed = Teacher(model, 5, tmp_path)
    resumed.targets(readings)
    assert resumed.computed == 1


@pytest.mark.parametrize("questions", [False, True])
def test_absorb(questions, tmp_path):
    """The whole run, with the teacher's folder there until the memory is saved."""
    model, tokenizer = lively(), Letters()
    objectives = ("segments", "qa", "distill") if questions else ("segments", "distill")
    config = LiftConfig(segment_length=40, epochs=2, rank=4, objectives=objectives)
    qa = [PAIR, Pair("Who keeps lamp 0?", "Ada")] if questions else None

    def absorb():
        return liftcore.absorb(
            model, tokenizer, TEXT, config=config, resume=tmp_path, progress=False, qa=qa
        )

    memory = absorb()
    # Every objective had the pairs: two prompts and answers more an epoch for each.
    plain = config.replace(objectives=("segments",))
    alone = liftcore.absorb(model, tokenizer, TEXT, config=plain, progress=False)
    assert memory.training.token_passes > alone.training.token_passes + 200
    kept = sorted(f.name for f in (tmp_path / "teacher").iterdir())
    again = absorb()
    assert torch.equal(again.adapter.values, memory.adapter.values)
    assert sorted(f.name for f in (tmp_path / "teacher").iterdir()) == kept
    again.save(tmp_path)
    assert not (tmp_path / "teacher").exists()


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
    batch, lm_head = sample_batch.make(samples), head(model)
    for _ in range(40):
        optimizer.zero_grad(set_to_none=False)
        sample_loss(model, lm_head, batch, 1.0).backward()
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
    ours = sample_loss(model, head(model), sample_batch.make(samples), 1.0)
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
    assert prefix_ids(Letters()) == [1]
