"""Training for a given work: the same loop and samples as absorb, but the clock ends the run."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from liftcore import model as models
from liftcore.config import LiftConfig
from liftcore.document import Document
from liftcore.layers.depth import decoder_layers
from liftcore.layers.lora import Adapter
from liftcore.objectives.build import objectives_of
from liftcore.objectives.forgetting import Forgetting
from liftcore.questions.own_words import OwnWords
from liftcore.training.budget import Budget
from liftcore.training.loop import train
from liftcore.training.source import StepSource
from liftcore.training.step import Step

# A price, near the seconds of one thread of a processor with bf16: a step costs STEP, and TOKEN for
# each of its tokens, where LoRA is on all layers. The 120 runs of results/cpu-epyc/understand.jsonl
# took 9 % more or less on average, and up to 43 %.
STEP, TOKEN = 0.03, 0.0033


def share_of_work(model: PreTrainedModel, adapter: Adapter) -> float:
    """What a step costs with LoRA on the upper layers alone, of one with LoRA on all: the forward
    and the head stay, of the layers' backward that share stays. A price as well, which knows
    neither the rank nor which linear layers are left out."""
    blocks = len(decoder_layers(model))
    return 0.5 + 0.5 * (blocks - adapter.first_layer) / blocks


class Worked(StepSource):
    """A source whose run ends after `seconds` of work, as STEP and TOKEN count it.

    The machine does not matter: the same steps everywhere. The learning rate follows the work, so
    that its schedule ends with the run. Epochs follow one another as long as some is left.

    cost   of a step, as a share of one with LoRA on all layers
    """

    def __init__(self, seconds: float, *args: Any, cost: float = 1.0, **options: Any):
        super().__init__(*args, share=self.clock, **options)
        self.allowed, self.cost = seconds, cost
        self.by_objective: Counter[str] = Counter()  # token-passes

    def clock(self) -> float:
        """The share of the work that is over."""
        work = STEP * self.done_steps + TOKEN * self.trained
        return self.cost * work / self.allowed

    def draw(self) -> Step | None:
        step = super().draw()
        for sample in step.samples if step else ():
            self.by_objective[sample.source] += len(sample)
        return step


@dataclass(frozen=True)
class Trained:
    """What a run for a given work took. Seconds are CPU time of the process, but for `work`."""

    work: float
    seconds: float
    making: float  # of the samples: questions that the model asked, the teacher's targets
    steps: int
    epochs: float
    loss: float
    limit: str  # "keep" where the forgetting budget ended it, else "epochs"
    kept: float  # share of the token-passes behind which the adapter is that it ends with
    tokens: dict[str, int]  # token-passes by objective
    samples: dict[str, int]  # of one epoch, by objective


def train_for(
    seconds: float,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    adapter: Adapter,
    document: Document,
    config: LiftConfig,
    sources: Sequence = (),
    own: Sequence[OwnWords] | None = None,
    forgetting: Forgetting | None = None,
) -> Trained:
    """Trains the adapter for that work on config.objectives; samples are made before it begins. The
    epochs of the settings are a bound that is never reached. `forgetting` measures for
    config.keep."""
    begun = time.process_time()
    source = Worked(
        seconds,
        objectives_of(model, tokenizer, document, config, sources, own=own),
        config,
        models.window(model),
        weights=config.weights,
        prefix=len(models.prefix_ids(tokenizer)),
        cost=share_of_work(model, adapter),
    )
    while not source.complete:
        for objective in source.objectives:
            objective.poll()
    samples = {o.name: len(o.samples(0)) for o in source.objectives}
    making = time.process_time() - begun
    begun = time.process_time()
    budget = Budget.of(adapter, config.keep, forgetting, source.objectives)
    with closing(source):
        result = train(adapter, source, budget=budget)
        spent = time.process_time() - begun
    return Trained(
        round(source.clock() * seconds, 2),
        round(spent, 2),
        round(making, 2),
        result.steps,
        source.epoch + 1,
        round(result.loss, 4),
        result.limit,
        round(result.kept, 3),
        dict(source.by_objective),
        samples,
    )
