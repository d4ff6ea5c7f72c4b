"""Segments as data sets, and the collator, under a plain DataLoader and under Trainer."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tiny import tiny_model
from torch.utils.data import DataLoader

from liftcore.config import LiftConfig
from liftcore.data import Collator, SegmentDataset, SegmentStream
from liftcore.errors import UsageError
from liftcore.objectives.segments import Segments
from liftcore.segments import cut
from liftcore.training.batch import make

TOKENIZER = SimpleNamespace(pad_token_id=None, eos_token_id=7)
CONFIGS = {
    "jitter": LiftConfig(segment_length=16, epochs=3, batch_size=3),
    "new": LiftConfig(
        segment_length=16, schedule="overlap", overlap_loss="new", batch_size=3, epochs=1
    ),
    "trivial": LiftConfig(segment_length=16, schedule="trivial", batch_size=2, epochs=2),
}


@pytest.fixture
def tokens(rng):
    return rng.integers(3, 200, size=int(rng.integers(60, 200)))


def test_the_collator_pads_to_the_longest_and_keeps_the_rest():
    items = [
        {"input_ids": [1, 2], "labels": torch.tensor([1, 2]), "attention_mask": [1, 1], "id": "a"},
        {"input_ids": [3], "labels": torch.tensor([3]), "attention_mask": [1], "id": ("b", 2)},
    ]
    batch = Collator(TOKENIZER)(items)
    assert batch["input_ids"].tolist() == [[1, 2], [3, 7]]
    assert batch["labels"].tolist() == [[1, 2], [3, -100]]
    assert batch["attention_mask"].tolist() == [[1, 1], [1, 0]]
    assert batch["id"] == ["a", ("b", 2)]
    padded = Collator(SimpleNamespace(pad_token_id=0, eos_token_id=7))(items)
    assert padded["input_ids"].tolist() == [[1, 2], [3, 0]]


def test_the_collator_pads_position_ids():
    items = [{"position_ids": [0, 1, 2]}, {"position_ids": torch.tensor([4])}]
    assert Collator(TOKENIZER)(items)["position_ids"].tolist() == [[0, 1, 2], [4, 0, 0]]


@pytest.mark.parametrize("odd", [0, 1])
def test_the_collator_names_keys_that_not_every_item_has(odd):
    items = [{"input_ids": [1]}, {"input_ids": [2]}]
    items[odd]["labels"] = [1]
    with pytest.raises(UsageError, match="labels"):
        Collator(TOKENIZER)(items)


@pytest.mark.parametrize("prefix", [[], [1]])
@pytest.mark.parametrize("name", CONFIGS)
def test_items_are_those_that_liftcore_trains_on(tokens, name, prefix):
    """The same tokens, targets and weights, once labels are shifted."""
    config = CONFIGS[name]
    data = SegmentDataset(tokens, config, prefix=prefix)
    stream = SegmentStream(tokens, config, prefix=prefix, weights=True)
    shuffled = {index: item for index, item in zip(stream.index, stream, strict=True)}
    visited = []
    for epoch in range(config.epochs):
        for i, sample in enumerate(Segments(tokens, config, prefix).samples(epoch)):
            # A segment of one token has nothing to predict it from.
            if not sample.weights.any():
                continue
            ours = make([sample])
            item = shuffled.pop((epoch, i))
            assert torch.equal(item["input_ids"], ours.input_ids[0])
            assert torch.equal(item["weights"].roll(-1), ours.weights)
            assert torch.equal(item["labels"].roll(-1), ours.labels)
            visited.append(item["input_ids"].tolist())
    assert not shuffled
    assert [data[n]["input_ids"].tolist() for n in range(len(data))] == visited


def test_a_segment_that_scores_nothing_is_left_out():
    config = LiftConfig(segment_length=16, schedule="trivial", epochs=1)
    for prefix, count in ([], 2), ([1], 3):
        data = SegmentDataset(np.arange(33), config, prefix=prefix)
        assert len(data) == len(list(SegmentStream(np.arange(33), config, prefix=prefix))) == count


@pytest.mark.parametrize("size", [2, 3, 4])
def test_batches_of_a_stream_hold_little_padding(rng, size):
    """Only an epoch's first and last segment are short. They share a batch, or one of them stands
    in a batch that two epochs share."""
    config = LiftConfig(segment_length=16, epochs=8, batch_size=size)
    stream = SegmentStream(rng.integers(3, 200, size=16 * 40 + 8), config, prefix=[1])
    batches = list(DataLoader(stream, size, collate_fn=Collator(TOKENIZER)))
    assert [len(b["labels"]) for b in batches[:-1]] == [size] * (len(batches) - 1)
    order = [epoch for epoch, _ in stream.index]
    assert order == sorted(order)
    for epoch, segments in enumerate(stream.cuts):
        ends = (0, len(segments) - 1)
        short = [i for i in ends if len(segments.weights[i]) < 16]
        held = {stream.index.index((epoch, i)) // size for i in short}
        begin, count = order.index(epoch), order.count(epoch)
        assert len(held) <= 1 or held & {begin // size, (begin + count - 1) // size}


def test_every_token_is_scored_once_an_epoch_and_jitter_cuts_anew(tokens):
    data = SegmentDataset(tokens, CONFIGS["jitter"], prefix=[1])
    items = [data[i] for i in range(len(data))]
    assert all(item["input_ids"][0] == 1 and item["labels"][0] == -100 for item in items)
    labels = torch.cat([item["labels"] for item in items])
    assert torch.equal(labels[labels != -100], torch.from_numpy(tokens).repeat(3))
    right = [cut(len(tokens), CONFIGS["jitter"], e) for e in range(3)]
    lengths = [int(n) + 1 for s in right for n in s.stop - s.start]
    assert [len(item["labels"]) for item in items] == lengths
    assert len({int(s.stop[0]) for s in right}) > 1


def test_overlap_new_masks_what_was_seen(tokens):
    config = CONFIGS["new"]
    data = SegmentDataset(tokens, config)
    seen = 0
    for n, (epoch, i) in enumerate(data.index):
        start, labels = data.cuts[epoch].start[i], data[n]["labels"]
        context = max(0, seen - int(start))
        assert (labels[: max(1, context)] == -100).all() and (labels[max(1, context) :] >= 0).all()
        assert set(data[n]) == {"input_ids", "labels"}
        seen = int(start) + len(labels)


def _batches(stream, size, workers):
    loader = DataLoader(stream, size, num_workers=workers, collate_fn=Collator(TOKENIZER))
    return [[{k: v.tolist() for k, v in b.items()} for b in loader] for _ in range(2)]


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_give_the_batches_of_one_process(tokens, workers):
    """And every pass holds all epochs: nothing is counted in a worker's copy."""
    config = CONFIGS["jitter"]
    stream = SegmentStream(tokens, config, prefix=[1])
    alone = _batches(stream, 3, 0)[0]
    assert _batches(stream, 3, workers) == [alone, alone]
    assert _scored(alone) == sorted(tokens.tolist() * 3)


@pytest.mark.parametrize("workers", [0, 1, 2])
@pytest.mark.parametrize("size", [None, 2, 5])
def test_steps_of_a_stream_are_the_batches_it_gives(tokens, size, workers):
    stream = SegmentStream(tokens, CONFIGS["jitter"])
    batches = _batches(stream, size or 3, workers)[0]
    assert stream.steps(size, workers=workers) == len(batches)
    assert stream.steps(size, workers=workers, accumulation=2) == len(batches) // 2


def test_weights_of_mean_are_asked_for(tokens):
    config = LiftConfig(segment_length=16, schedule="overlap", overlap_loss="mean", epochs=1)
    with pytest.raises(UsageError, match="remove_unused_columns=False"):
        SegmentDataset(tokens, config)
    data = SegmentDataset(tokens, config, prefix=[1], weights=True)
    total = sum(data[i]["weights"].sum() for i in range(len(data)))
    assert total == pytest.approx(len(tokens), rel=1e-5)
    padded = Collator(TOKENIZER)([data[0], {k: v[:3] for k, v in data[0].items()}])["weights"]
    assert padded.dtype == torch.float32 and not padded[1, 3:].any()


def _trained(data, folder, resume=None, **settings):
    """The batches that Trainer takes from a data set."""
    from transformers import Trainer, TrainingArguments

    seen = []

    class Watched(Trainer):
        def compute_loss(self, model, inputs, **kwargs):
            seen.append({k: v.tolist() for k, v in inputs.items()})
            return super().compute_loss(model, inputs, **kwargs)

    length = {"num_train_epochs": 1}
    if isinstance(data, SegmentStream):
        accumulation = settings.get("gradient_accumulation_steps", 1)
        length = {"max_steps": data.steps(accumulation=accumulation)}
    trainer = Watched(
        tiny_model().requires_grad_(True),
        TrainingArguments(
            str(folder),
            per_device_train_batch_size=data.config.batch_size,
            use_cpu=True,
            report_to=[],
            disable_tqdm=True,
            **{"save_strategy": "no", **length, **settings},
        ),
        train_dataset=data,
        data_collator=Collator(TOKENIZER),
    )
    trainer.train(resume_from_checkpoint=resume)
    return seen


@pytest.mark.parametrize("kind", [SegmentDataset, SegmentStream])
def test_trainer_takes_them_as_they_are(tokens, kind, tmp_path):
    pytest.importorskip("accelerate")
    data = kind(tokens, CONFIGS["jitter"])
    seen = _trained(data, tmp_path)
    assert all(set(b) == {"input_ids", "labels"} for b in seen)
    assert len(seen) == SegmentStream(tokens, CONFIGS["jitter"]).steps()
    assert _scored(seen) == sorted(t for i in data for t in _targets(i["labels"].tolist()))


@pytest.mark.parametrize("kind", [SegmentDataset, SegmentStream])
def test_a_resumed_trainer_takes_the_batches_of_an_uninterrupted_one(tokens, kind, tmp_path):
    pytest.importorskip("accelerate")
    data = kind(tokens, CONFIGS["jitter"])
    whole = _trained(data, tmp_path, save_strategy="steps", save_steps=1)
    for step in 1, len(whole) // 2 + 1:
        rest = _trained(data, tmp_path / "again", resume=str(tmp_path / f"checkpoint-{step}"))
        assert rest == whole[step:]


def test_trainer_accumulates_over_a_stream_once(tokens, tmp_path):
    pytest.importorskip("accelerate")
    data = SegmentStream(tokens, CONFIGS["jitter"])
    seen = _trained(data, tmp_path, gradient_accumulation_steps=2)
    assert seen == _batches(data, 3, 0)[0][: data.steps() // 2 * 2]


def _scored(batches):
    return sorted(t for batch in batches for row in batch["labels"] for t in _targets(row))


def _targets(labels):
    return [label for label in labels if label != -100]
