"""absorb_many: what each document learns beside others is what it learns alone."""

import os
import signal
from functools import partial

import numpy as np
import pytest
import torch
from bees import PAIRS
from errors_and_seeds import fresh_seed

import liftcore
from liftcore import many, prepare, report
from liftcore.config import LiftConfig
from liftcore.errors import LiftError, UsageError
from liftcore.layers.lora import Adapter, installed
from liftcore.objectives import forgetting
from liftcore.output import STATE
from liftcore.training.together_runner import TogetherRunner

# A large eps: Adam would turn rounding in a gradient near 0 into a whole step. A bound on the
# gradient that clips some steps of some documents.
CONFIG = LiftConfig(
    segment_length=16, epochs=2, batch_size=2, rank=4, learning_rate=5e-3, eps=1e-2,
    max_grad_norm=0.5, min_steps=4,
)  # fmt: skip
# One document ends long before the others, and one has a single segment, and more epochs for it.
LENGTHS = (70, 11, 40, 33)
NEAR = 1e-4


@pytest.fixture(autouse=True, scope="module")
def short_reports():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report, "measure", partial(report.measure, probes=2, new=4))
        patch.setattr(forgetting, "own_loss", lambda model, rows: 0.0)
        yield


@pytest.fixture(scope="module")
def base(tiny_folder):
    """(model, tokenizer); every test leaves it as it was."""
    return liftcore.load(tiny_folder, device="cpu", dtype=torch.float32)


@pytest.fixture(scope="module")
def texts():
    rng = np.random.default_rng(fresh_seed().initial_seed())
    return [rng.integers(300, 4000, n).tolist() for n in LENGTHS]


@pytest.fixture(scope="module")
def right(base, texts):
    """What they learn alone with the settings above."""
    return _alone(base, texts, CONFIG)


def _alone(base, texts, config, **options):
    memories = []
    for i, text in enumerate(texts):
        own = {name: each[i] for name, each in options.items()}
        memories.append(liftcore.absorb(*base, text, config=config, progress=False, **own))
        memories[-1].adapter.remove()
    return memories


def _same(ours, right):
    assert len(ours) == len(right)
    for memory, other in zip(ours, right, strict=True):
        began = Adapter.of(memory.model, memory.config)
        moved = (other.adapter.values - began.values).norm()
        # What was learnt, and not what A began with.
        assert (memory.adapter.values - other.adapter.values).norm() <= NEAR * moved
        torch.testing.assert_close(memory.adapter.frozen, other.adapter.frozen)
        assert memory.training.steps == other.training.steps
        assert memory.training.token_passes == other.training.token_passes
        assert memory.training.loss == pytest.approx(other.training.loss, rel=1e-4)
        assert memory.training.curve == pytest.approx(other.training.curve, rel=1e-3)
        assert memory.questions == other.questions
        assert (memory.title, memory.sha256) == (other.title, other.sha256)
        assert memory.report.positions == other.report.positions


def test_each_document_learns_what_it_learns_alone(base, texts, right):
    for together in (2, 4):
        ours = liftcore.absorb_many(*base, texts, CONFIG, together=together, progress=False)
        _same(ours, right)
        assert installed(base[0]) is None


def test_made_for_each_document_with_questions_of_its_own(base, texts):
    """A that is fitted to the document and frozen, titles, and questions of some documents."""
    texts = texts[:3]
    config = CONFIG.replace(adapter_init="document", train_a=False, layers=0.5)
    own = dict(title=["Bees", None, "Goats"], qa=[PAIRS, None, PAIRS[:1]])
    right = _alone(base, texts, config, **own)
    how = dict(titles=own["title"], qa=own["qa"], together=2, progress=False)
    _same(liftcore.absorb_many(*base, texts, config, **how), right)


def test_a_place_that_is_free_is_taken_in_the_next_step(base, texts, monkeypatch):
    present = []

    def take(self, step):
        present.append([learner.number for learner in step.learners.values()])
        return own(self, step)

    own = TogetherRunner._take
    monkeypatch.setattr(TogetherRunner, "_take", take)
    order = []
    liftcore.absorb_many(
        *(*base, iter(texts), CONFIG),
        together=2,
        on_memory=lambda number, memory: order.append(number),
        progress=False,
    )
    assert present[0] == [0, 1] and sorted(order) == [0, 1, 2, 3]
    # Never one alone while others wait.
    last = next(i for i, numbers in enumerate(present) if 3 in numbers)
    assert all(len(numbers) == 2 for numbers in present[:last])
    # The second document ends first, and the third takes its slot.
    assert order[0] == 1 and next(n for n in present if 1 not in n) == [0, 2]


def test_one_that_fails_stops_no_other(base, texts, right, tmp_path, monkeypatch):
    memories, failures = {}, {}
    documents = [texts[0], tmp_path / "missing.txt", "x", texts[3], texts[2]]

    def take(self, step):
        # The last document's loss is no number in its second step.
        for slot, learner in step.learners.items():
            if learner.number == 4 and step.parts[slot].number == 1:
                self.adapter.values[slot] = torch.inf
        return whole(self, step)

    whole = TogetherRunner._take
    monkeypatch.setattr(TogetherRunner, "_take", take)
    liftcore.absorb_many(
        *(*base, documents, CONFIG),
        together=2,
        on_memory=memories.__setitem__,
        on_failure=failures.__setitem__,
        progress=False,
    )
    _same([memories[0], memories[3]], [right[0], right[3]])
    assert sorted(memories) == [0, 3] and sorted(failures) == [1, 2, 4]
    assert "no such file" in str(failures[1]) and "number at step 2" in str(failures[4])
    assert all(isinstance(error, LiftError) for error in failures.values())
    assert installed(base[0]) is None
    with pytest.raises(LiftError, match="no such file"):
        liftcore.absorb_many(*base, documents, CONFIG, progress=False)
    assert installed(base[0]) is None


def test_a_memory_is_whole_when_it_is_handed_over(base, texts, tmp_path):
    answers = {}

    def take(number, memory):
        answers[number] = memory.ask("Who?", max_new_tokens=4)
        memory.save(tmp_path / str(number))

    how = dict(together=2, on_memory=take, progress=False)
    assert liftcore.absorb_many(*base, texts[:3], CONFIG, **how) == []
    for number in range(3):
        memory = liftcore.load_memory(tmp_path / str(number), base)
        assert memory.ask("Who?", max_new_tokens=4) == answers[number]
        assert memory.length == LENGTHS[number]


def test_a_run_that_was_broken_off_goes_on_together_or_alone(base, texts, tmp_path, monkeypatch):
    texts = [texts[0], texts[2], texts[3]]
    config = CONFIG.replace(adapter_init="document", train_a=False, layers=0.5)
    right = _alone(base, texts, config)
    here = [tmp_path / str(number) for number in range(3)]
    how = dict(progress=False, config=config)
    taken, last = [], [1]

    def stop(at):
        if at.step == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(KeyboardInterrupt):
        liftcore.absorb(*base, texts[2], resume=here[2], on_step=stop, **how)

    def take(self, step):
        whole(self, step)
        taken.extend(learner.number for learner in step.learners.values())
        if step.number == last[0]:
            os.kill(os.getpid(), signal.SIGTERM)

    whole = TogetherRunner._take
    monkeypatch.setattr(TogetherRunner, "_take", take)
    with pytest.raises(KeyboardInterrupt):
        liftcore.absorb_many(*base, texts, together=3, resume=here, **how)
    assert sorted(taken) == [0, 0, 1, 1, 2, 2] and installed(base[0]) is None
    # The first goes on alone, the others together.
    first = liftcore.absorb(*base, texts[0], resume=here[0], **how)
    first.adapter.remove()
    last[0] = None
    others = liftcore.absorb_many(*base, texts[1:], resume=here[1:], **how)
    _same([first, *others], right)
    # No step was taken twice, wherever it was.
    steps = [memory.training.steps for memory in right]
    assert len(taken) == 2 + steps[1] + steps[2] - 2
    # What is damaged, or of other settings, is that document's failure.
    (here[1] / STATE).write_bytes(b"nothing")
    failures = {}
    liftcore.absorb_many(
        *(*base, texts[1:], config.replace(seed=7)),
        resume=here[1:],
        on_memory=lambda number, memory: None,
        on_failure=failures.__setitem__,
        progress=False,
    )
    assert "is damaged" in str(failures[0]) and "seed was 0, now 7" in str(failures[1])


def test_an_interrupt_does_not_wait_for_the_next_document(base, texts, tmp_path, monkeypatch):
    """The one that is being prepared begins anew, those in the batch go on."""
    texts, here = texts[:3], [tmp_path / str(number) for number in range(3)]
    right = _alone(base, texts, CONFIG)
    begun, through, real = [], [], prepare.prepare

    def slow(model, tokenizer, document, *rest, **options):
        begun.append(document.sha256)
        if len(begun) == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        made = real(model, tokenizer, document, *rest, **options)
        through.append(document.sha256)
        return made

    with monkeypatch.context() as patch:
        patch.setattr(prepare, "prepare", slow)
        with pytest.raises(KeyboardInterrupt):
            liftcore.absorb_many(*base, texts, CONFIG, together=2, resume=here, progress=False)
    assert len(begun) == 3 and through == begun[:2] and installed(base[0]) is None
    # The first was in the batch, the second was over.
    assert [(each / STATE).exists() for each in here] == [True, False, False]
    first = liftcore.absorb_many(*base, texts[:1], CONFIG, resume=here[:1], progress=False)
    _same(first, right[:1])


def test_an_adapter_to_begin_from(base, texts, tmp_path):
    begun, *others = texts[2:], *texts[:2]
    first = liftcore.absorb(*base, begun[0], config=CONFIG, progress=False)
    first.save(tmp_path / "first")
    first.adapter.remove()
    right = liftcore.absorb(
        *base, others[0], config=CONFIG, init=tmp_path / "first", progress=False
    )
    right.adapter.remove()
    how = dict(init=tmp_path / "first", together=2, progress=False)
    ours = liftcore.absorb_many(*base, others, CONFIG, **how)[0]
    moved = (right.adapter.values - first.adapter.values).norm()
    assert (ours.adapter.values - right.adapter.values).norm() <= NEAR * moved
    assert ours.training.start == right.training.start != ""


def test_settings_of_one_document_are_refused(base, texts):
    for changes in (dict(keep=0.5), dict(qa_first=True)):
        with pytest.raises(UsageError, match="one document"):
            liftcore.absorb_many(*base, texts, CONFIG.replace(**changes), progress=False)
    with pytest.raises(UsageError, match="base in fp8"):
        liftcore.absorb_many(*base, texts, CONFIG.replace(base_dtype="fp8"), progress=False)
    with pytest.raises(UsageError, match="at least 1"):
        liftcore.absorb_many(*base, texts, CONFIG, together=0, progress=False)
    with pytest.raises(UsageError, match="entry for each"):
        liftcore.absorb_many(*base, texts, CONFIG, titles=["Bees"], progress=False)
    assert liftcore.absorb_many(*base, [], CONFIG, progress=False) == []


def test_as_many_as_fill_a_step_and_fit_into_memory(base, monkeypatch):
    small, full = CONFIG.replace(batch_size=1), CONFIG.replace(tokens_per_step=512)
    monkeypatch.setattr(many, "free_bytes", lambda device: None)
    assert many.worth_together(base[0], small) == 32
    assert many.worth_together(base[0], full) == 1
    slots = Adapter.of(base[0], small, slots=2).values
    # In fp32: an update's four tensors, and values and gradients twice.
    each = slots.shape[1] * 32
    monkeypatch.setattr(many, "free_bytes", lambda device: int(5.5 * each / many.SHARE))
    assert many.worth_together(base[0], small) == 5
    monkeypatch.setattr(many, "free_bytes", lambda device: 0)
    assert many.worth_together(base[0], small) == 1
