"""Every field of somebody's adapter_config.json is read, known as harmless, or refused by name."""

import copy
import dataclasses
import json
import warnings

import pytest
import torch
from errors_and_seeds import rel
from peft import LoraConfig, PeftModel, get_peft_model
from tiny import tiny_model

import liftcore
from liftcore import adapter as adapters
from liftcore.config import LiftConfig
from liftcore.errors import LiftError, UsageError

# Fields that say nothing of what an adapter computes, with a value that is not the default.
HARMLESS = {
    "auto_mapping": {"base_model_class": "LlamaForCausalLM"},
    "eva_config": {"rho": 3.0},
    "inference_mode": True,
    "init_lora_weights": "gaussian",
    "loftq_config": {"loftq_bits": 4},
    "lora_dropout": 0.2,
    "megatron_core": "other",
    "peft_version": "9.9",
    "qalora_group_size": 8,
    "revision": "main",
    "runtime_config": {"ephemeral_gpu_offload": False},
    "task_type": None,
}
# Those that are read or compared elsewhere.
READ = {"r", "lora_alpha", "base_model_name_or_path", "layers_to_transform", "layers_pattern"}


def theirs(tmp_path, **settings):
    """A folder that PEFT wrote, and the model that it was trained on."""
    model = tiny_model()
    settings = {"target_modules": "all-linear", "task_type": "CAUSAL_LM", **settings}
    adapted = get_peft_model(copy.deepcopy(model), LoraConfig(r=4, lora_alpha=8, **settings))
    with torch.no_grad():
        for name, p in adapted.named_parameters():
            if "lora_" in name:
                p.normal_(0, 0.1)
    adapted.save_pretrained(tmp_path)
    return model, adapted.eval()


def change(folder, **fields):
    file = folder / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **fields}))


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"lora_dropout": 0.1},
        {"init_lora_weights": "gaussian"},
        {"target_modules": ["q_proj"]},
        {"target_modules": ["q_proj", "v_proj"], "layers_to_transform": [1]},
        {"target_modules": r".*layers\.0\.mlp\.up_proj|.*layers\.1\.mlp\.down_proj"},
        {"exclude_modules": ["down_proj"]},
        {
            "target_modules": ["k_proj", "o_proj"],
            "exclude_modules": ["k_proj"],
            "layers_to_transform": [1],
        },
    ],
)
def test_a_plain_adapter_of_peft_is_taken(settings, rng, tmp_path):
    model, adapted = theirs(tmp_path, **settings)
    ids = torch.from_numpy(rng.integers(3, 200, size=(1, 9)))
    adapter = adapters.read(model, tmp_path)
    adapter.install()
    assert rel(model(ids).logits, adapted(ids).logits) < 1e-5
    # And back again: the same layers for PEFT.
    again = tmp_path / "again"
    again.mkdir()
    adapters.write(adapter, again)
    adapter.remove()
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*exclude_modules")
        back = PeftModel.from_pretrained(model, again).eval()
    assert rel(back(ids).logits, adapted(ids).logits) < 1e-5


def test_a_run_begins_from_an_adapter_on_some_linear_layers(tokenizer, tmp_path):
    model, _ = theirs(tmp_path, target_modules=["q_proj", "v_proj"])
    change(tmp_path, base_model_name_or_path=adapters.base_name(model))
    config = LiftConfig(segment_length=16, epochs=1, rank=4, alpha=8.0)
    begin = dict(init=tmp_path, config=config, progress=False)
    memory = liftcore.absorb(model, tokenizer, list(range(3, 40)), **begin)
    assert {path[-6:] for path in memory.adapter.layers} == {"q_proj", "v_proj"}
    assert set(memory.config.exclude_modules) == {
        *("k_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    }
    memory.adapter.remove()
    other = dict(begin, config=config.replace(exclude_modules=("down_proj",)))
    why = "all layers without down_proj, .*gate_proj.*the settings on all layers without down_proj:"
    with pytest.raises(UsageError, match=why):
        liftcore.absorb(model, tokenizer, list(range(3, 40)), **other)


def test_a_name_that_is_none_is_said(tokenizer):
    config = LiftConfig(segment_length=16, epochs=1, rank=4, exclude_modules=("dwon_proj",))
    with pytest.raises(UsageError, match="names no linear layer of the model: dwon_proj"):
        liftcore.absorb(tiny_model(), tokenizer, list(range(3, 40)), config=config)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({"use_rslora": True}, "use_rslora"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights"),
        ({"init_lora_weights": "olora"}, "init_lora_weights"),
        ({"use_dora": True}, "use_dora"),
        ({"lora_bias": True}, "lora_bias"),
        ({"bias": "lora_only"}, "bias"),
        ({"rank_pattern": {"q_proj": 2}}, "rank_pattern"),
        ({"alpha_pattern": {"q_proj": 2}}, "alpha_pattern"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
    ],
)
def test_what_peft_computes_in_another_way_is_refused_by_name(settings, name, tmp_path):
    model, _ = theirs(tmp_path, **settings)
    with pytest.raises(LiftError, match=f"{name} = "):
        adapters.read(model, tmp_path)


FIELDS = [f.name for f in dataclasses.fields(LoraConfig) if f.name not in READ]


@pytest.mark.parametrize("name", FIELDS)
def test_every_field_is_harmless_or_refused(name, tmp_path):
    model, _ = theirs(tmp_path)
    before = json.loads((tmp_path / "adapter_config.json").read_text())
    if name in HARMLESS:
        change(tmp_path, **{name: HARMLESS[name]})
        adapters.read(model, tmp_path)
        return
    for value in (".*q_proj", ["q_proj"], {"q_proj": 1}, 3, True):
        if value == before.get(name):
            continue
        change(tmp_path, **{name: value})
        # Fewer layers are fine, but their weights are not in the file.
        with pytest.raises(LiftError, match=f"{name} = |its layers or shapes differ"):
            adapters.read(model, tmp_path)


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        ({"peft_type": "LOHA"}, "peft_type"),
        ({"peft_type": None}, "peft_type"),
        ({"fan_in_fan_out": True}, "fan_in_fan_out"),
        ({"a_field_of_next_year": 0.5}, "a_field_of_next_year"),
        ({"target_modules": "model.layers.0.*("}, "target_modules"),
        ({"target_modules": None}, "target_modules"),
        ({"r": 0}, "r is 0"),
        ({"lora_alpha": float("nan")}, "lora_alpha nan"),
        ({"r": float("inf")}, "damaged"),
    ],
)
def test_other_values_are_refused(fields, name, tmp_path):
    model, _ = theirs(tmp_path)
    change(tmp_path, **fields)
    with pytest.raises(LiftError, match=name) as error:
        adapters.read(model, tmp_path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "fields",
    [
        {"a_field_of_next_year": None, "another": False, "a_third": [], "a_fourth": {}},
        {"exclude_modules": ["lm_head"]},
        {"target_modules": r".*_proj", "exclude_modules": ".*vision.*"},
        {"target_modules": "all-linear"},
    ],
)
def test_values_that_ask_for_nothing_are_taken(fields, tmp_path):
    model, _ = theirs(tmp_path)
    change(tmp_path, **fields)
    assert len(adapters.read(model, tmp_path).layers) == 14
