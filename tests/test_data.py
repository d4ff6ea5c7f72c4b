"""Segments as data sets, and the collator, under a plain DataLoader and under Trainer."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tiny import tiny_model
from torch.utils.data import DataLoader

from liftcore import batch
from liftcore.config import LiftConfig
from liftcore.data import Collator, SegmentDataset, SegmentStream
from liftcore.errors import UsageError
from liftcore.segments import cut

TOKENIZER = SimpleNamespace(pad_token_id=None, eos_token_id=7)
CONFIGS = {
    "jitter": LiftConfig(segment_length=16, epochs=3, batch_size=3),
    "new": LiftConfig(segment_length=16, schedule="overlap", overlap_loss="new", batch_size=3),
    "trivial": LiftConfig(segment_length=16, schedule="trivial", batch_size=2),
}


@pytest.fixture
def tokens(rng):
    return rng.integers(3, 200, size=int(rng.integers(60, 200)))


def test_the_collator_pads_to_the_longest_and_keeps_the_rest():
    items = [
        {"input_ids": [1, 2], "labels": torch.tensor([1, 2]), "attention_mask": [1, 1], "id": "a"},
        {"input_ids": [3], "labels": torch.tensor([3]), "attention_mask": [1], "id": ("b", 2)},
    ]
    found = Collator(TOKENIZER)(items)
    assert found["input_ids"].tolist() == [[1, 2], [3, 7]]
    assert found["labels"].tolist() == [[1, 2], [3, -100]]
    assert found["attention_mask"].tolist() == [[1, 1], [1, 0]]
    assert found["id"] == ["a", ("b", 2)]
    padded = Collator(SimpleNamespace(pad_token_id=0, eos_token_id=7))(items)
    assert padded["input_ids"].tolist() == [[1, 2], [3, 0]]


@pytest.mark.parametrize("prefix", [[], [1]])
@pytest.mark.parametrize("name", CONFIGS)
def test_items_are_those_that_liftcore_trains_on(tokens, name, prefix):
    """The same tokens, targets and weights as batch.make, once labels are shifted."""
    config = CONFIGS[name]
    segments, steps = batch.plan(len(tokens), config, 0, prefix)
    stream = SegmentStream(tokens, config, prefix=prefix, weights=True)
    items = {tuple(item["input_ids"].tolist()): item for item in stream}
    # A segment of one token has nothing to predict it from.
    rows = [i for step in steps for i in step if prefix or len(segments.weights[i]) > 1]
    assert len(items) == len(rows)
    for i in rows:
        ours = batch.make(tokens, segments, [i], prefix)
        item = items[tuple(ours.input_ids[0].tolist())]
        assert torch.equal(item["weights"].roll(-1), ours.weights[0])
        assert torch.equal(item["labels"].roll(-1), ours.labels[0])
    data = SegmentDataset(tokens, config, prefix=prefix)
    found = [data[n]["input_ids"].tolist() for n in range(len(data))]
    texts = [tokens[segments.start[i] : segments.stop[i]].tolist() for i in sorted(rows)]
    assert found == [prefix + text for text in texts]


def test_a_segment_that_scores_nothing_is_left_out():
    config = LiftConfig(segment_length=16, schedule="trivial")
    for prefix, count in ([], 2), ([1], 3):
        data = SegmentDataset(np.arange(33), config, prefix=prefix)
        assert len(data) == len(list(SegmentStream(np.arange(33), config, prefix=prefix))) == count


def test_batches_of_a_stream_hold_little_padding(tokens):
    config = CONFIGS["jitter"]
    loader = DataLoader(
        SegmentStream(tokens, config), config.batch_size, collate_fn=Collator(TOKENIZER)
    )
    batches = list(loader)
    assert [len(b["labels"]) for b in batches[:-1]] == [3] * (len(batches) - 1)
    # Only the first and the last segment of a jittered epoch are shorter.
    padded = [b for b in batches if (b["labels"][:, 1:] == -100).any()]
    assert len(padded) <= 2


def test_every_token_is_scored_once_an_epoch_and_jitter_cuts_anew(tokens):
    data = SegmentDataset(tokens, CONFIGS["jitter"], prefix=[1])
    lengths = []
    for epoch in range(3):
        data.set_epoch(epoch)
        items = [data[i] for i in range(len(data))]
        labels = torch.cat([item["labels"] for item in items])
        assert torch.equal(labels[labels != -100], torch.from_numpy(tokens))
        assert all(item["input_ids"][0] == 1 and item["labels"][0] == -100 for item in items)
        lengths.append([len(item["labels"]) for item in items])
    assert lengths[0] != lengths[1] != lengths[2]
    first = cut(len(tokens), CONFIGS["jitter"], 0)
    assert lengths[0] == [int(n) + 1 for n in first.stop - first.start]


def test_overlap_new_masks_what_was_seen(tokens):
    config = CONFIGS["new"]
    data = SegmentDataset(tokens, config)
    seen = 0
    for i, start in enumerate(data.segments.start[data.rows]):
        labels = data[i]["labels"]
        context = max(0, seen - int(start))
        assert (labels[: max(1, context)] == -100).all() and (labels[max(1, context) :] >= 0).all()
        assert set(data[i]) == {"input_ids", "labels"}
        seen = int(start) + len(labels)


def test_a_stream_goes_on_to_the_next_epoch(tokens):
    stream = SegmentStream(tokens, CONFIGS["jitter"], prefix=[1])
    passes = [[i["input_ids"].tolist() for i in stream] for _ in range(2)]
    assert sorted(passes[0]) != sorted(passes[1])
    stream.set_epoch(0)
    assert [i["input_ids"].tolist() for i in stream] == passes[0]
    everything = sorted(t for item in passes[0] for t in item[1:])
    assert everything == sorted(tokens.tolist())


def test_steps_of_a_stream_are_the_batches_it_gives(tokens):
    stream = SegmentStream(tokens, CONFIGS["jitter"])
    loader = DataLoader(stream, 2, collate_fn=Collator(TOKENIZER))
    assert stream.steps(2) == sum(len(list(loader)) for _ in range(3))


def test_workers_share_a_stream(tokens):
    stream = SegmentStream(tokens, CONFIGS["jitter"], prefix=[1])
    loader = DataLoader(stream, 1, num_workers=2, collate_fn=lambda items: items[0])
    found = torch.cat([item["input_ids"][1:] for item in loader])
    assert sorted(found.tolist()) == sorted(tokens.tolist())


def test_weights_of_mean_are_asked_for(tokens):
    config = LiftConfig(segment_length=16, schedule="overlap", overlap_loss="mean")
    with pytest.raises(UsageError, match="mean"):
        SegmentDataset(tokens, config)
    data = SegmentDataset(tokens, config, prefix=[1], weights=True)
    total = sum(data[i]["weights"].sum() for i in range(len(data)))
    assert total == pytest.approx(len(tokens), rel=1e-5)
    padded = Collator(TOKENIZER)([data[0], {k: v[:3] for k, v in data[0].items()}])["weights"]
    assert padded.dtype == torch.float32 and not padded[1, 3:].any()


@pytest.mark.parametrize("kind", [SegmentDataset, SegmentStream])
def test_trainer_takes_them_as_they_are(tokens, kind, tmp_path, monkeypatch):
    pytest.importorskip("accelerate")
    from transformers import Trainer, TrainingArguments

    config = CONFIGS["jitter"]
    data, epochs = kind(tokens, config), []
    real = type(data).set_epoch
    monkeypatch.setattr(kind, "set_epoch", lambda self, e: epochs.append(e) or real(self, e))
    seen = []

    class Watched(Trainer):
        def compute_loss(self, model, inputs, **kwargs):
            seen.append({k: v.clone() for k, v in inputs.items()})
            return super().compute_loss(model, inputs, **kwargs)

    length = {"max_steps": data.steps()} if kind is SegmentStream else {"num_train_epochs": 3}
    trainer = Watched(
        tiny_model().requires_grad_(True),
        TrainingArguments(
            str(tmp_path),
            per_device_train_batch_size=config.batch_size,
            use_cpu=True,
            report_to=[],
            save_strategy="no",
            disable_tqdm=True,
            **length,
        ),
        train_dataset=data,
        data_collator=Collator(TOKENIZER),
    )
    trainer.train()
    assert {0, 1, 2} <= set(epochs) and set(seen[0]) == {"input_ids", "labels"}
    if kind is SegmentStream:
        scored = [b["input_ids"][b["labels"] != -100] for b in seen]
        once = [s for e in range(3) for s in _scored(tokens, config, e)]
        assert sorted(np.concatenate([s.numpy() for s in scored]).tolist()) == sorted(once)


def _scored(tokens, config, epoch):
    segments = cut(len(tokens), config, epoch)
    for a, b in zip(segments.start, segments.stop, strict=True):
        yield from tokens[a + 1 : b].tolist()
