"""One epoch of a document through PEFT + Trainer, PEFT in bf16 + a plain loop, and liftcore.

One process, the same model, segments, order and starting adapter; the variants take turns.
The losses are compared first: no speed-up is printed when they differ. Peak memory is that of
a process of its own for each variant.

    python -m bench step --device cpu
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time

import numpy as np
import torch

from liftcore import batch, info, segments, usage
from liftcore import model as models
from liftcore.attention import fast_attention
from liftcore.config import LiftConfig
from liftcore.fiction import fictional_document
from liftcore.lora import Adapter
from liftcore.optimizer import MasterAdamW
from liftcore.train import batch_loss

NAMES = {
    "trainer": "PEFT defaults + Trainer",
    "plain": "PEFT bf16 + plain loop",
    "liftcore": "liftcore",
}


class Liftcore:
    """liftcore's own step."""

    def __init__(self, model, rows, config, start):
        self.model, self.rows, self.config = model, rows, config
        self.head = models.head(model)
        self.adapter = Adapter(model, config.rank, config.lora_alpha)
        self.adapter.install()
        self.optimizer = MasterAdamW(self.adapter, config)

    def epoch(self) -> list[float]:
        losses = []
        with fast_attention(self.model):
            for step in self.rows:
                loss = batch_loss(self.model, self.head, step, step.weight)
                loss.backward()
                self.optimizer.clip()
                self.optimizer.step(self.config.learning_rate)
                losses.append(loss.item())
        return losses


class Plain:
    """PEFT with adapters in the model's dtype, and the shortest correct loop."""

    def __init__(self, model, rows, config, start):
        self.rows, self.clip = rows, config.max_grad_norm
        self.model = _peft(model, config, start, upcast=False)
        self.parameters = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(
            self.parameters, lr=config.learning_rate, weight_decay=0.0
        )

    def epoch(self) -> list[float]:
        losses = []
        for step in self.rows:
            loss = self.model(input_ids=step.input_ids, labels=_labels(step)).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.parameters, self.clip)
            self.optimizer.step()
            self.optimizer.zero_grad()
            losses.append(loss.item())
        return losses


class WithTrainer:
    """PEFT as it comes (fp32 adapters on a bf16 model) under transformers' Trainer."""

    def __init__(self, model, rows, config, start):
        from transformers import Trainer, TrainingArguments

        self.model = _peft(model, config, start, upcast=True)
        self.losses: list[float] = []
        losses = self.losses

        class InOrder(Trainer):
            def _get_train_sampler(self, *args):
                return torch.utils.data.SequentialSampler(self.train_dataset)

            def training_step(self, *args, **kwargs):
                loss = super().training_step(*args, **kwargs)
                losses.append(loss.item())
                return loss

        device = rows[0].input_ids.device
        self.folder = tempfile.TemporaryDirectory()
        items = [
            {"input_ids": ids, "labels": labels}
            for step in rows
            for ids, labels in zip(step.input_ids.cpu(), _labels(step).cpu(), strict=True)
        ]
        self.trainer = InOrder(
            model=self.model,
            args=TrainingArguments(
                output_dir=self.folder.name,
                per_device_train_batch_size=len(rows[0].input_ids),
                num_train_epochs=1,
                learning_rate=config.learning_rate,
                lr_scheduler_type="constant",
                max_grad_norm=config.max_grad_norm,
                use_cpu=device.type == "cpu",
                report_to=[],
                save_strategy="no",
                logging_strategy="no",
                disable_tqdm=True,
                log_level="error",
            ),
            train_dataset=items,
        )

    def epoch(self) -> list[float]:
        self.losses.clear()
        # Trainer builds its optimizer anew in train(); keeping it continues the run.
        self.trainer.train()
        return list(self.losses)


VARIANTS = {"trainer": WithTrainer, "plain": Plain, "liftcore": Liftcore}


def _peft(model, config, start, *, upcast):
    from peft import LoraConfig, get_peft_model

    wrapped = get_peft_model(
        model,
        LoraConfig(r=config.rank, lora_alpha=config.lora_alpha, target_modules="all-linear"),
        autocast_adapter_dtype=upcast,
    )
    with torch.no_grad():
        for path, lora_a in start.items():
            layer = wrapped.base_model.model.get_submodule(path)
            layer.lora_A["default"].weight.copy_(lora_a)
    return wrapped


def _labels(step):
    """transformers' labels: unshifted, so moved one to the right of ours."""
    labels = torch.full_like(step.labels, batch.IGNORE)
    labels[:, 1:] = step.labels[:, :-1]
    return labels


def setup(name, args):
    """The variant on a model of its own, with the batches all variants share."""
    model, tokenizer = models.load(args.model, device=args.device)
    device = next(model.parameters()).device
    config = LiftConfig(
        segment_length=args.segment_length,
        schedule="overlap",
        batch_size=args.batch_size,
        rank=args.rank,
        learning_rate=1e-4,
    )
    text = fictional_document(0).text
    tokens = np.asarray(tokenizer(text, add_special_tokens=False)["input_ids"])
    cut = segments.cut(len(tokens), config)
    full = np.flatnonzero(cut.stop - cut.start == config.segment_length)
    count = len(full) // config.batch_size * config.batch_size
    rows = [
        batch.make(tokens, cut, full[i : i + config.batch_size], ()).to(device)
        for i in range(0, count, config.batch_size)
    ]
    reference = Adapter(model, config.rank, config.lora_alpha)
    start = {path: layer.lora_a.detach().clone() for path, layer in reference.layers.items()}
    del reference
    return VARIANTS[name](model, rows, config, start), rows


def memory_of(name, args) -> int:
    """Peak bytes of a process that runs two steps of one variant."""
    command = [sys.executable, "-m", "bench", "step", "--memory-of", name]
    for option in ("device", "model", "segment_length", "batch_size", "rank"):
        value = getattr(args, option)
        if value is not None:
            command += ["--" + option.replace("_", "-"), str(value)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])["peak_bytes"]


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench step", description=__doc__)
    parser.add_argument("--device")
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--segment-length", type=int, default=256)
    parser.add_argument("--batch-size", type=int, default=2)
    parser.add_argument("--rank", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--memory-of", choices=list(VARIANTS), help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.memory_of:
        variant, rows = setup(args.memory_of, args)
        device = rows[0].input_ids.device
        del rows[2:]
        usage.reset_peak(device)
        variant.epoch()
        print(json.dumps({"peak_bytes": usage.peak_bytes(device)}))
        return 0

    print(f"python -m bench step {' '.join(argv)}".rstrip())
    peak = {name: memory_of(name, args) for name in VARIANTS}
    built = {name: setup(name, args) for name in VARIANTS}
    rows = built["liftcore"][1]
    device, tokens = rows[0].input_ids.device, sum(step.tokens for step in rows)
    versions = info.versions()
    print(
        f"{args.model}, {device} ({info.device_name(device)}), torch {versions['torch']}, "
        f"transformers {versions['transformers']}, peft {versions['peft']}\n"
        f"{len(rows)} steps of {args.batch_size} x {args.segment_length} tokens, "
        f"rank {args.rank} on all linear layers, {args.rounds} rounds after the first"
    )
    first = {name: variant.epoch() for name, (variant, _) in built.items()}
    agree = _agree(first)
    seconds = {name: [] for name in VARIANTS}
    for _ in range(args.rounds):
        for name, (variant, _) in built.items():
            start = time.perf_counter()
            variant.epoch()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            seconds[name].append(time.perf_counter() - start)
    result = {
        name: {
            "tokens_per_second": round(tokens / statistics.median(times), 1),
            "slowest": round(tokens / max(times), 1),
            "fastest": round(tokens / min(times), 1),
            "peak_bytes": peak[name],
            "first_losses": [round(x, 4) for x in first[name]],
        }
        for name, times in seconds.items()
    }
    print(f"{'':26}{'tokens/s (range)':>26}{'peak memory':>14}{'loss, first epoch':>20}")
    for name, r in result.items():
        spread = f"{r['tokens_per_second']:.0f} ({r['slowest']:.0f} to {r['fastest']:.0f})"
        mean = statistics.mean(r["first_losses"])
        print(f"{NAMES[name]:26}{spread:>26}{usage.gib(r['peak_bytes']):>14}{mean:>20.4f}")
    if not agree:
        print("the losses differ: no speed-up is claimed")
        return 1
    for name in ("trainer", "plain"):
        ratios = [a / b for a, b in zip(seconds[name], seconds["liftcore"], strict=True)]
        result[name]["ratio"] = round(statistics.median(ratios), 3)
        print(
            f"liftcore is {statistics.median(ratios):.2f} times as fast as {NAMES[name]} "
            f"({min(ratios):.2f} to {max(ratios):.2f} over the rounds)"
        )
    if args.json:
        print(json.dumps({"device": info.device_name(device), "versions": versions, **result}))
    return 0


def _agree(losses: dict[str, list[float]]) -> bool:
    """Whether the first epoch's losses agree: the first step closely, the mean within 2 %."""
    ours = losses["liftcore"]
    ok = True
    for name, other in losses.items():
        ok &= len(other) == len(ours) and abs(other[0] - ours[0]) < 0.01 * ours[0]
        ok &= abs(statistics.mean(other) - statistics.mean(ours)) < 0.02 * statistics.mean(ours)
        if not ok:
            print(f"{NAMES[name]}: losses {other} against {ours}")
    return ok


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
