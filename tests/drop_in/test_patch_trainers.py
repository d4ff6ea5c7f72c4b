"""Accelerated models under transformers.Trainer, TRL's SFTTrainer and Accelerate."""

import copy

import numpy as np
import pytest
import torch
import transformers
from accelerate.state import AcceleratorState
from peft import LoraConfig, get_peft_model
from tiny import tiny_model

import liftcore
from liftcore.drop_in import loss_output
from liftcore.drop_in import peft_lora as patch_lora
from liftcore.drop_in.loss_output import LossOutput
from liftcore.layers.lora import Adapter

pytestmark = pytest.mark.filterwarnings("ignore")
ROWS = np.random.default_rng(7).integers(3, 200, size=(12, 10))


@pytest.fixture(autouse=True)
def precision_of_no_other_test(monkeypatch):
    """transformers 4 and Accelerate keep the precision of the first Trainer in the process."""
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    AcceleratorState._reset_state(reset_partial_state=True)


def peft_model():
    config = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM")
    torch.manual_seed(3)
    return get_peft_model(tiny_model(num_hidden_layers=1), config)


def rows(count=12):
    """Rows of unequal lengths, so that the number of scored tokens matters."""
    items = []
    for i, row in enumerate(ROWS[:count]):
        labels = row.copy()
        labels[: i % 5] = -100
        items.append({"input_ids": row, "labels": labels})
    return items


def arguments(folder, **settings):
    defaults = dict(
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
        max_steps=4,
        learning_rate=1e-2,
        lr_scheduler_type="constant",
        logging_steps=1,
        use_cpu=True,
        report_to=[],
        disable_tqdm=True,
        save_strategy="no",
        seed=1,
        log_level="error",
    )
    return transformers.TrainingArguments(output_dir=str(folder), **{**defaults, **settings})


def losses(trainer):
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def bf16_accelerator():
    accelerate = pytest.importorskip("accelerate")
    accelerate.state.AcceleratorState._reset_state(True)  # that of a test before
    return accelerate.Accelerator(mixed_precision="bf16", cpu=True)


def count_outputs(monkeypatch):
    """The kinds of output that the trained model gave."""
    from liftcore.drop_in import causal_loss as patch_loss

    seen, real = [], patch_loss._forward
    monkeypatch.setattr(patch_loss, "_forward", lambda *a, **k: seen.append(1) or real(*a, **k))
    return seen


@pytest.mark.parametrize("bf16", [False, True])
def test_trainer(bf16, tmp_path, monkeypatch):
    """bf16, accumulation, checkpointing, label_names, evaluation with metrics."""
    found, metrics = [], []
    for accelerate in (False, True):
        model = peft_model()
        if accelerate:
            report = liftcore.accelerate(model)
            assert len(report.replaced) == 7 and len(report.groups) == 2 and report.loss
            seen = count_outputs(monkeypatch)

        def accuracy(prediction):
            logits, labels = prediction.predictions, prediction.label_ids
            assert logits.shape == (4, 10, 211)
            hits = logits[:, :-1].argmax(-1) == labels[:, 1:]
            return {"hits": int(hits.sum()), "size": float(np.abs(logits).mean())}

        trainer = transformers.Trainer(
            model=model,
            args=arguments(
                tmp_path,
                bf16=bf16,
                gradient_checkpointing=True,
                gradient_checkpointing_kwargs={"use_reentrant": False},
                label_names=["labels"],
                eval_strategy="steps",
                eval_steps=2,
            ),
            train_dataset=rows(),
            eval_dataset=rows(4),
            compute_metrics=accuracy,
        )
        trainer.train()
        found.append(losses(trainer))
        metrics.append([e for e in trainer.state.log_history if "eval_loss" in e])
    assert len(seen) == 8, "one fused loss a micro-batch, none in the evaluation"
    assert len(found[0]) == 4 and found[0][-1] != found[0][0]
    assert found[1] == pytest.approx(found[0], rel=2e-3 if bf16 else 1e-5)
    assert len(metrics[0]) == 2
    for theirs, ours in zip(*metrics, strict=True):
        assert ours["eval_loss"] == pytest.approx(theirs["eval_loss"], rel=1e-2 if bf16 else 1e-5)
        assert ours["eval_size"] == pytest.approx(theirs["eval_size"], rel=2e-2 if bf16 else 1e-4)


def test_trainer_saves_and_resumes(tmp_path):
    settings = dict(save_strategy="steps", save_steps=2)

    def train(folder, **extra):
        model = peft_model()
        liftcore.accelerate(model)
        trainer = transformers.Trainer(
            model=model, args=arguments(folder, **settings), train_dataset=rows()
        )
        trainer.train(**extra)
        return model, trainer

    whole, first = train(tmp_path)
    resumed, second = train(tmp_path, resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert losses(second) == pytest.approx(losses(first), rel=1e-5)
    for a, b in zip(whole.parameters(), resumed.parameters(), strict=True):
        torch.testing.assert_close(a, b)
    names = {p.name for p in (tmp_path / "checkpoint-4").iterdir()}
    assert "adapter_model.safetensors" in names


@pytest.mark.parametrize("bf16", [False, True])
def test_trainer_evaluates_the_loss_alone_without_logits(bf16, tmp_path, monkeypatch):
    """Logits are formed for predictions and metrics only."""
    found, predicted, formed = [], [], []
    real = loss_output.form
    monkeypatch.setattr(loss_output, "form", lambda *a: formed.append(1) or real(*a))
    for accelerate in (False, True):
        model = peft_model()
        if accelerate:
            liftcore.accelerate(model, eval_logits=False)
            seen = count_outputs(monkeypatch)
        args = arguments(tmp_path, per_device_eval_batch_size=2, bf16=bf16)
        trainer = transformers.Trainer(model=model, args=args, eval_dataset=rows(4))
        found.append(trainer.evaluate()["eval_loss"])
        assert not formed
        predicted.append(trainer.predict(rows(4)).predictions)
        trainer.compute_metrics = lambda p: {"size": float(np.abs(p.predictions).mean())}
        found.append(trainer.evaluate()["eval_size"])
    assert len(seen) == 6 and len(formed) == 4
    assert found[2:] == pytest.approx(found[:2], rel=1e-2 if bf16 else 1e-5)
    theirs, ours = predicted
    assert ours.shape == theirs.shape == (4, 10, 211)
    assert np.abs(ours - theirs).max() < (0.05 if bf16 else 1e-5) * np.abs(theirs).max()


def test_trainer_with_liftcores_own_adapter(tmp_path, monkeypatch):
    found = []
    for accelerate in (False, True):
        model = tiny_model(num_hidden_layers=1)
        adapter = Adapter(model, rank=4, alpha=8)
        adapter.install()
        if accelerate:
            assert liftcore.accelerate(model).loss
            seen = count_outputs(monkeypatch)
        trainer = transformers.Trainer(
            model=model, args=arguments(tmp_path, bf16=True), train_dataset=rows()
        )
        trainer.train()
        found.append(losses(trainer))
        assert trainer.accelerator.unwrap_model(model, keep_fp32_wrapper=False) is model
        model.train()(input_ids=torch.ones(1, 4, dtype=torch.long), labels=torch.ones(1, 4).long())
    assert len(seen) == 9, "the loss stays in place after Accelerate unwrapped the model"
    assert found[1] == pytest.approx(found[0], rel=2e-3)


def test_accelerate_in_a_plain_loop(monkeypatch):
    found = []
    for ours in (False, True):
        model = peft_model().train()
        if ours:
            liftcore.accelerate(model)
        accelerator = bf16_accelerator()
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], 1e-2)
        model, optimizer = accelerator.prepare(model, optimizer)
        found.append([])
        for row in ROWS[:6]:
            ids = torch.from_numpy(row)[None]
            out = model(input_ids=ids, labels=ids)
            assert out.loss.dtype == out.logits.dtype == torch.float32
            assert isinstance(out, LossOutput) == ours and out.logits.shape == (1, 10, 211)
            accelerator.backward(out.loss)
            optimizer.step()
            optimizer.zero_grad()
            found[-1].append(out.loss.item())
    assert found[1] == pytest.approx(found[0], rel=2e-3)


def test_what_accelerate_prepared_is_taken_again():
    """Its wrapper stays around our forward after restore()."""
    model, ids = tiny_model(num_hidden_layers=1).train(), torch.from_numpy(ROWS[:2])
    liftcore.accelerate(model)
    accelerator = bf16_accelerator()
    assert accelerator.prepare_model(model) is model
    right = model(input_ids=ids, labels=ids)
    liftcore.restore(model)
    theirs = model(input_ids=ids, labels=ids)
    assert not isinstance(theirs, LossOutput) and isinstance(right, LossOutput)
    report = liftcore.accelerate(model)
    assert report.loss and not report.left
    again = model(input_ids=ids, labels=ids)
    assert isinstance(again, LossOutput) and again.logits.dtype == torch.float32
    assert torch.equal(again.loss, right.loss)
    assert again.loss.item() == pytest.approx(theirs.loss.item(), rel=1e-2)
    accelerator.unwrap_model(model, keep_fp32_wrapper=False)
    liftcore.restore(model)
    assert "forward" not in vars(model)


@pytest.mark.parametrize("before", [True, False])
def test_sft_trainer(before, tmp_path, monkeypatch):
    """TRL brings a loss of its own; the LoRA linears are ours, and all of it can be undone."""
    trl = pytest.importorskip("trl")
    datasets = pytest.importorskip("datasets")
    tokenizers = pytest.importorskip("tokenizers")
    words = {f"w{i}": i for i in range(211)}
    inner = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="w0"))
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="w0", eos_token="w2", bos_token="w1"
    )
    data = datasets.Dataset.from_list([{"input_ids": row.tolist()} for row in ROWS])
    found, ran, real = [], [], patch_lora.lora_linear
    for accelerate in (False, True):
        model = peft_model()
        if accelerate and before:
            report = liftcore.accelerate(model)
        plain = arguments(tmp_path).to_dict()
        keys = ("per_device_train_batch_size", "gradient_accumulation_steps", "max_steps")
        keys += ("learning_rate", "lr_scheduler_type", "logging_steps", "use_cpu", "report_to")
        keys += ("disable_tqdm", "save_strategy", "seed")
        args = trl.SFTConfig(
            output_dir=str(tmp_path), bf16=False, max_length=None, **{k: plain[k] for k in keys}
        )
        trainer = trl.SFTTrainer(
            model=model, args=args, train_dataset=data, processing_class=tokenizer
        )
        if accelerate and not before:
            report = liftcore.accelerate(model)
        if accelerate:
            monkeypatch.setattr(patch_lora, "lora_linear", lambda *a: ran.append(1) or real(*a))
        trainer.train()
        found.append(losses(trainer))
    assert len(report.replaced) == 7 and [len(g) for g in report.groups] == [3, 2]
    assert report.loss or set(report.left) == {"loss"}
    # o and down in each of 8 micro-batches, and again where the forward is recomputed.
    assert len(ran) in (16, 32)
    assert len(found[0]) == 4 and found[1] == pytest.approx(found[0], rel=1e-4)
    ids = torch.from_numpy(ROWS[:1])
    right = copy.deepcopy(model)
    liftcore.restore(model)
    torch.testing.assert_close(model(ids).logits, right(ids).logits)
