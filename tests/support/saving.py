"""Memories that are saved and loaded in tests, and what stands in their folders."""

import torch

import liftcore
from liftcore.config import LiftConfig

CONFIG = LiftConfig(segment_length=16, epochs=1, rank=4, learning_rate=5e-3)


def everything(folder):
    """Name -> content of all files in and below a folder."""
    files = (f for f in folder.rglob("*") if f.is_file())
    return {f.relative_to(folder).as_posix(): f.read_bytes() for f in files}


def loaded(folder, memory):
    return liftcore.load_memory(folder, (memory.model, memory.tokenizer))


def same(one, two):
    about = [(m.title, m.text, m.report) for m in (one, two)]
    return torch.equal(one.adapter.values, two.adapter.values) and about[0] == about[1]


def fails(*args, **options):
    raise RuntimeError("it broke")
