"""A training step in every way that can be had: liftcore's, and PEFT under Trainer or a loop.

A variant is built on a model of its own modules over shared weights, for a Case.
epoch(n) trains once over the batches of epoch n and returns the losses; `seconds` is what that
took.
"""

from __future__ import annotations

import contextlib
import importlib.util
import sys
import tempfile
import time
from collections.abc import Callable, Generator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

import liftcore
from bench import shapes
from bench.step.case import Case
from bench.step.stages import Stages
from liftcore import model as models
from liftcore.config import LiftConfig
from liftcore.layers.lora import Adapter
from liftcore.training.graph import GraphRunner
from liftcore.training.loop import make_runner, prepared

if TYPE_CHECKING:
    from peft import PeftModel


class Variant:
    """What all variants share: the batches, the stages and the clock around an epoch."""

    def __init__(self, model: PreTrainedModel, case: Case):
        self.case, self.config, self.device = case, case.config, case.device
        self.stages = Stages(self.device)
        self.stages.watch(models.body(model))
        self.seconds, self.how = 0.0, ""

    def epoch(self, number: int) -> list[float]:
        """Losses of one pass over the batches of an epoch. They are read once, at the end."""
        batches = self.case.batches(number)
        start = self.now()
        losses = [self.step(batch) for batch in batches]
        self.seconds = self.now() - start
        return [float(loss) for loss in losses]

    def step(self, batch: dict[str, Tensor]) -> Tensor:
        raise NotImplementedError

    def now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()


class Liftcore(Variant):
    """liftcore's own steps: on a GPU one CUDA graph each. Making the batch is part of a step."""

    def __init__(self, model: PreTrainedModel, case: Case):
        super().__init__(model, case)
        self.model = model
        self.adapter = Adapter(model, self.config.rank, self.config.lora_alpha)
        self.adapter.install()
        with prepared(self.adapter, self.config.segment_length):
            self.runner = make_runner(self.adapter, case.source, self.stages.mark)

    def epoch(self, number: int) -> list[float]:
        timed = self.stages.on
        if timed and self.device.type == "cuda" and isinstance(self.runner, GraphRunner):
            self.runner.why = "its stages are timed"
        steps = self.case.epoch(number)
        self.stages.on = False  # while it is prepared, which no step is
        with prepared(self.adapter, self.config.segment_length):
            self.stages.on = timed
            start = self.now()
            for step in steps:
                self.runner.run(step)
            self.seconds = self.now() - start
        self.how = self.how or self.runner.how
        return self.runner.losses[steps[0].number : steps[-1].number + 1].tolist()


class Plain(Variant):
    """PEFT with adapters in the model's dtype, and the shortest correct loop."""

    def __init__(self, model: PreTrainedModel, case: Case):
        super().__init__(model, case)
        self.model = with_peft(model, self.config, case.start, upcast=False)
        self.parameters = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(
            self.parameters, lr=self.config.learning_rate, weight_decay=0.0
        )

    def step(self, batch: dict[str, Tensor]) -> Tensor:
        loss = self.model(**batch).loss
        loss.backward()
        self.stages.mark("backward")
        torch.nn.utils.clip_grad_norm_(self.parameters, self.config.max_grad_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.stages.mark("optimizer")
        return loss.detach()


class WithTrainer(Variant):
    """PEFT as it comes (fp32 adapters on a bf16 model) under transformers' Trainer.

    The official recipe of LIFT, with Liger's kernels where they are installed and a GPU is there.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        case: Case,
        *,
        checkpointing: bool = False,
        accelerated: bool = False,
    ):
        from transformers import TrainingArguments

        super().__init__(model, case)
        config, self.items = self.config, []
        self.base, self.folder = model, tempfile.TemporaryDirectory()
        self.model = with_peft(model, config, case.start, upcast=True)
        if checkpointing:
            self.model.enable_input_require_grads()
        if accelerated:
            self.how = str(liftcore.accelerate(self.model)).splitlines()[0]
        self.trainer = _trainer_class()(
            self.stages,
            model=self.model,
            args=TrainingArguments(
                output_dir=self.folder.name,
                per_device_train_batch_size=config.batch_size,
                num_train_epochs=1,
                learning_rate=config.learning_rate,
                lr_scheduler_type="constant",
                weight_decay=0.0,
                max_grad_norm=config.max_grad_norm,
                gradient_checkpointing=checkpointing,
                # Liger's patches would take the place of liftcore's.
                use_liger_kernel=uses_liger(self.device) and not accelerated,
                use_cpu=self.device.type == "cpu",
                report_to=[],
                save_strategy="no",
                logging_strategy="no",
                disable_tqdm=True,
                log_level="error",
            ),
            train_dataset=self.items,
        )

    def epoch(self, number: int) -> list[float]:
        self.items[:] = [
            {"input_ids": ids, "labels": labels}
            for batch in self.case.batches(number)
            for ids, labels in zip(batch["input_ids"].cpu(), batch["labels"].cpu(), strict=True)
        ]
        # Trainer builds its optimizer in the first train(); keeping it continues the run.
        with _own_names(self.base):
            self.trainer.train()
        # What Trainer does once before its loop is not a part of a step.
        self.seconds = self.trainer.clock.ended - self.trainer.clock.started
        return [float(loss) for loss in self.trainer.losses]


class Checkpointed(WithTrainer):
    """The official "fast" recipe: gradient checkpointing on."""

    def __init__(self, *args: Any):
        super().__init__(*args, checkpointing=True)


class Accelerated(WithTrainer):
    """The same Trainer and PEFT model, with liftcore's ops put under it."""

    def __init__(self, *args: Any):
        super().__init__(*args, accelerated=True)


class CheckpointedAccelerated(WithTrainer):
    """Gradient checkpointing and liftcore's ops."""

    def __init__(self, *args: Any):
        super().__init__(*args, checkpointing=True, accelerated=True)


def _trainer_class() -> Callable[..., Any]:
    from transformers import PrinterCallback, Trainer, TrainerCallback

    class Clock(TrainerCallback):
        def __init__(self, trainer: InOrder):
            self.trainer = trainer
            self.started = self.ended = 0.0

        def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
            self.trainer.losses.clear()
            self.started = time.perf_counter()

        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            self.trainer.stages.mark("optimizer")

        def on_epoch_end(self, *args: Any, **kwargs: Any) -> None:
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            self.ended = time.perf_counter()

    class InOrder(Trainer):
        def __init__(self, stages: Stages, **settings: Any):
            super().__init__(**settings)
            self.stages, self.clock = stages, Clock(self)
            self.losses: list[Tensor] = []
            self.add_callback(self.clock)
            self.remove_callback(PrinterCallback)

        def _get_train_sampler(self, train_dataset: Any = None) -> torch.utils.data.Sampler:
            items: Any = self.train_dataset
            return torch.utils.data.SequentialSampler(items)

        def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
            loss = super().training_step(*args, **kwargs)
            self.stages.mark("backward")
            self.losses.append(loss.detach())
            return loss

    return InOrder


def uses_liger(device: torch.device) -> bool:
    return device.type == "cuda" and importlib.util.find_spec("liger_kernel") is not None


@contextlib.contextmanager
def _own_names(model: PreTrainedModel) -> Generator[None]:
    """Liger replaces functions of the model's Python module; the other variants must not see it."""
    names = vars(sys.modules[type(model).__module__])
    before = dict(names)
    try:
        yield
    finally:
        names.update(before)


def with_peft(
    model: PreTrainedModel, config: LiftConfig, start: dict[str, Tensor], *, upcast: bool
) -> PeftModel:
    """The model under PEFT on all linear layers, with A as in `start`: module path -> [R, K]."""
    from peft import LoraConfig, get_peft_model

    settings = LoraConfig(
        r=config.rank,
        lora_alpha=config.lora_alpha,  # ty: ignore[invalid-argument-type]  # PEFT takes any number
        target_modules="all-linear",
        task_type="CAUSAL_LM",
    )
    wrapped = get_peft_model(model, settings, autocast_adapter_dtype=upcast)
    with torch.no_grad():
        for path, lora_a in start.items():
            layer = wrapped.get_submodule(f"base_model.model.{path}.lora_A.default")
            layer.get_parameter("weight").copy_(lora_a)
    return wrapped


VARIANTS = {
    "official": WithTrainer,
    "official-fast": Checkpointed,
    "plain": Plain,
    "liftcore": Liftcore,
    "accelerated": Accelerated,
    "accelerated-fast": CheckpointedAccelerated,
}


def build(name: str, case: Case) -> Variant:
    """A variant on modules of its own over the case's weights."""
    return VARIANTS[name](shapes.twin(case.model), case)


def label(name: str, device: torch.device) -> str:
    """A variant in words."""
    liger = " + Liger" if uses_liger(device) else ""
    return {
        "official": f"PEFT defaults + Trainer{liger}",
        "official-fast": f"the same, checkpointed{liger}",
        "plain": "PEFT bf16 + plain loop",
        "liftcore": "liftcore",
        "accelerated": "PEFT defaults + Trainer, accelerated",
        "accelerated-fast": "the same, checkpointed, accelerated",
    }[name]
