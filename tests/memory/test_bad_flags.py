"""Settings and words of a command line that are odd or wrong: they work, or one line says why."""

import json

import numpy as np
import pytest
from bees import TEXT

import liftcore
from liftcore.cli.main import main
from liftcore.config import LiftConfig
from liftcore.errors import UsageError
from liftcore.training.length import for_length

FAST = ["--segment-length", "16", "--epochs", "1", "--rank", "4", "--device", "cpu"]


def test_numpys_numbers_are_numbers():
    config = LiftConfig(
        segment_length=np.int64(32),
        epochs=np.uint8(3),
        tokens_per_step=np.int32(64),
        learning_rate=np.float32(0.5),
        beta1=np.float64(0.5),
        alpha=np.int16(8),
        qa_first=np.bool_(True),
        objectives=np.array(["segments", "qa"]),
        mix=np.array([1, 0.25], dtype=np.float32),
    )
    plain = LiftConfig(
        segment_length=32, epochs=3, tokens_per_step=64, learning_rate=0.5, beta1=0.5, alpha=8,
        qa_first=True, objectives=("segments", "qa"), mix=(1.0, 0.25),
    )  # fmt: skip
    assert config == plain and repr(config) == repr(plain)
    json.dumps(vars(config))


@pytest.mark.parametrize(
    "wrong",
    [
        {"learning_rate": "1e-3"},
        {"beta1": "0.9"},
        {"beta2": None},
        {"epochs": True},
        {"seed": np.bool_(True)},
        {"epochs": 3.0},
        {"rank": "4"},
        {"rank": 10**30},
        {"rank": 10**6},
        {"epochs": 10**18},
        {"batch_size": 10**30},
        {"segment_length": 10**30},
        {"recite_context": 10**30},
        {"segment_epochs": "0"},
        {"tokens_per_step": 2.5},
        {"stride": True, "schedule": "overlap"},
        {"alpha": 1e300},
        {"alpha": 10**400},
        {"alpha": True},
        {"eps": float("inf")},
        {"max_grad_norm": float("nan")},
        {"warmup": [0.1]},
        {"mix": ("1",)},
        {"mix": (True,)},
        {"mix": 1.0},
        {"qa_first": 1},
        {"objectives": "segments"},
    ],
)
def test_settings_that_are_no_numbers_are_named(wrong):
    with pytest.raises(UsageError) as refused:
        LiftConfig(**wrong)
    assert "\n" not in str(refused.value)
    assert any(name in str(refused.value) for name in wrong)


WRONG = ["--rank", "1" + "0" * 30], ["--alpha", "1e300"], ["--merge", "--base-dtype", "fp8"]


@pytest.mark.parametrize("option", WRONG)
def test_settings_that_cannot_be_are_one_line(tiny_folder, corpus, capsys, option):
    words = ["absorb", str(corpus / "bees.txt"), "--model", str(tiny_folder), *option]
    assert main(words) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_a_default_is_what_the_command_line_takes(loaded, corpus, tmp_path):
    """understand for a chat model, memorize for another; absorb and sft, with a start and
    without."""
    import copy

    from liftcore import prepare
    from liftcore import sft as starting

    model, chat = loaded
    plain = copy.deepcopy(chat)
    plain.chat_template = None
    taken = []

    class Enough(Exception):
        pass

    class Stop:
        @staticmethod
        def of(model, config):
            taken.append((config.rank, config.lora_alpha, config.layers))
            raise Enough

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(prepare, "Adapter", Stop)
        patched.setattr(starting, "Adapter", Stop)
        for tokenizer in (chat, plain):
            with pytest.raises(Enough):
                liftcore.absorb(model, tokenizer, TEXT, progress=False)
            with pytest.raises(Enough):
                starting.sft(model, tokenizer, corpus, progress=False)
    understand = LiftConfig.preset("understand")
    absorbed, started = (understand.rank, understand.lora_alpha, 0.5), (16, 32.0, None)
    assert taken == 2 * [absorbed, started]

    config = LiftConfig(segment_length=16, epochs=1, rank=3, alpha=5)
    started = liftcore.absorb(model, chat, TEXT, config=config, progress=False)
    folder = started.save(tmp_path / "start")
    started.adapter.remove()
    memory = liftcore.absorb(model, chat, TEXT, init=folder, progress=False)
    memory.adapter.remove()
    started = dict(
        **dict(rank=3, alpha=5, layers=None, exclude_modules=()),
        **dict(train_a=True, adapter_init="random"),
    )
    expected = LiftConfig.preset("understand", **started)
    assert memory.config == for_length(expected, memory.length)


def test_the_command_line_loads_one_tokenizer(tiny_folder, corpus, tmp_path, monkeypatch):
    import transformers

    real, seen = transformers.AutoTokenizer.from_pretrained, []

    def counted(*args, **options):
        seen.append(args)
        return real(*args, **options)

    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", counted)
    words = ["--model", str(tiny_folder), *FAST]
    assert main(["absorb", str(corpus / "bees.txt"), "--out", str(tmp_path / "a"), *words]) == 0
    assert len(seen) == 1


@pytest.mark.parametrize("option", ["--dtype=--", "--init=--"])
def test_two_dashes_are_no_value(capsys, option):
    """argparse makes a list of them."""
    with pytest.raises(SystemExit) as error:
        main(["absorb", "a.txt", option])
    assert error.value.code == 2 and "expected one argument" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "questions"),
    [
        (["--max-new-tokens", "2", "--", "-5?"], ["-5?"]),
        (["--", "-5?", "--json", "--"], ["-5?", "--json", "--"]),
        (["One?", "--complete", "--", "-5?"], ["One?", "-5?"]),
    ],
)
def test_questions_behind_two_dashes(memory_folder, monkeypatch, capsys, words, questions):
    from liftcore.memory import Memory

    asked = []
    for name in ("ask", "complete"):
        monkeypatch.setattr(Memory, name, lambda self, text, **_: asked.append(text) or "")
    assert main(["ask", str(memory_folder), "--device", "cpu", *words]) == 0
    assert asked == questions


def test_a_file_behind_two_dashes(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["report", "--", "-memory"]) == 1
    assert "-memory holds no liftcore adapter" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("what", "tokens"), [("10,000", 10_000), ("10000", 10_000), ("1_000_000", 1_000_000)]
)
def test_numbers_of_tokens(what, tokens):
    from liftcore.cli.estimate import count_of

    assert count_of(what) == tokens
    for name in ("10,00.txt", "1,0", "10.5", "ten"):
        assert count_of(name) is None


@pytest.mark.parametrize("what", ["1", "0", "9" * 5000, "9,999,999,999,999"])
def test_numbers_that_no_document_has(capsys, what):
    assert main(["estimate", what]) == 2
    assert capsys.readouterr().err.count("\n") == 1
