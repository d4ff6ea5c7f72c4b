"""The scripts under examples/ run, learn, and say what is wrong."""

import importlib.util
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from wheels import ROOT

import liftcore
from liftcore.fiction.documents import fictional_document
from liftcore.layers.lora import linear_layers

pytest.importorskip("peft")
pytest.importorskip("accelerate")


def example(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / "examples" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def options(tiny_folder):
    return ["--model", str(tiny_folder), "--device", "cpu"]


@pytest.fixture
def document(tmp_path):
    file = tmp_path / "document.txt"
    file.write_text(" ".join(fictional_document(0, 400).text.split()[:150]))
    return ["--document", str(file)]


@pytest.mark.parametrize("name", ["trainer_peft", "official_lift"])
def test_under_trainer_the_losses_are_those_of_peft_alone(
    options, document, monkeypatch, tmp_path, name
):
    module = example(name)
    options += [*document, "--out", str(tmp_path)] if name == "trainer_peft" else []

    def losses():
        torch.manual_seed(0)
        found = module.main(options)
        return found if isinstance(found, list) else found["losses"]

    reports = []
    real = liftcore.accelerate
    with monkeypatch.context() as m:
        m.setattr(liftcore, "accelerate", lambda model: reports.append(real(model)))
        ours = losses()
    assert len(reports) == 1 and reports[0].replaced and not reports[0].left
    with monkeypatch.context() as m:
        m.setattr(liftcore, "accelerate", lambda model: None)
        m.setattr(liftcore, "restore", lambda model: None)
        plain = losses()
    assert ours == pytest.approx(plain, rel=2e-3) and ours[-1] < ours[0]
    if name == "trainer_peft":
        assert (tmp_path / "adapter_model.safetensors").is_file()


def test_the_weights_of_overlapping_segments_reach_the_loss(options, document, monkeypatch):
    module = example("trainer_peft")
    checked = []
    real = module.WeightedTrainer.compute_loss

    def compute_loss(self, model, inputs, **kwargs):
        labels, weights = inputs["labels"][:, 1:], inputs["weights"][:, 1:]
        loss = real(self, model, inputs, **kwargs)
        with torch.no_grad():
            logits = model(input_ids=inputs["input_ids"]).logits[:, :-1].float()
        each = torch.nn.functional.cross_entropy(logits.mT, labels, reduction="none")
        right = (each * weights).sum() / weights.sum()
        assert len(weights[weights > 0].unique()) > 1
        assert loss.item() == pytest.approx(right.item(), rel=1e-4)
        checked.append(loss)
        return loss

    monkeypatch.setattr(module.WeightedTrainer, "compute_loss", compute_loss)
    losses = module.main([*options, *document, "--overlap", "--epochs", "6"])
    assert checked and losses[-1] < losses[0]


def test_a_plain_loop_learns(options, document):
    losses = example("plain_loop").main([*options, *document, "--epochs", "3"])
    assert losses[-1] < losses[0]


def test_a_plain_loop_has_the_loss_of_transformers(options, document, tiny_folder):
    """At the start B is zero: the loss is that of the model itself on the same batch."""
    from torch.utils.data import DataLoader

    module = example("plain_loop")
    first = module.main([*options, *document, "--epochs", "1"])[0]
    model, tokenizer = liftcore.load(tiny_folder, device="cpu")
    text = Path(document[1]).read_text()
    tokens = tokenizer(text, add_special_tokens=False)["input_ids"]
    config = liftcore.LiftConfig(segment_length=128, epochs=1, batch_size=2)
    stream = module.SegmentStream(tokens, config, prefix=module.prefix_ids(tokenizer))
    batch = next(iter(DataLoader(stream, 2, collate_fn=module.Collator(tokenizer))))
    assert first == pytest.approx(model(**batch).loss.item(), rel=1e-4)


@pytest.fixture(scope="module")
def served(tiny_folder, tmp_path_factory):
    """(the example, a saved adapter that can be served, the model's linear layers)."""
    module, folder = example("serve"), tmp_path_factory.mktemp("serve") / "memory"
    argv = ["--model", str(tiny_folder), "--device", "cpu", "--out", str(folder)]
    assert module.main(argv) == 0
    return module, folder, linear_layers(liftcore.load(tiny_folder, device="cpu")[0])


def test_the_commands_name_the_adapter_and_its_rank(served, options, capsys):
    module, folder, _ = served
    assert module.main([*options, "--adapter", str(folder)]) == 0
    vllm, sglang = capsys.readouterr().out.splitlines()[-2:]
    assert vllm.startswith("vllm serve") and "--max-lora-rank 16 " in vllm
    assert all(f"report={folder}" in line for line in (vllm, sglang)) and "sglang" in sglang


def _config(**changes):
    def change(config, tensors):
        config.update(changes)

    return change


def _renamed(config, tensors):
    name = next(iter(tensors))
    tensors[name.replace("base_model.model.", "")] = tensors.pop(name)


def _other_module(config, tensors):
    name = next(n for n in tensors if "q_proj" in n)
    tensors[name.replace("q_proj", "embed_tokens")] = tensors.pop(name)


def _half(config, tensors):
    del tensors[next(n for n in tensors if n.endswith("lora_B.weight"))]


def _transposed(config, tensors):
    name = next(iter(tensors))
    tensors[name] = tensors[name].T.contiguous()


def _doubles(config, tensors):
    name = next(iter(tensors))
    tensors[name] = tensors[name].double()


def _magnitude(config, tensors):
    tensors[next(iter(tensors)).replace("lora_A", "lora_magnitude_vector")] = torch.ones(4)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (_config(modules_to_save=["lm_head"]), "modules_to_save"),
        (_config(use_dora=True), "DoRA"),
        (_config(bias="lora_only"), "bias"),
        (_config(r=1024), "above 512"),
        (_config(r=8), "has shape"),
        (_config(lora_alpha=None), "no lora_alpha"),
        (_config(target_modules=None), "no target_modules"),
        (_config(rank_pattern={"q_proj": 4}), "ignored"),
        (_renamed, "not a name of a LoRA weight"),
        (_other_module, "embed_tokens is not a linear layer"),
        (_half, "only one of"),
        (_transposed, "has shape"),
        (_doubles, "dtype F64"),
        (_magnitude, "not a name of a LoRA weight"),
        (lambda config, tensors: tensors.clear(), "no LoRA weight"),
    ],
)
def test_what_a_server_would_refuse_is_named(served, tmp_path, change, why):
    module, folder, layers = served
    config = json.loads((folder / "adapter_config.json").read_text())
    tensors = load_file(folder / "adapter_model.safetensors")
    change(config, tensors)
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    assert any(why in problem for problem in module.problems(tmp_path, layers))


def test_an_adapter_of_peft_can_be_served_too(served, options, document, tmp_path):
    module, _, layers = served
    argv = [*options, *document, "--epochs", "1", "--out", str(tmp_path)]
    example("trainer_peft").main(argv)
    assert module.problems(tmp_path, layers) == []


RECIPES = ROOT / "docs" / "drop-in.md"


def test_every_example_is_a_recipe():
    for file in (ROOT / "examples").glob("*.py"):
        assert f"`examples/{file.name}`" in RECIPES.read_text()


def test_the_extra_of_the_recipes_names_what_they_import():
    lines = (ROOT / "pyproject.toml").read_text().splitlines()
    extra = next((line for line in lines if line.startswith("trainer = ")), "")
    assert "peft>=" in extra and "accelerate>=" in extra
    assert "pip install '.[trainer]'" in RECIPES.read_text()
