"""Settings of LiftConfig by name: what differs from its defaults."""

from __future__ import annotations

from typing import Any

# LIFT as published (arXiv 2502.14644 v4).
PAPER = {
    **dict(segment_length=2048, schedule="overlap", overlap_loss="all", epochs=5, batch_size=4),
    **dict(learning_rate=5e-5, lr_schedule="constant", warmup=0.0, rank=128, alpha=256.0),
}
# The first version: 2 epochs on segments, then 3 with questions beside the truncated document. It
# trained all weights or PiSSA of rank 128; here it is LoRA of rank 128, with the batch of v4.
V1 = dict(
    objectives=("segments", "qa"), segment_epochs=2, qa_context="truncated", learning_rate=1e-5
)
# The MLP's last linear layer, by its name in most families: with LoRA on it a run costs more,
# recalls no more and forgets more.
DOWN = ("down_proj", "fc2", "fc_out", "dense_4h_to_h", "mlp.c_proj", "w2", "mlp.Wo")
# The adapter that is made for a document, and small steps (python -m bench recall).
MADE_FOR_IT = dict(
    **dict(adapter_init="document", train_a=False, layers=0.5, exclude_modules=DOWN),
    **dict(rank=128, beta2=0.95),
    **dict(segment_length=64, batch_size=1, learning_rate=3.5e-3, epochs=8, min_steps=64),
)
UNDERSTAND = dict(
    **dict(objectives=("segments", "qa", "replay"), replay_share=0.15),
    **dict(learning_rate=2.5e-3, epochs=12, min_steps=64),
)
# See LiftConfig.preset.
PRESETS: dict[str, dict[str, Any]] = {
    "memorize": MADE_FOR_IT,
    "understand": {**MADE_FOR_IT, **UNDERSTAND},
    "large": {**MADE_FOR_IT, "segment_length": 1024, "learning_rate": 5e-4, "min_steps": 16},
    "plain": {},
    "paper": PAPER,
    "paper-v1": {**PAPER, **V1},
    "paper-v4": {**PAPER, "objectives": ("segments", "qa")},
}


def preset_for(tokenizer: Any) -> str:
    """The preset for a model that nobody chose one for: a chat model is to answer, any other to
    recite."""
    return "understand" if getattr(tokenizer, "chat_template", None) else "memorize"
