"""The teacher of distillation: its targets against a full softmax, its adapter, its cache."""

import numpy as np
import pytest
import torch
from distill_checks import assert_taught, lively, random_readings

from liftcore.layers.lora import Adapter
from liftcore.objectives import teacher as module
from liftcore.objectives.teacher import Reading, Teacher


@pytest.fixture(params=["llama", "gemma2", "granite"])
def family(request):
    return request.param


def test_targets_token_by_token(family, rng, monkeypatch):
    monkeypatch.setattr(module, "BATCH_TOKENS", 30)  # several batches, with padding
    monkeypatch.setattr(module, "CHUNK_BYTES", 4 * 211 * 3)  # three rows of logits at once
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


def test_cache_round_trip(rng, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "BATCH_TOKENS", 40)
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
    monkeypatch.setattr(module, "BATCH_TOKENS", 20)
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
