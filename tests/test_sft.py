"""A starting adapter from many documents, and absorb with objectives, from Python and the shell."""

import json
from collections import Counter

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from streams import Stream

import liftcore
from liftcore import adapter as adapters
from liftcore import sft as starting
from liftcore.cli import main
from liftcore.config import LiftConfig
from liftcore.errors import LiftError, UsageError
from liftcore.objectives.pairs import GivenPairs, Pair

TEXT = "Marta Quellin keeps bees on the roof of the old mill. Every June she gives the honey away."
CONFIG = LiftConfig(
    segment_length=16, epochs=2, rank=4, learning_rate=5e-3, objectives=("segments", "qa")
)
PAIRS = [("Who keeps bees?", "Marta Quellin"), ("When is the honey given away?", "In June")]
FAST = ["--segment-length", "16", "--epochs", "1", "--rank", "4", "--device", "cpu"]


@pytest.fixture
def loaded(tiny_folder):
    return liftcore.load(tiny_folder, device="cpu", dtype=torch.float32)


@pytest.fixture
def corpus(tmp_path):
    folder = tmp_path / "corpus"
    folder.mkdir()
    for i, word in enumerate(("bees", "goats", "geese")):
        (folder / f"{word}.txt").write_text(TEXT.replace("bees", word))
        if i < 2:
            pair = {"question": f"Who keeps {word}?", "answer": "Marta Quellin"}
            (folder / f"{word}.jsonl").write_text(json.dumps(pair) + "\n")
    return folder


@pytest.fixture
def questions(tmp_path):
    file = tmp_path / "q.jsonl"
    lines = [json.dumps({"question": q, "answer": a}) for q, a in PAIRS]
    file.write_text("\n".join(lines) + "\n")
    return file


def test_sft_weighs_all_documents_alike_and_absorb_begins_from_it(
    loaded, corpus, tmp_path, monkeypatch
):
    model, tokenizer = loaded
    seen, real = [], starting.SampleSteps

    def spy(model, adapter, mix, config):
        seen.append(mix)
        return real(model, adapter, mix, config)

    monkeypatch.setattr(starting, "SampleSteps", spy)
    config = CONFIG.replace(mix=(1.0, 0.5))
    start = starting.sft(model, tokenizer, corpus, config=config, progress=False)
    assert (start.documents, start.pairs) == (3, 2) and np.isfinite(start.training.loss)
    names = [o.name for o in seen[0].objectives]
    assert names == ["segments", "qa"] * 3 and seen[0].weights == [1.0, 0.5] * 3
    assert getattr(model, "_liftcore_adapter", None) is None, "the model is left as it was"
    tokens = sum(len(s) for o in seen[0].objectives for s in o.samples(0))
    assert start.training.token_passes == 2 * tokens, "every sample once an epoch"

    folder = start.save(tmp_path / "start")
    assert json.loads((folder / starting.INFO).read_text())["documents"] == 3
    weights = load_file(folder / adapters.WEIGHTS)
    assert any(w.abs().max() > 0 for name, w in weights.items() if "lora_B" in name)
    tiny_step = CONFIG.replace(objectives=("segments",), learning_rate=1e-12, epochs=1)
    memory = liftcore.absorb(model, tokenizer, TEXT, config=tiny_step, init=folder, progress=False)
    assert torch.allclose(memory.adapter.values, start.adapter.values, atol=1e-8)


def test_an_adapter_that_does_not_fit_is_refused(loaded, corpus, tmp_path):
    model, tokenizer = loaded
    one = CONFIG.replace(epochs=1)
    folder = starting.sft(model, tokenizer, corpus, config=one, progress=False).save(tmp_path / "s")

    def absorb(**changes):
        config = one.replace(objectives=("segments",), **changes)
        liftcore.absorb(model, tokenizer, TEXT, config=config, init=folder, progress=False)

    with pytest.raises(UsageError, match="rank 4 and alpha 8"):
        absorb(rank=8)
    with pytest.raises(UsageError, match="alpha"):
        absorb(alpha=3.0)
    name = model.config.name_or_path
    model.config.name_or_path = "somebody/else"
    try:
        with pytest.raises(LiftError, match="belongs to"):
            absorb()
    finally:
        model.config.name_or_path = name
    (folder / adapters.WEIGHTS).unlink()
    with pytest.raises(LiftError, match="no adapter_model"):
        absorb()
    assert getattr(model, "_liftcore_adapter", None) is None


def test_a_corpus_without_documents_or_questions_is_refused(loaded, corpus, tmp_path):
    with pytest.raises(LiftError, match="holds no"):
        starting.sft(*loaded, tmp_path / "nothing", progress=False)
    for file in corpus.glob("*.jsonl"):
        file.unlink()
    with pytest.raises(LiftError, match="no questions"):
        starting.sft(*loaded, corpus, config=CONFIG, progress=False)
    with pytest.raises(UsageError, match="sft takes"):
        starting.sft(*loaded, corpus, config=CONFIG.replace(objectives=("distill",)))
    with pytest.raises(UsageError, match="window"):
        starting.sft(*loaded, corpus, config=CONFIG.replace(segment_length=300))


def test_questions_join_the_objectives(loaded, tmp_path):
    """A run with questions, saved and loaded again."""
    config = CONFIG.replace(objectives=("segments", "recitation"), mix=(1.0, 0.5), epochs=1)
    memory = liftcore.absorb(*loaded, TEXT, title="Bees", config=config, qa=PAIRS, progress=False)
    assert memory.config.objectives == ("segments", "recitation", "qa")
    assert memory.config.mix == (1.0, 0.5, 1.0)
    again = liftcore.load_memory(memory.save(tmp_path / "m"), loaded)
    assert again.config == memory.config and again.training == memory.training
    plain = liftcore.absorb(*loaded, TEXT, config=CONFIG, qa=PAIRS, progress=False)
    assert plain.config == CONFIG


def test_a_source_is_closed_whatever_happens(loaded):
    class Source(GivenPairs):
        closed = False

        def close(self):
            Source.closed = True

    liftcore.absorb(*loaded, TEXT, config=CONFIG, qa=Source([Pair(*PAIRS[0])]), progress=False)
    assert Source.closed
    Source.closed = False

    class Fails(Source):
        def poll(self):
            raise LiftError("the source is broken")

    with pytest.raises(LiftError, match="broken"):
        liftcore.absorb(*loaded, TEXT, config=CONFIG, qa=Fails([]), progress=False)
    assert Source.closed and Stream([]).done


def run(capsys, *words):
    code = main(list(map(str, words)))
    return code, *capsys.readouterr()


def test_the_command_line_from_sft_to_absorb(tiny_folder, corpus, questions, tmp_path, capsys):
    start, out = tmp_path / "start", tmp_path / "memory"
    base = ["--model", tiny_folder, *FAST]
    code, said, err = run(capsys, "sft", corpus, "--out", start, *base, "--json")
    assert code == 0, err
    assert json.loads(said.splitlines()[-1])["documents"] == 3 and "3 documents" in said
    code, _, err = run(capsys, "sft", corpus, "--out", start, *base)
    assert code == 1 and "not empty" in err
    document = corpus / "bees.txt"
    code, said, err = run(
        capsys, "absorb", document, "--out", out, *base, "--init", start, "--qa", questions,
        "--objective", "segments,qa", "--mix", "1,0.5", "--json",
    )  # fmt: skip
    assert code == 0, err
    found = json.loads(said.splitlines()[-1])
    assert found["objectives"] == ["segments", "qa"]
    assert {"making_seconds", "hidden_seconds", "waited_seconds"} <= found.keys()
    info = json.loads((out / "liftcore.json").read_text())
    assert info["config"]["mix"] == [1.0, 0.5]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--objective", "segments,poetry"], "unknown objective"),
        (["--mix", "1,2"], "mix needs"),
        (["--mix", "-1"], "above 0"),
        (["--segment-epochs", "12"], "segment_epochs"),
        (["--preset", "paper-v4", "--mix", "1"], "mix needs"),
    ],
)
def test_wrong_settings_get_exit_code_2(tiny_folder, corpus, capsys, words, expected):
    # A value that begins with a minus needs the = form.
    words = [f"{words[0]}={words[1]}", *words[2:]]
    code, _, err = run(capsys, "absorb", corpus / "bees.txt", "--model", tiny_folder, *words)
    assert code == 2 and expected in err and err.count("\n") == 1


def test_a_bad_line_of_questions_is_named(tiny_folder, corpus, questions, capsys):
    questions.write_text(questions.read_text() + '{"question": "Why?"}\n')
    code, _, err = run(
        capsys, "absorb", corpus / "bees.txt", "--model", tiny_folder, "--qa", questions
    )
    assert code == 2 and "line 3" in err and err.count("\n") == 1


def test_questions_from_a_server_stream_into_the_run(
    tiny_folder, corpus, tmp_path, monkeypatch, capsys
):
    from stub_server import Stub, good, sentence_of

    from liftcore.objectives.server import ServerPairs

    monkeypatch.setenv("LIFTCORE_CACHE", str(tmp_path / "cache"))

    def behave(n, request, count):
        return (500, "no", {}) if "June" in sentence_of(request) else good(sentence_of(request))

    monkeypatch.setitem(ServerPairs.__init__.__kwdefaults__, "backoff", 0.01)
    base = [corpus / "bees.txt", "--model", tiny_folder, *FAST, "--json"]
    with Stub(behave) as stub:
        server = ["--qa-server", stub.url, "--qa-model", "m"]
        code, said, err = run(capsys, "absorb", *base, *server, "--out", tmp_path / "m")
        assert code == 0, err
    found = json.loads(said.splitlines()[-1])
    (made,) = found["questions"]
    assert (made["pairs"], made["windows"], made["failed"]) == (1, 2, 1)
    assert "1 questions from 1 of 2 windows" in said and "HTTP 500" in said
    assert found["objectives"] == ["segments", "qa"] and found["making_seconds"] > 0
    assert found["hidden_seconds"] + found["waited_seconds"] <= found["making_seconds"] + 1
    code, _, err = run(capsys, "absorb", *base, "--qa-server", "http://127.0.0.1:1/v1")
    assert code == 2 and "--qa-model" in err


class Study:
    """Self-study without a model."""

    seconds, rejected, made = 2.5, Counter(duplicate=1), 0

    def __init__(self, *args, **options):
        Study.made += 1

    def generate_all(self, on_batch):
        on_batch(1, 2)
        return [Pair(*PAIRS[0])]


def test_self_study_is_the_default_and_is_kept_for_a_run_that_goes_on(
    loaded, tmp_path, monkeypatch
):
    from test_training import stop_after

    from liftcore import lift

    monkeypatch.setattr(lift, "SelfStudy", Study)
    config, Study.made = CONFIG.replace(epochs=3), 0
    real, kept = lift.follow, tmp_path / "m"

    def interrupted(*args, **options):
        return real(*args, **{**options, "on_step": stop_after(2)})

    monkeypatch.setattr(lift, "follow", interrupted)
    with pytest.raises(KeyboardInterrupt):
        liftcore.absorb(*loaded, TEXT, config=config, resume=kept, progress=False)
    assert Study.made == 1 and (kept / "samples" / "questions.json").exists()
    monkeypatch.setattr(lift, "follow", real)
    monkeypatch.setattr(Study, "generate_all", None)
    memory = liftcore.absorb(*loaded, TEXT, config=config, resume=kept, progress=False)
    assert memory.training.questions == [
        {"pairs": 1, "failures": {}, "rejected": {"duplicate": 1}, "seconds": 2.5}
    ]
    assert memory.training.making == 2.5 and memory.training.hidden == 0
    memory.save(kept)
    assert not (kept / "samples").exists()
