"""Files that are odd or wrong: they are read, or one line says what to do."""

import hashlib
import json

import pytest
import torch
from bees import TEXT
from safetensors import safe_open
from safetensors.torch import save_file
from tiny import tiny_model

import liftcore
from liftcore.cli.main import main
from liftcore.config import LiftConfig
from liftcore.errors import LiftError
from liftcore.model import known_head
from liftcore.questions.pairs import Pair, read_pairs

PAIR = {"question": "Who keeps bees?", "answer": "Marta"}
OTHER = {"question": "Where?", "answer": "By the river"}


@pytest.mark.parametrize(
    "text",
    [
        json.dumps([PAIR, OTHER]),
        "\ufeff" + json.dumps([PAIR, OTHER], indent=2) + "\n\n",
        "\ufeff" + json.dumps(PAIR) + "\r\n\ufeff" + json.dumps(OTHER),
        json.dumps([list(PAIR.values()), list(OTHER.values())]),
        "\n" + json.dumps(PAIR) + "\n\n  \n" + json.dumps(OTHER) + "\n",
    ],
)
def test_questions_in_every_layout(tmp_path, text):
    file = tmp_path / "q.json"
    file.write_bytes(text.encode())
    assert read_pairs(file) == [Pair(**PAIR), Pair(**OTHER)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (json.dumps([PAIR, {"question": "?"}]), "pair 2"),
        (json.dumps([PAIR, 3]), "pair 2"),
        ("[]", "line 1"),
        ("[" * 100_000, "line 1"),
        ("[1, 2", "line 1"),
        ("3", "line 1"),
        ("\ufeff", "no question"),
    ],
)
def test_questions_that_are_none_are_named(tmp_path, text, expected):
    file = tmp_path / "q.json"
    file.write_bytes(text.encode())
    with pytest.raises(LiftError, match=expected):
        read_pairs(file)


def test_json_with_a_byte_order_mark(memory_folder, capsys):
    for name in ("liftcore.json", "adapter_config.json"):
        (memory_folder / name).write_bytes(b"\xef\xbb\xbf" + (memory_folder / name).read_bytes())
    liftcore.load_memory(memory_folder)
    assert main(["report", str(memory_folder)]) == 0


@pytest.mark.parametrize("content", [b"\xff\xfe", b"[" * 100_000, b"[]", b"", b"\x00"])
def test_json_that_is_none_is_one_line(memory_folder, capsys, content):
    (memory_folder / "liftcore.json").write_bytes(content)
    for verb in ("report", "ask"):
        assert main([verb, str(memory_folder)]) == 1
        err = capsys.readouterr().err
        assert "damaged" in err and err.count("\n") == 1


def test_a_document_that_is_no_text_is_one_line(memory_folder):
    content = b"\xff\xfe is no UTF-8"
    (memory_folder / "document.txt").write_bytes(content)
    info = json.loads((memory_folder / "liftcore.json").read_text())
    info["document"]["sha256"] = hashlib.sha256(content).hexdigest()
    (memory_folder / "liftcore.json").write_text(json.dumps(info))
    with pytest.raises(LiftError, match="not UTF-8 text"):
        liftcore.load_memory(memory_folder)


@pytest.mark.parametrize("name", ["logit_scale", "logits_scaling"])
def test_a_scale_that_is_no_number_is_one_line(name):
    model = tiny_model()
    setattr(model.config, name, "\x1b[31m")
    with pytest.raises(LiftError, match="is no number"):
        known_head(model)


def test_a_corpus_names_what_it_cannot_take(loaded, corpus):
    from liftcore import sft as starting

    config = LiftConfig(segment_length=16, epochs=1, rank=4, objectives=("segments", "qa"))
    (corpus / "B.TXT").write_text("The wasps of Orle nest under the roof of the mill.")
    (corpus / "B.JSONL").write_text(json.dumps({"question": "Where?", "answer": "the mill"}))
    (corpus / "alone.jsonl").write_text(json.dumps(PAIR))
    (corpus / "notes.rtf").write_text("x")
    with pytest.warns(UserWarning, match=r"alone\.jsonl, notes\.rtf"):
        start = starting.sft(*loaded, corpus, config=config, progress=False)
    assert (start.documents, start.pairs) == (4, 3)
    for content in ("", "  \n", "a"):
        (corpus / "notes.txt").write_text(content)
        with pytest.warns(UserWarning), pytest.raises(LiftError, match=r"notes\.txt"):
            starting.sft(*loaded, corpus, config=config, progress=False)


def test_a_title_in_another_encoding_reaches_the_report(loaded, tmp_path):
    """Half of a character, as a command line in another encoding gives it."""
    config = LiftConfig(segment_length=16, epochs=1, rank=4)
    memory = liftcore.absorb(*loaded, TEXT, title="Bees\udce4", config=config, progress=False)
    folder = memory.save(tmp_path / "m")
    assert main(["report", str(folder), "--png", str(tmp_path / "a.png")]) == 0
    info = json.loads((folder / "liftcore.json").read_text())
    info["document"]["title"] = "Bees\udce4"
    (folder / "liftcore.json").write_text(json.dumps(info))
    assert main(["report", str(folder), "--png", str(tmp_path / "b.png")]) == 0
    assert (tmp_path / "b.png").stat().st_size > 1000


def test_a_chat_template_that_cannot_be_used_is_said_before_training(loaded, monkeypatch):
    model, tokenizer = loaded
    monkeypatch.setattr(tokenizer, "chat_template", "{% for message in messages %}{{ oops(")
    config = LiftConfig(segment_length=16, epochs=1, rank=4)
    with pytest.warns(UserWarning, match="answer no question"):
        memory = liftcore.absorb(model, tokenizer, TEXT, config=config, progress=False)
    assert memory.complete("Marta", max_new_tokens=3)


@pytest.fixture(params=[("segments",), ("segments", "qa")])
def stopped(loaded, tmp_path, request):
    """(what absorb is called with, the state of a run that was interrupted, its settings)"""
    from interrupts import stop_after

    from liftcore import lift

    config = LiftConfig(
        segment_length=16, epochs=3, rank=4, learning_rate=1e-3, objectives=request.param
    )
    given = dict(config=config, resume=tmp_path / "m", progress=False)
    if "qa" in request.param:
        given["qa"] = [("Who?", "Marta")]
    with pytest.MonkeyPatch.context() as patched:
        real = lift.train
        patched.setattr(lift, "train", lambda *a, **o: real(*a, **{**o, "on_step": stop_after(2)}))
        with pytest.raises(KeyboardInterrupt):
            liftcore.absorb(*loaded, TEXT, **given)
    return given, tmp_path / "m" / "training_state.safetensors"


def test_a_run_with_other_settings_names_them(loaded, stopped):
    given, _ = stopped
    other = given["config"].replace(epochs=5, learning_rate=0.5)
    with pytest.raises(LiftError) as refused:
        liftcore.absorb(*loaded, TEXT, **{**given, "config": other})
    assert "epochs was 3, now 5" in str(refused.value)
    assert "learning_rate was 0.001, now 0.5" in str(refused.value)
    assert "rank" not in str(refused.value)


def test_a_damaged_state_is_one_line(loaded, stopped, rng):
    given, file = stopped
    with safe_open(file, "pt") as opened:
        meta = opened.metadata()
        tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118

    def damaged(name, how):
        whole = tensors[name]
        if how == "missing":
            return None
        if how == "doubled" and whole.numel() and whole.ndim and name != "source_arrivals":
            return torch.cat([whole, whole])
        if how in ("nan", "inf", "-1"):
            return torch.full_like(whole, float(how))
        return whole.to(torch.int16) if how == "another kind" else torch.zeros(2, 3, 4)

    cases = [(name, rng.choice(["doubled", "another kind", "zeros"])) for name in tensors]
    cases += [("master", "nan"), ("exp_avg", "inf"), ("exp_avg_sq", "nan"), ("exp_avg_sq", "-1")]
    for name, how in [("master", "missing"), ("more", "added"), *cases]:
        other = torch.zeros(1) if how == "added" else damaged(name, how)
        state = {k: v for k, v in {**tensors, name: other}.items() if v is not None}
        save_file(state, file, metadata=meta)
        with pytest.raises(LiftError, match="damaged"):
            liftcore.absorb(*loaded, TEXT, **given)
            print(name, how)
    save_file(tensors, file, metadata=meta)
    assert liftcore.absorb(*loaded, TEXT, **given).training.steps > 2


@pytest.mark.parametrize(
    "changes",
    [
        {"micro_batch": 0},
        {"micro_batch": -1},
        {"micro_batch": "1"},
        {"micro_batch": True},
        {"recompute": -1},
        {"step": -1},
        {"step": None},
        {"seconds": "long"},
        {"seconds": float("nan")},
        {"more": 1},
        None,
        [],
    ],
)
def test_a_position_that_is_none_is_damaged(tmp_path, changes):
    from liftcore.training import checkpoint

    file = tmp_path / "state"
    at = {"step": 1, "seconds": 0.5, "micro_batch": 1, "recompute": 0}
    at = {**at, **changes} if isinstance(changes, dict) else changes
    meta = {"position": json.dumps(at), "run": "{}", "format": checkpoint.FORMAT}
    save_file({"master": torch.zeros(1)}, file, metadata=meta)
    with pytest.raises(LiftError, match="damaged"):
        checkpoint.read(file, {})
    save_file({"master": torch.zeros(1)}, file, metadata={**meta, "run": "[]"})
    with pytest.raises(LiftError, match="damaged"):
        checkpoint.read(file, {"settings": "{}"})
