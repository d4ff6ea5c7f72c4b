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
from liftcore.fiction.documents import fictional_document
from liftcore.kernels.head_loss import linear_cross_entropy
from liftcore.model import head, prefix_ids
from liftcore.tokens import text_ids


class WeightedTrainer(Trainer):
    """Trainer with the mean loss of a batch by the weights of its tokens.

    Needs remove_unused_columns=False, since Trainer would drop the weights.
    """

    def __init__(self, model, *args, **kwargs):
        super().__init__(model, *args, **kwargs)
        self.head = head(model.get_base_model())
        # The mean is that of a batch: Trainer divides by the batches of a step.
        self.model_accepts_loss_kwargs = False

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        inputs = dict(inputs)
        labels, weights = inputs.pop("labels"), inputs.pop("weights")  # [B, S]
        out = model(**inputs, output_hidden_states=True, logits_to_keep=1)
        hidden = out.hidden_states[-1][:, :-1].flatten(0, 1)  # [B (S - 1), K]
        loss = linear_cross_entropy(
            hidden.to(self.head.weight.dtype),
            self.head.weight,
            labels[:, 1:].flatten(),
            token_weights=weights[:, 1:].flatten(),
            softcap=self.head.softcap,
            logit_scale=self.head.logit_scale,
        )
        return (loss, out) if return_outputs else loss


def main(argv=None) -> list[float]:
    """Trains and saves; returns the mean loss of each epoch's share of the steps."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--device", help="cpu, cuda, … (CUDA when there is one)")
    parser.add_argument("--document", type=Path, help="a text file (an invented document)")
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--overlap", action="store_true", help="overlapping segments, weighted")
    parser.add_argument("--out", help="folder of the adapter")
    args = parser.parse_args(argv)

    model, tokenizer = liftcore.load(args.model, device=args.device)
    text = args.document.read_text() if args.document else fictional_document(0, 400).text
    tokens = text_ids(tokenizer, text)
    schedule = {"schedule": "overlap", "overlap_loss": "mean"} if args.overlap else {}
    config = liftcore.LiftConfig(segment_length=128, epochs=args.epochs, **schedule)
    # All epochs in one pass, each cut anew, so that a resumed run goes on with the right segments.
    data = SegmentDataset(tokens, config, prefix=prefix_ids(tokenizer), weights=args.overlap)

    lora = LoraConfig(
        r=args.rank, lora_alpha=2 * args.rank, target_modules="all-linear", task_type="CAUSAL_LM"
    )
    model = get_peft_model(model, lora)
    print(liftcore.accelerate(model))

    with tempfile.TemporaryDirectory() as folder:
        kind = WeightedTrainer if args.overlap else Trainer
        trainer = kind(
            model,
            TrainingArguments(
                folder,
                per_device_train_batch_size=2,
                num_train_epochs=1,
                learning_rate=1e-3,
                logging_steps=1 / args.epochs,
                save_strategy="no",
                remove_unused_columns=not args.overlap,
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
