"""A plain PyTorch loop: LoRA layers of your own over lora_linear, and a loss without logits.

python examples/plain_loop.py
"""

import argparse
import math
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import DataLoader

import liftcore
from liftcore.data import Collator, SegmentStream
from liftcore.fiction.documents import fictional_document
from liftcore.kernels.head_loss import linear_cross_entropy
from liftcore.kernels.lora import lora_linear
from liftcore.model import prefix_ids
from liftcore.tokens import text_ids

NAMES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


class Lora(nn.Module):
    """y = x Wᵀ + 2 (x Aᵀ) Bᵀ (+ bias), with W frozen."""

    def __init__(self, base: nn.Linear, rank: int):
        super().__init__()
        self.base = base
        self.a = nn.Parameter(base.weight.new_empty(rank, base.in_features))  # [R, K]
        self.b = nn.Parameter(base.weight.new_zeros(base.out_features, rank))  # [N, R]
        nn.init.uniform_(self.a, -1 / math.sqrt(base.in_features), 1 / math.sqrt(base.in_features))

    def forward(self, x):  # [..., K] -> [..., N]
        return lora_linear(x, self.base.weight, self.a, self.b, 2.0, self.base.bias)


def add_lora(model: nn.Module, rank: int) -> list[nn.Parameter]:
    """Puts a Lora over every linear layer of the decoder; returns what is to be trained."""
    trained = []
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if name in NAMES and isinstance(child, nn.Linear):
                layer = Lora(child, rank)
                setattr(parent, name, layer)
                trained += [layer.a, layer.b]
    return trained


def main(argv=None) -> list[float]:
    """Trains; returns the loss of each step."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--device", help="cpu, cuda, … (CUDA when there is one)")
    parser.add_argument("--document", type=Path, help="a text file (an invented document)")
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--epochs", type=int, default=2)
    args = parser.parse_args(argv)

    torch.manual_seed(0)
    model, tokenizer = liftcore.load(args.model, device=args.device)  # frozen, in eval mode
    device, head = model.device, model.get_output_embeddings().weight  # [V, K]
    trained = add_lora(model, args.rank)
    # fp32 masters would learn better at small rates: see liftcore/training/optimizer.py.
    optimizer = torch.optim.AdamW(trained, lr=1e-3, weight_decay=0.0)

    text = args.document.read_text() if args.document else fictional_document(0, 400).text
    tokens = text_ids(tokenizer, text)
    config = liftcore.LiftConfig(segment_length=128, epochs=args.epochs, batch_size=2)
    stream = SegmentStream(tokens, config, prefix=prefix_ids(tokenizer))
    loader = DataLoader(stream, config.batch_size, collate_fn=Collator(tokenizer))

    losses = []
    for batch in loader:  # all epochs, each cut anew
        ids, labels = batch["input_ids"].to(device), batch["labels"].to(device)  # [B, S]
        hidden = model.get_decoder()(input_ids=ids, use_cache=False).last_hidden_state
        # Position t predicts token t + 1; rows with label -100 cost nothing in the head.
        loss = linear_cross_entropy(hidden[:, :-1].flatten(0, 1), head, labels[:, 1:].flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        print(f"step {len(losses)} of {stream.steps()}: loss {losses[-1]:.3f}")
    return losses


if __name__ == "__main__":
    main()
