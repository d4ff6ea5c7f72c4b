"""PEFT puts an adapter's weights on just the layers that were trained, whatever their names."""

import copy

import pytest
import torch
from errors_and_seeds import rel
from tiny import ODD_FAMILIES, WITH_EYES, tiny_family, tiny_model

import liftcore
from liftcore import adapter as adapters
from liftcore.config import LiftConfig
from liftcore.errors import LiftError
from liftcore.layers.lora import Adapter
from liftcore.memory import merged


def ids_of(rng):
    return torch.from_numpy(rng.integers(3, 200, size=(2, 11)))


@torch.no_grad()
def logits(model, ids):
    return model(input_ids=ids, use_cache=False).logits


def an_adapter(model):
    """With B other than zero, so that every layer tells."""
    adapter = Adapter(model, rank=4, alpha=8)
    with torch.no_grad():
        adapter.values.normal_(0, 0.1)
    return adapter


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("family", [*ODD_FAMILIES, *WITH_EYES])
def test_peft_gives_the_same_logits(family, rng, tmp_path):
    from peft import PeftModel

    model = tiny_family(family, seed=int(rng.integers(1 << 30)))
    base, ids = copy.deepcopy(model), ids_of(rng)
    plain = logits(model, ids)
    adapter = an_adapter(model)
    adapter.install()
    ours = logits(model, ids)
    assert rel(ours, plain) > 1e-2, "the adapter must do something"
    adapters.write(adapter, tmp_path)
    theirs = PeftModel.from_pretrained(base, tmp_path).eval()
    prefix, mark = "base_model.model.", ".lora_A"
    adapted = [name for name, _ in theirs.named_modules() if name.endswith(mark)]
    assert {n.removeprefix(prefix).removesuffix(mark) for n in adapted} == set(adapter.layers)
    assert rel(logits(theirs, ids) - plain, ours - plain) < 1e-4
    adapters.read(model, tmp_path).install()
    assert rel(logits(model, ids), ours) < 1e-5


@pytest.mark.parametrize(
    ("family", "names"),
    [
        ("deepseek_v3", "6 named down_proj, gate_proj, up_proj (PEFT takes"),
        ("deepseek_v3", "2 named down_proj, gate_up_proj (3-D weights"),
        ("mixtral", "4 named down_proj, gate_up_proj (3-D weights"),
        ("falcon_h1", "2 named out_proj (PEFT refuses"),
        ("phimoe", "2 named router (no plain linear layer: PhimoeTopKRouter)"),
        ("deepseek_v4", "2 named o_a_proj (no plain linear layer: DeepseekV4GroupedLinear)"),
    ],
)
def test_what_gets_no_lora_is_said(family, names):
    assert names in Adapter(tiny_family(family), 2, 4).targets.note


def test_a_run_says_what_gets_no_lora(tokenizer):
    torch.manual_seed(0)
    model = tiny_family("mixtral")
    model.resize_token_embeddings(len(tokenizer))
    model.requires_grad_(False)
    config = LiftConfig(segment_length=16, epochs=1, rank=2)
    text = "Marta Quellin keeps bees on the roof of the old mill. Every June she gives honey away."
    memory = liftcore.absorb(model, tokenizer, text, config=config, progress=False)
    assert "without LoRA: 4 named down_proj, gate_up_proj" in memory.training.how
    assert "without LoRA" not in Adapter(tiny_model(), 2, 4).targets.note


class Tower(torch.nn.Module):
    """A decoder beside another tower whose layers' whole paths end as the decoder's do."""

    def __init__(self):
        super().__init__()
        self.text = torch.nn.ModuleDict({"up": torch.nn.Linear(3, 3), "0": torch.nn.Linear(3, 3)})
        other = torch.nn.ModuleDict({"up": torch.nn.Linear(3, 3)})
        self.eyes = torch.nn.ModuleDict({"text": other})

    def get_decoder(self):
        return self.text

    def get_output_embeddings(self):
        return None


def test_a_path_that_ends_another_path(tmp_path):
    """PEFT takes a name for the end of any path: then only a pattern tells the two apart."""
    from peft import LoraConfig, get_peft_model

    model = Tower()
    with pytest.warns(UserWarning, match="not grouped"):
        targets = Adapter(model, 2, 4).targets
    assert set(targets.layers) == {"text.up", "text.0"}
    theirs = get_peft_model(model, LoraConfig(r=2, target_modules=targets.names))
    adapted = [n for n, _ in theirs.base_model.model.named_modules() if n.endswith(".lora_A")]
    assert adapted == ["text.up.lora_A", "text.0.lora_A"]


@pytest.mark.parametrize("family", ["gpt2", "falcon", "gemma3n_text"])
def test_a_merged_model_gives_the_same_logits(family, rng):
    model, ids = tiny_family(family), ids_of(rng)
    plain = logits(model, ids)
    adapter = an_adapter(model)
    adapter.install()
    assert rel(logits(merged(adapter), ids) - plain, logits(model, ids) - plain) < 1e-4


def test_layers_that_share_a_weight_cannot_be_merged():
    with pytest.raises(LiftError, match="shares its weight"):
        merged(an_adapter(tiny_family("zamba2")))
