"""Random runs for the ops of the CUDA library, and what they must give. Used on CPU and GPU."""

import dataclasses

import numpy as np
import torch

from liftcore.config import LiftConfig
from liftcore.kernels import adamw
from liftcore.kernels import segment_batch as segmenting
from liftcore.objectives.segments import Segments
from liftcore.segments import cut
from liftcore.training.batch import make, shape_of

LOSSES = ("all", "new", "mean")


def random_run(rng, longest=300):
    """(tokens, config, prefix) of a random run, all schedules and losses alike."""
    schedule = str(rng.choice(["jitter", "overlap", "trivial"]))
    size = int(rng.integers(2, 40))
    config = LiftConfig(
        segment_length=size,
        stride=int(rng.integers(1, size + 1)) if schedule == "overlap" else None,
        schedule=schedule,
        overlap_loss=str(rng.choice(LOSSES)),
        batch_size=int(rng.integers(1, 7)),
        epochs=int(rng.integers(1, 4)),
        seed=int(rng.integers(0, 1000)),
    )
    # Documents shorter than a segment too.
    tokens = rng.integers(10, 1000, size=int(rng.integers(1, rng.choice([4, 50, longest]))))
    return tokens, config, rng.integers(1, 9, size=int(rng.integers(0, 4))).tolist()


class OnDevice:
    """A run's tables on a device, in random order; samples[n] are those of step n."""

    def __init__(self, tokens, config, prefix, device="cpu"):
        size, length = min(config.segment_length, len(tokens)), len(tokens)
        rows, firsts, self.samples = [], [], []
        for epoch in range(config.epochs):
            segments = cut(length, config, epoch)
            first = config.segment_length
            if config.schedule == "jitter":
                first = int(segments.stop[0] - segments.start[0])
            every = Segments(np.asarray(tokens), config, prefix).samples(epoch)
            order = np.random.default_rng([config.seed, epoch]).permutation(len(every))
            for i in range(0, len(order), config.batch_size):
                step = order[i : i + config.batch_size]
                rows.append(np.pad(step, (0, config.batch_size - len(step)), constant_values=-1))
                firsts.append(min(first, size))
                self.samples.append([every[k] for k in step])
        self.size = size
        arrays = (
            np.asarray(tokens, dtype=np.int64),
            np.asarray(prefix, dtype=np.int64),
            np.array(rows, dtype=np.int32),
            np.array(firsts, dtype=np.int32),
        )
        self.tables = segmenting.Tables(*(torch.from_numpy(a).to(device) for a in arrays))
        most = max(1, *(sum(np.count_nonzero(s.weights) for s in step) for step in self.samples))
        self.buffers = segmenting.buffers(self.tables, size, most)
        self.counter = segmenting.counter(device)
        self.options = dict(
            size=size, stride=min(config.start_distance, size), loss=config.overlap_loss
        )

    def next(self):
        """The batch of the step that the counter names, and the counter moved on."""
        segmenting.segment_batch(self.tables, self.counter, self.buffers, **self.options)
        return self.buffers


def poison(buffers):
    for tensor in buffers:
        tensor.fill_(float("nan") if tensor.is_floating_point() else -(2**40))


def assert_is(buffers, samples, prefix_and_size):
    """The op's buffers [B, P + S] hold the batch of the samples, padded and nothing else."""
    ids, labels, weights, rows, count = (t.cpu() for t in buffers)
    assert ids.shape[1] == prefix_and_size
    shape = dataclasses.replace(shape_of(samples, 0.0), rows=len(ids), length=prefix_and_size)
    right = make(samples, shape)
    assert torch.equal(ids, right.input_ids)
    assert torch.equal(labels.flatten(), right.labels)
    assert torch.equal(weights.flatten(), right.weights)
    n = int(count)
    assert torch.equal(rows[:n], right.hard_rows[: len(rows)]) and n == len(right.hard_rows)
    assert not weights.flatten()[rows[n:]].any(), "the rest names rows of weight 0"


# Elements of an adapter: one chunk or several, with tails; and where gradient and shadow start in
# their buffers: aligned, aligned behind an offset, at odd addresses, both or one of them.
SIZES = (1, 35, 8192, 20_480, 24_601)
OFFSETS = ((0, 0), (16, 8), (3, 1), (0, 1), (1, 0))


def random_adapter(rng, dtype, grad_dtype=None, device="cpu", size=24_601, offsets=(0, 0)):
    """(shadow, grad) [size], each inside a wider buffer; the grad is 0."""
    generator = torch.Generator().manual_seed(int(rng.integers(2**31)))
    flat = []
    for offset, kind in zip(offsets, (grad_dtype or dtype, dtype), strict=True):
        buffer = torch.full((size + offset + 5,), float("nan"), dtype=kind, device=device)
        flat.append(buffer[offset : offset + size])
    grad, shadow = flat
    grad.zero_()
    shadow.copy_(torch.randn(size, generator=generator))
    return shadow, grad


def fill_grad(grad, generator, size):
    grad.copy_(size * torch.randn(grad.shape, generator=generator))


def twin_of(state):
    """A copy of a State in memory of its own, on the CPU, for the twin."""
    return adamw.State(*(t.cpu().clone() for t in state))


def assert_close(ours: adamw.State, right: adamw.State, shadow_tolerance):
    """Masters and moments within a few roundings; the shadow within one of its dtype."""
    assert torch.equal(ours.step.cpu(), right.step) and torch.equal(ours.status.cpu(), right.status)
    torch.testing.assert_close(ours.norm.cpu(), right.norm, rtol=2e-6, atol=0)
    for name in ("master", "exp_avg", "exp_avg_sq"):
        mine, theirs = getattr(ours, name).cpu(), getattr(right, name)
        torch.testing.assert_close(mine, theirs, rtol=4e-6, atol=4e-6 * float(theirs.abs().max()))
    shadow = ours.shadow.cpu()
    torch.testing.assert_close(shadow, right.shadow, rtol=shadow_tolerance, atol=1e-5)
    # The shadow is exactly the rounded master.
    assert torch.equal(ours.shadow, ours.master.to(shadow.dtype))
    assert not ours.grad.any()


def around(flat):
    """The elements of a tensor's storage that are not the tensor's."""
    whole = torch.empty(0, dtype=flat.dtype, device=flat.device)
    whole.set_(flat.untyped_storage())
    mask = torch.ones_like(whole, dtype=torch.bool)
    mask.as_strided(flat.shape, flat.stride(), flat.storage_offset()).fill_(False)
    return whole[mask]
