"""Memories on disk: PEFT's own form, refusals, and nothing lost when saving fails."""

import json
import resource
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
from tiny import tiny_model

import liftcore
from liftcore import adapter as adapters
from liftcore.config import LiftConfig
from liftcore.errors import LiftError, UsageError
from liftcore.report import Report

TEXT = "Marta Quellin keeps bees on the roof of the old mill. Every June she gives the honey away."
CONFIG = LiftConfig(segment_length=16, epochs=2, rank=4, learning_rate=5e-3)

pytestmark = pytest.mark.usefixtures("elsewhere")


@pytest.fixture
def memory(tiny_folder):
    model, tokenizer = liftcore.load(tiny_folder, device="cpu", dtype=torch.float32)
    return liftcore.absorb(model, tokenizer, TEXT, title="Bees", config=CONFIG, progress=False)


def logits(model, tokenizer):
    ids = torch.tensor([tokenizer(TEXT)["input_ids"]])
    with torch.no_grad():
        return model(ids).logits


def test_peft_loads_it_and_gives_the_same_logits(memory, tiny_folder, tmp_path):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    folder = memory.save(tmp_path / "m")
    ours = logits(memory.model, memory.tokenizer)
    base = AutoModelForCausalLM.from_pretrained(tiny_folder)
    plain = logits(base, memory.tokenizer)
    theirs = logits(PeftModel.from_pretrained(base, folder).eval(), memory.tokenizer)
    assert not torch.allclose(ours, plain, atol=1e-4), "the adapter must do something"
    torch.testing.assert_close(theirs, ours, rtol=1e-4, atol=1e-5)


def test_the_form_on_disk_is_what_vllm_reads(memory, tmp_path):
    """The rules of vLLM's loader: r, lora_alpha, target_modules, no bias, no modules_to_save."""
    from safetensors.torch import load_file

    folder = memory.save(tmp_path / "m")
    settings = json.loads((folder / "adapter_config.json").read_text())
    assert settings["peft_type"] == "LORA" and settings["r"] == 4 and settings["lora_alpha"] == 8
    assert settings["modules_to_save"] is None and settings["bias"] == "none"
    assert not settings["use_dora"] and not settings["use_rslora"]
    assert settings["target_modules"] == sorted(
        ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    )
    names = set(load_file(folder / "adapter_model.safetensors"))
    assert "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight" in names
    assert len(names) == 2 * 7 * 2
    assert adapters.vllm_rank(4) == 8 and adapters.vllm_rank(128) == 128
    assert adapters.vllm_rank(513) is None


def test_save_and_load_give_the_same_memory(memory, tmp_path):
    folder = memory.save(tmp_path / "m")
    again = liftcore.load_memory(folder, device="cpu", dtype=torch.float32)
    assert torch.equal(logits(again.model, again.tokenizer), logits(memory.model, memory.tokenizer))
    assert again.report == memory.report and again.config == memory.config
    assert (again.title, again.text, again.length) == ("Bees", TEXT, memory.length)
    assert again.ask("Who keeps bees?") == memory.ask("Who keeps bees?")


def test_merged_model_needs_no_adapter(memory, tmp_path):
    folder = memory.save(tmp_path / "m", merge=True)
    merged, tokenizer = liftcore.load(folder / "merged", device="cpu", dtype=torch.float32)
    assert not getattr(merged, "_liftcore_adapter", None)
    torch.testing.assert_close(
        logits(merged, tokenizer), logits(memory.model, memory.tokenizer), rtol=1e-4, atol=1e-4
    )


def test_the_document_can_be_left_out(memory, tmp_path):
    folder = memory.save(tmp_path / "m", with_document=False)
    assert not any("Quellin" in f.read_bytes().decode(errors="ignore") for f in folder.iterdir())
    again = liftcore.load_memory(folder, device="cpu", dtype=torch.float32)
    with pytest.raises(LiftError, match="without its document"):
        again.ask("Who?", context="truncated")


def test_a_folder_that_is_not_empty_is_refused_unless_forced(memory, tmp_path):
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "mine.txt").write_text("mine")
    with pytest.raises(LiftError, match="not empty"):
        memory.save(tmp_path / "m")
    memory.save(tmp_path / "m", force=True)
    assert (tmp_path / "m" / "mine.txt").read_text() == "mine"
    with pytest.raises(LiftError, match="is a file"):
        memory.save(tmp_path / "m" / "mine.txt")


def test_an_adapter_for_another_base_is_refused(memory, tmp_path):
    folder = memory.save(tmp_path / "m")
    other = tiny_model(vocab_size=len(memory.tokenizer), hidden_size=32)
    other.config.name_or_path = memory.model.config.name_or_path
    with pytest.raises(LiftError, match="shapes differ"):
        liftcore.load_memory(folder, (other, memory.tokenizer))
    same = tiny_model(vocab_size=len(memory.tokenizer))
    same.config.name_or_path = "somebody/else"
    with pytest.raises(LiftError, match="somebody/else"):
        liftcore.load_memory(folder, (same, memory.tokenizer))
    liftcore.load_memory(folder, (same, memory.tokenizer), force=True)


def damage_truncate(folder):
    file = folder / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def damage_one_bit(folder):
    file = folder / "adapter_model.safetensors"
    data = bytearray(file.read_bytes())
    data[-5] ^= 1
    file.write_bytes(bytes(data))


def damage_missing(folder):
    (folder / "adapter_model.safetensors").unlink()


def damage_config(folder):
    (folder / "adapter_config.json").write_text("{")


def damage_info(folder):
    (folder / "liftcore.json").write_text('{"liftcore": "0"}')


@pytest.mark.parametrize(
    "damage", [damage_truncate, damage_one_bit, damage_missing, damage_config, damage_info]
)
def test_a_damaged_memory_is_refused_in_one_line(memory, tmp_path, damage):
    folder = memory.save(tmp_path / "m")
    damage(folder)
    with pytest.raises(LiftError) as error:
        liftcore.load_memory(folder, (memory.model, memory.tokenizer))
    assert "\n" not in str(error.value)


def test_a_full_disk_leaves_the_old_adapter(memory, tmp_path):
    """A real write failure: this process may write no file above 4 KiB."""
    folder = memory.save(tmp_path / "m")
    before = {f.name: f.read_bytes() for f in folder.iterdir()}
    with torch.no_grad():
        memory.adapter.values.add_(1)
    old = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        with pytest.raises(LiftError, match="cannot save"):
            memory.save(folder, force=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, old)
    assert {f.name: f.read_bytes() for f in folder.iterdir()} == before
    assert [p.name for p in tmp_path.iterdir()] == ["m"], "nothing is left beside it"


def test_asking_twice_and_in_both_contexts(memory):
    assert memory.ask("Who keeps bees?") == memory.ask("Who keeps bees?")
    assert isinstance(memory.ask("Who keeps bees?", context="truncated", max_new_tokens=5), str)
    with pytest.raises(UsageError):
        memory.ask("Who?", context="everything")
    with pytest.raises(UsageError, match="empty"):
        memory.ask("  ")


def test_truncation_keeps_head_and_tail(tokenizer):
    from liftcore.truncation import truncate

    ids = tokenizer(" ".join(f"word{i}" for i in range(500)))["input_ids"]
    text = truncate(tokenizer, ids, 100)
    assert text.startswith("word0 ") and text.endswith("word499") and "\n...\n" in text
    assert len(tokenizer(text)["input_ids"]) <= 110
    assert truncate(tokenizer, ids, 10**6) == tokenizer.decode(ids)


def test_the_truncated_prompt_fits_the_window(memory, monkeypatch):
    from liftcore import answer

    seen = []
    monkeypatch.setattr(answer, "generate", lambda m, t, ids, *_: seen.append(len(ids)) or "")
    memory.text = TEXT * 40
    memory.ask("Who keeps bees?", context="truncated", max_new_tokens=20)
    assert 256 - 40 <= seen[0] + 20 <= 256


def test_report_strip_and_bins():
    report = Report(0.5, 128, [0, 64], [1.0, 0.0], 32, 32)
    assert report.strip(4) == "·█· "
    assert "50.0%" in report.text() and "token 64 (0%)" in report.text()


def test_recall_compares_each_token_with_its_own_place(monkeypatch):
    """A model that counts on by one, over a document that counts, with a jump in the middle."""
    from liftcore import report

    def count_on(model, prompts, new):
        return prompts[:, -1:] + torch.arange(1, new + 1)

    monkeypatch.setattr(report, "greedy", count_on)
    tokens = np.arange(1000)
    assert report.measure(tiny_model(), tokens, prefix=[5]).recall == 1.0
    tokens[500:] += 7
    measured = report.measure(tiny_model(), tokens, prefix=[])
    for position, share in zip(measured.positions, measured.shares, strict=True):
        right = np.clip(500 - position - 32, 0, 32) if position + 32 <= 500 else 32
        assert share == pytest.approx(right / 32, abs=1e-4)


def test_the_tokenizers_prefix_is_trained_and_probed(tiny_folder, monkeypatch):
    """What a tokenizer puts before any text (Llama's BOS) stands before segments and probes."""
    from liftcore import model as models
    from liftcore import report
    from liftcore.training import runner

    class WithBos:
        bos_token_id = 1

        def __call__(self, text, add_special_tokens):
            return {"input_ids": [1] if add_special_tokens else []}

    assert models.prefix_ids(WithBos()) == [1]
    model, tokenizer = liftcore.load(tiny_folder, device="cpu", dtype=torch.float32)
    assert models.prefix_ids(tokenizer) == []
    batches, prompts = [], []
    loss, greedy = runner.batch_loss, report.greedy
    monkeypatch.setattr(models, "prefix_ids", lambda tokenizer: [1])
    monkeypatch.setattr(
        runner, "batch_loss", lambda m, h, step, *a: batches.append(step) or loss(m, h, step, *a)
    )
    monkeypatch.setattr(report, "greedy", lambda m, p, n: prompts.append(p) or greedy(m, p, n))
    liftcore.absorb(model, tokenizer, TEXT, config=CONFIG, progress=False)
    assert batches and all((b.input_ids[:, 0] == 1).all() for b in batches)
    assert prompts and (prompts[0][:, 0] == 1).all()


def test_a_second_memory_on_the_same_model_leaves_the_first_as_it_was(memory):
    answer = memory.complete("Marta Quellin", max_new_tokens=12)
    model, tokenizer = memory.model, memory.tokenizer
    other = liftcore.absorb(model, tokenizer, TEXT[::-1], config=CONFIG, progress=False)
    assert model._liftcore_adapter is other.adapter
    assert memory.complete("Marta Quellin", max_new_tokens=12) == answer


def test_a_failed_run_leaves_the_model_as_it_was(memory, monkeypatch):
    from liftcore.training import runner

    monkeypatch.setattr(
        runner, "batch_loss", lambda *a: torch.tensor(float("nan"), requires_grad=True)
    )
    with pytest.raises(LiftError, match="no longer a number"):
        liftcore.absorb(memory.model, memory.tokenizer, TEXT, config=CONFIG, progress=False)
    assert memory.model._liftcore_adapter is memory.adapter


def test_nothing_of_an_older_memory_stays(memory, tmp_path):
    folder = memory.save(tmp_path / "m", merge=True)
    memory.save(folder, force=True, with_document=False)
    names = {f.name for f in folder.iterdir()}
    assert "document.txt" not in names and "merged" not in names


def test_a_changed_document_or_scaling_is_refused(memory, tmp_path):
    given = (memory.model, memory.tokenizer)
    folder = memory.save(tmp_path / "m")
    settings = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**settings, "lora_alpha": 99}))
    with pytest.raises(LiftError, match="lora_alpha"):
        liftcore.load_memory(folder, given)
    folder = memory.save(tmp_path / "n")
    (folder / "document.txt").write_text(TEXT + "!")
    with pytest.raises(LiftError, match="hash"):
        liftcore.load_memory(folder, given)


def test_segments_longer_than_the_window_are_refused(memory):
    with pytest.raises(UsageError, match="window"):
        liftcore.absorb(
            memory.model, memory.tokenizer, TEXT * 40, config=CONFIG.replace(segment_length=300)
        )


def test_peft_reproduces_an_answer_without_liftcore(memory, tiny_folder, tmp_path):
    """A script that never imports liftcore gives the same continuation."""
    folder = memory.save(tmp_path / "m")
    script = f"""
import sys
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer
tokenizer = AutoTokenizer.from_pretrained({str(tiny_folder)!r})
model = AutoModelForCausalLM.from_pretrained({str(tiny_folder)!r})
model = PeftModel.from_pretrained(model, {str(folder)!r}).eval()
ids = tokenizer("Marta Quellin", return_tensors="pt")
out = model.generate(**ids, max_new_tokens=12, do_sample=False)
print(tokenizer.decode(out[0, ids.input_ids.shape[1]:], skip_special_tokens=True))
assert "liftcore" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.rstrip("\n") == memory.complete("Marta Quellin", max_new_tokens=12)


@pytest.mark.parametrize("start", ["\ufeff", "\ufeff\ufeff", ""])
def test_a_memory_reads_back_the_text_that_it_hashed(tiny_folder, tmp_path, start):
    model, tokenizer = liftcore.load(tiny_folder, device="cpu", dtype=torch.float32)
    memory = liftcore.absorb(model, tokenizer, start + TEXT, config=CONFIG, progress=False)
    folder = memory.save(tmp_path / "m")
    again = liftcore.load_memory(folder, (model, tokenizer))
    assert again.text == memory.text == TEXT and again.sha256 == memory.sha256


@pytest.mark.parametrize("caller", ["gradients off", "another default dtype"])
def test_the_modes_of_the_caller_change_nothing(tiny_folder, memory, caller):
    model, tokenizer = liftcore.load(tiny_folder, device="cpu", dtype=torch.float32)
    off, dtype = caller == "gradients off", torch.get_default_dtype()
    try:
        torch.set_grad_enabled(not off)
        torch.set_default_dtype(dtype if off else torch.bfloat16)
        made = liftcore.absorb(model, tokenizer, TEXT, title="Bees", config=CONFIG, progress=False)
        assert torch.is_grad_enabled() is not off
    finally:
        torch.set_grad_enabled(True)
        torch.set_default_dtype(dtype)
    assert torch.equal(made.adapter.values, memory.adapter.values)
