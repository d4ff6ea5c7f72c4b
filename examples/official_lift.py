"""liftcore under the official LIFT code (MuLabPKU/LIFT): three lines in its train_field.

train_field below is a small stand-in with the structure of the function of that name there:
question and answer items, a collator that pads, transformers' Trainer. The lines to add are
marked. With its own versions (torch 2.7.1, transformers 4.53.2, peft 0.16) the official code needs
one change more: use_liger_kernel=False, since Liger's patches would replace liftcore's. With
transformers 5 it needs two besides:

    lift/utils.py                 leave overwrite_output_dir out of TrainingArguments
    lift/synqa/every_sentence.py  return_dict=False in both calls of apply_chat_template

    python examples/official_lift.py
"""

import argparse
import tempfile
import time

from peft import LoraConfig, get_peft_model
from transformers import Trainer, TrainingArguments

import liftcore  # line 1
from liftcore.data import Collator
from liftcore.fiction.documents import fictional_document


def items_of(tokenizer, title: str, pairs) -> list[dict]:
    """An item for each (question, answer), with the loss on the answer only."""
    items = []
    for question, answer in pairs:
        prompt = tokenizer(f"{title}\nQ: {question}\nA:", add_special_tokens=True)["input_ids"]
        reply = tokenizer(f" {answer}", add_special_tokens=False)["input_ids"]
        reply = [*reply, tokenizer.eos_token_id]
        items.append(
            {
                "input_ids": prompt + reply,
                "attention_mask": [1] * len(prompt + reply),
                "labels": [-100] * len(prompt) + reply,
            }
        )
    return items


def train_field(model, tokenizer, title: str, pairs, training_config: dict) -> dict:
    """Trains the model's adapter on one document; returns what it cost and the losses."""
    start = time.time()
    with tempfile.TemporaryDirectory() as folder:
        training_args = TrainingArguments(
            output_dir=folder,
            save_strategy="no",
            lr_scheduler_type="constant",
            label_names=["labels"],
            report_to=[],
            **training_config,
        )
        dataset = items_of(tokenizer, title, pairs)
        report = liftcore.accelerate(model)  # line 2
        trainer = Trainer(
            model, training_args, data_collator=Collator(tokenizer), train_dataset=dataset
        )
        trainer.train()
        liftcore.restore(model)  # line 3
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return {"training_time": time.time() - start, "losses": losses, "report": report}


def main(argv=None) -> dict:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--device", help="cpu, cuda, … (CUDA when there is one)")
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--epochs", type=int, default=2)
    args = parser.parse_args(argv)

    model, tokenizer = liftcore.load(args.model, device=args.device)
    on_cpu = model.device.type == "cpu"
    lora = LoraConfig(
        r=args.rank, lora_alpha=2 * args.rank, target_modules="all-linear", task_type="CAUSAL_LM"
    )
    model = get_peft_model(model, lora)
    document = fictional_document(0, 400)
    pairs = [(fact.question, fact.answer) for fact in document.facts]
    cost = train_field(
        model,
        tokenizer,
        "The report",
        pairs,
        {
            "per_device_train_batch_size": 4,
            "learning_rate": 3e-4,
            "weight_decay": 0.0,
            "num_train_epochs": args.epochs,
            "logging_strategy": "epoch",
            "disable_tqdm": True,
            "use_cpu": on_cpu,
        },
    )
    print(cost["report"])
    print(f"{cost['training_time']:.1f} s, loss by epoch: {cost['losses']}")
    return cost


if __name__ == "__main__":
    main()
