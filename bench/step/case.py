"""What all variants of a training step train on, and the operations that a step of it needs."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from bench import shapes
from liftcore import model as models
from liftcore.config import LiftConfig
from liftcore.cost import needed_flops
from liftcore.layers.lora import Adapter
from liftcore.objectives.sample import IGNORE, Sample
from liftcore.training.batch import make
from liftcore.training.source import segments_alone
from liftcore.training.step import Step


class Case:
    """A model and the batches that all variants train on: epochs of `steps` steps of T tokens, in
    full segments of S tokens."""

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase | None,
        tokens: int,
        args: argparse.Namespace,
    ):
        self.model, self.device = model, next(model.parameters()).device
        self.steps = args.steps
        size = min(tokens, args.segment_length or (256 if self.device.type == "cpu" else 1024))
        self.config = LiftConfig(
            segment_length=size,
            schedule="overlap",
            overlap_loss=args.overlap_loss,
            batch_size=max(1, tokens // size),
            rank=args.rank,
            learning_rate=3e-4,
            lr_schedule="constant",
            warmup=0.0,
            epochs=args.rounds + 2,
        )
        self.tokens = size * self.config.batch_size
        length = size + (self.steps * self.config.batch_size - 1) * self.config.start_distance
        self.text = shapes.text(model, tokenizer, length)
        # Segments that start the document score more tokens than the others.
        self.source = segments_alone(self.text, self.config, [])
        self.drawn: dict[int, list[Step]] = {}
        for step in self.source.steps():
            self.drawn.setdefault(step.epoch, []).append(step)
        self.scored = sum(len(make(s.samples).hard_rows) for s in self.epoch(0)) / self.steps
        adapter = Adapter(model, self.config.rank, self.config.lora_alpha)
        self.start = {p: layer.lora_a.detach().clone() for p, layer in adapter.layers.items()}
        models.head(model)

    def epoch(self, number: int) -> list[Step]:
        """The steps of an epoch, in liftcore's own order."""
        return self.drawn[number]

    def batches(self, epoch: int) -> list[dict[str, Tensor]]:
        """Their batches as transformers takes them: input_ids and labels int64 [B, S], a label at
        its token's own place."""
        return [
            {k: v.to(self.device) for k, v in rows(s.samples).items()} for s in self.epoch(epoch)
        ]

    @property
    def flops(self) -> float:
        size, rank = self.config.segment_length, self.config.rank
        return step_flops(self.model, size, rank, self.tokens, self.scored)


def rows(samples: Sequence[Sample]) -> dict[str, Tensor]:
    """Samples as rows of transformers' own form."""
    made = make(samples)
    labels = torch.full_like(made.input_ids, IGNORE)
    labels[:, 1:] = made.labels.view_as(labels)[:, :-1]
    return {"input_ids": made.input_ids, "labels": labels}


def step_flops(model: PreTrainedModel, span: int, rank: int, tokens: int, scored: int) -> float:
    """Operations of a step of `tokens` tokens in segments of `span`, of which `scored` are
    scored: frozen products forward and dX, LoRA forward, dX, dA and dB, the head on scored rows,
    causal attention."""
    return tokens * needed_flops(model, span, rank, scored / tokens)
