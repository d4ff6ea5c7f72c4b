"""Models with PEFT's LoRA, runs of them, and the rule for their errors."""

import torch
from errors_and_seeds import rel
from peft import LoraConfig, get_peft_model
from tiny import tiny_model

from liftcore.drop_in import peft_lora as patch_lora
from liftcore.layers import groups


def peft_model(family="llama", changes=None, **settings):
    settings = {"target_modules": "all-linear", "init_lora_weights": False, **settings}
    model = tiny_model(family, **(changes or {}))
    return get_peft_model(model, LoraConfig(r=4, lora_alpha=8, **settings)).train()


def ids_of(rng, *shape):
    return torch.from_numpy(rng.integers(3, 200, size=shape))


def run(model, ids, **inputs):
    """Loss, logits and gradients by name."""
    labels = ids.clone()
    labels[0, :5] = -100
    for p in model.parameters():
        if p.grad is not None:
            p.grad.zero_()
    out = model(input_ids=ids, labels=labels, **inputs)
    out.loss.backward()
    gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    return {"loss": out.loss.detach(), "logits": out.logits.detach(), **gradients}


def assert_as_near(ours, plain, truth, slack):
    """All of ours together are at most twice as far from the truth as theirs, with a slack.

    A single tensor of a model as small as these depends on the luck of a few roundings in bf16:
    there the slack is five times as large, and still far below what a wrong formula gives.
    """

    def whole(values):
        return torch.cat([values[n].double().flatten() / truth[n].norm() for n in truth])

    right = whole(truth)
    assert rel(whole(ours), right) <= 2 * rel(whole(plain), right) + slack
    for name, right in truth.items():
        assert rel(ours[name], right) <= 2 * rel(plain[name], right) + 5 * slack, name


def count_layers(monkeypatch):
    """A list that gets an entry for each LoRA linear that an op computes."""
    seen = []

    def watch(module, name, layers):
        real = getattr(module, name)

        def counting(x, weights, *rest, **kwargs):
            seen.extend([name] * (layers or len(weights)))
            return real(x, weights, *rest, **kwargs)

        monkeypatch.setattr(module, name, counting)

    watch(patch_lora, "lora_linear", 1)
    watch(patch_lora, "add_lora", 1)
    watch(groups, "lora_qkv", None)
    watch(groups, "lora_gate_up", None)
    return seen
