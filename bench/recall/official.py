"""The official recipe as one line of the recall benchmark: PEFT under transformers' Trainer.

What it is: LoRA r = 128, α = 256 on all linear layers, adapters in fp32 on a bf16 model (PEFT's
default), Trainer with AdamW, batch 4, a constant rate, weight decay 0, clipping at 1.0, segments
with stride 3/8, every token scored, Trainer's random order (arXiv 2502.14644 v4). Only the
segment length is that of this benchmark's short documents.
"""

from __future__ import annotations

import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel

from bench.recall.probes import Enough, Watch, clocks
from liftcore.config import LiftConfig
from liftcore.objectives.sample import IGNORE
from liftcore.objectives.segments import Segments


@contextmanager
def train_official(
    model: PreTrainedModel, tokens: np.ndarray, config: LiftConfig, curve: Watch
) -> Generator[None]:
    """Trains until the epochs are over or the curve has seen enough; within it the adapter is on
    the model, afterwards the model is as before."""
    from peft import LoraConfig, get_peft_model
    from transformers import (
        Trainer,
        TrainerCallback,
        TrainerControl,
        TrainerState,
        TrainingArguments,
    )  # fmt: skip

    # Trainer draws its order, and PEFT its adapter, from the global generator.
    torch.manual_seed(config.seed)
    wrapped = get_peft_model(
        model,
        LoraConfig(
            r=config.rank,
            lora_alpha=config.lora_alpha,  # ty: ignore[invalid-argument-type]  # any number
            target_modules="all-linear",
        ),
    )
    seen, losses = 0, []

    class Counting(Trainer):
        def training_step(
            self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any
        ) -> torch.Tensor:
            nonlocal seen
            seen += int(inputs["attention_mask"].sum())
            loss = super().training_step(model, inputs, *args, **kwargs)
            losses.append(loss.item())
            return loss

    class Measuring(TrainerCallback):
        def on_step_end(
            self,
            args: TrainingArguments,
            state: TrainerState,
            control: TrainerControl,
            **kwargs: Any,
        ) -> TrainerControl:
            wrapped.eval()
            try:
                curve.step(seen, losses[-1])
            except Enough:
                control.should_training_stop = True
            return control

    try:
        with tempfile.TemporaryDirectory() as folder:
            trainer = Counting(
                model=wrapped,
                args=TrainingArguments(
                    output_dir=folder,
                    per_device_train_batch_size=config.batch_size,
                    num_train_epochs=config.epochs,
                    learning_rate=config.learning_rate,
                    lr_scheduler_type="constant",
                    weight_decay=0.0,
                    max_grad_norm=config.max_grad_norm,
                    seed=config.seed,
                    use_cpu=next(model.parameters()).device.type == "cpu",
                    remove_unused_columns=False,
                    report_to=[],
                    save_strategy="no",
                    logging_strategy="no",
                    disable_tqdm=True,
                    log_level="error",
                ),
                # A list is a data set, as far as Trainer is concerned.
                train_dataset=rows_of(tokens, config, curve.prefix),  # ty: ignore[invalid-argument-type]
                data_collator=collate,
                callbacks=[Measuring()],
            )
            curve.started = clocks()
            trainer.train()
        wrapped.eval()
        if not curve.points or curve.points[-1]["passes"] != seen:
            curve.measure(seen)
        yield
    finally:
        wrapped.unload()
        model.eval().requires_grad_(False)


def rows_of(tokens: np.ndarray, config: LiftConfig, prefix: list[int]) -> list[torch.Tensor]:
    """The token ids of each segment."""
    samples = Segments(tokens, config, prefix).samples(0)
    return [torch.from_numpy(sample.ids.astype(np.int64)) for sample in samples]


def collate(rows: list[torch.Tensor]) -> dict[str, torch.Tensor]:
    """Rows padded on the right; transformers shifts the labels itself."""
    size = max(map(len, rows))
    ids = torch.zeros(len(rows), size, dtype=torch.int64)
    labels, mask = torch.full_like(ids, IGNORE), torch.zeros_like(ids)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = labels[i, : len(row)] = row
        mask[i, : len(row)] = 1
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}
