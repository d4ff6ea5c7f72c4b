"""accelerate(model): liftcore's ops under somebody else's LoRA layers; restore(model): undo it."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from liftcore.drop_in import causal_loss as patch_loss
from liftcore.drop_in import peft_lora as patch_lora
from liftcore.drop_in.peft_lora import base_kind, peft
from liftcore.layers.groups import find
from liftcore.layers.linear import is_linear, keep_gradients
from liftcore.layers.lora import LoraLinear
from liftcore.layers.replaced import off_by
from liftcore.model import causal_lm, evaluating

LOSS = "loss"


@dataclass
class PatchReport:
    """What runs liftcore's ops now, and what was left as it was."""

    replaced: list[str] = field(default_factory=list)  # module paths of LoRA linears
    groups: list[tuple[str, ...]] = field(default_factory=list)  # those computed together
    loss: bool = False
    left: dict[str, str] = field(default_factory=dict)  # module path, or "loss" -> why

    def __str__(self) -> str:
        lines = [
            f"{len(self.replaced)} LoRA linears replaced, {len(self.groups)} groups of them "
            f"computed together, loss {'replaced' if self.loss else 'left'}"
        ]
        return "\n".join(lines + [f"  left {path}: {why}" for path, why in self.left.items()])


def accelerate(model: nn.Module, *, eval_logits: bool = True) -> PatchReport:
    """Puts liftcore's ops under the LoRA linears and the loss of this model instance.

    model: a causal LM of transformers with PEFT's LoRA layers, with liftcore's own adapter, or
    with none yet (then only the loss is replaced; call again once it has them). Layers are known
    by their structure, not by their class: every LoRA linear runs lora_linear, those that share
    an input run as one, and a gated MLP becomes one op. They compute in the model's dtype (or
    that of autocast): fp32 adapters on a bf16 model serve as masters. On a quantised base of
    bitsandbytes or torchao the base product stays theirs. In training, model(…, labels=…) gives
    the same loss without forming logits, and output.logits computes them when they are read. A
    batch without one scored token has the loss 0, not NaN.

    eval_logits: in eval mode a call with labels gives the logits too, as the model does by
    itself, for metrics; with False they are computed when they are used.

    What cannot be taken (dropout, DoRA, several active adapters, modules_to_save, other
    quantised bases) stays as it is, and the report names it; a warning says when there was no
    LoRA linear to replace. Nothing global is patched and parameters stay where they are; a
    second call starts anew, and restore() undoes it. Not for nn.DataParallel, which copies the
    patched methods of the first device's model. Raises UsageError for 4-bit weights that
    bitsandbytes has repacked for inference on a CPU: they give no gradient.
    """
    restore(model)
    keep_gradients(model)
    report, own = PatchReport(), False
    for path, module in model.named_modules():
        if isinstance(module, LoraLinear):
            own = True
            report.left[path] = "liftcore's own layer runs the ops already"
        elif hasattr(module, "modules_to_save") and hasattr(module, "original_module"):
            report.left[path] = "modules_to_save"
        elif patch_lora.is_lora(module):
            why = patch_lora.install(module)
            if why is None:
                report.replaced.append(path)
            else:
                report.left[path] = why
    causal = patch_loss.find(model)
    if report.replaced:
        _group(model, causal or model, report)
    if causal is None:
        why = "no causal LM of transformers"
    else:
        why = patch_loss.install(causal, eval_logits)
    report.loss = why is None
    if why is not None:
        report.left[LOSS] = why
    if not report.replaced and not own:
        warnings.warn("liftcore.accelerate replaced no LoRA linear", stacklevel=2)
    return report


def restore(model: nn.Module) -> None:
    """Gives every module that accelerate() changed its own forward back."""
    for module in model.modules():
        patch_lora.remove(module)
        patch_loss.remove(module)


def _group(model: nn.Module, causal: nn.Module, report: PatchReport) -> None:
    """Groups the replaced layers that share an input."""
    paths = [
        path
        for path in report.replaced
        if base_kind(peft(model.get_submodule(path)).base_layer) == "plain"
    ]
    try:
        # The last layer of an MLP need have no LoRA for the product before it to be fused.
        beside = [path for path, module in model.named_modules() if is_linear(module)]
        groups = find(model, causal_lm(causal).get_decoder(), paths, beside)
    except Exception as error:
        report.left["groups"] = f"the model does not run on token ids alone: {error}"
        return
    right = _logits(causal)
    for siblings in groups:
        patch_lora.install_group(model, siblings)
        report.groups.append(siblings.members)
    bound = 0.1 if right.dtype in (torch.bfloat16, torch.float16) else 1e-3
    if not (error := off_by(_logits(causal), right)) <= bound:
        for module in model.modules():
            patch_lora.remove_group(module)
        report.groups.clear()
        report.left["groups"] = f"the model then computes something else (off by {error:.2g})"


@torch.no_grad()
def _logits(causal: nn.Module) -> Tensor:
    """The model's logits [1, 12, V] for a few tokens."""
    weight = causal_lm(causal).get_input_embeddings().weight
    ids = torch.arange(12, device=weight.device)[None] * max(1, weight.shape[0] // 13)
    with evaluating(causal):
        return causal(input_ids=ids, use_cache=False).logits
