"""transformers' Trainer and PEFT on a document's segments, with liftcore's ops under the layers.

python examples/trainer_peft.py --out adapter
"""

import argparse
import tempfile
from pathlib import Path

from peft import LoraConfig, get_peft_model
from transformers import Trainer, TrainingArguments

import liftcore
from liftcore.data import Collator, SegmentDataset
from liftcore.fiction import fictional_document
from liftcore.model import prefix_ids


def main(argv=None) -> list[float]:
    """Trains and saves; returns the mean loss of each epoch's share of the steps."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--device", help="cpu, cuda, … (CUDA when there is one)")
    parser.add_argument("--document", type=Path, help="a text file (an invented document)")
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--out", help="folder of the adapter")
    args = parser.parse_args(argv)

    model, tokenizer = liftcore.load(args.model, device=args.device)
    text = args.document.read_text() if args.document else fictional_document(0, 400).text
    tokens = tokenizer(text, add_special_tokens=False)["input_ids"]
    config = liftcore.LiftConfig(segment_length=128, epochs=args.epochs)
    # All epochs in one pass, each cut anew, so that a resumed run goes on with the right segments.
    data = SegmentDataset(tokens, config, prefix=prefix_ids(tokenizer))

    lora = LoraConfig(
        r=args.rank, lora_alpha=2 * args.rank, target_modules="all-linear", task_type="CAUSAL_LM"
    )
    model = get_peft_model(model, lora)
    print(liftcore.accelerate(model))

    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            model,
            TrainingArguments(
                folder,
                per_device_train_batch_size=2,
                num_train_epochs=1,
                learning_rate=1e-3,
                logging_steps=1 / args.epochs,
                save_strategy="no",
                report_to=[],
                disable_tqdm=True,
                use_cpu=model.device.type == "cpu",
            ),
            train_dataset=data,
            data_collator=Collator(tokenizer),
        )
        trainer.train()
    if args.out:
        model.save_pretrained(args.out)
        print(f"PEFT adapter in {args.out}")
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


if __name__ == "__main__":
    main()
