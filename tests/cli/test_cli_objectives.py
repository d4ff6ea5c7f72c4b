"""The verbs that train, with their objectives and presets, from the shell and from Python."""

import json
import shutil
from collections import Counter

import own_rows
import pytest
from bees import PAIRS, TEXT

import liftcore
from liftcore.cli.main import main
from liftcore.config import LiftConfig
from liftcore.errors import LiftError
from liftcore.questions.pairs import GivenPairs, Pair

CONFIG = LiftConfig(
    segment_length=16, epochs=2, rank=4, learning_rate=5e-3, objectives=("segments", "qa")
)
FAST = ["--segment-length", "16", "--epochs", "1", "--rank", "4", "--device", "cpu"]


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
    printed = json.loads(said.splitlines()[-1])
    assert printed["objectives"] == ["segments", "qa"]
    assert {"making_seconds", "hidden_seconds", "waited_seconds"} <= printed.keys()
    info = json.loads((out / "liftcore.json").read_text())
    assert info["config"]["mix"] == [1.0, 0.5]


def test_absorb_takes_rank_and_alpha_from_the_adapter_that_it_begins_from(
    tiny_folder, corpus, tmp_path, capsys
):
    start, out = tmp_path / "start", tmp_path / "memory"
    base = ["--model", tiny_folder, "--segment-length", "16", "--device", "cpu"]
    words = ["--preset", "paper-v1", "--rank", "3", "--alpha", "5", "--json"]
    code, _, err = run(capsys, "sft", corpus, "--out", start, *base, *words)
    assert code == 0, err
    assert json.loads((start / "sft.json").read_text())["config"]["epochs"] == 5, "the preset's"
    document = corpus / "bees.txt"
    code, _, err = run(capsys, "absorb", document, "--out", out, *base, "--init", start)
    assert code == 0, err
    config = json.loads((out / "liftcore.json").read_text())["config"]
    assert (config["rank"], config["alpha"], config["mix"]) == (3, 5, [1.0, 4.0, 2.0])


def test_a_server_that_is_gone_is_named_when_nothing_else_was_to_be_learned(
    tiny_folder, corpus, tmp_path, monkeypatch, capsys
):
    from liftcore.questions.server import ServerPairs

    monkeypatch.setitem(ServerPairs.__init__.__kwdefaults__, "backoff", 0.01)
    monkeypatch.setenv("LIFTCORE_CACHE", str(tmp_path / "cache"))
    server = ["--qa-server", "http://127.0.0.1:1/v1", "--qa-model", "m", "--objective", "qa"]
    words = ["--model", tiny_folder, *FAST, *server, "--adapter-init", "random"]
    code, _, err = run(capsys, "absorb", corpus / "bees.txt", *words, "--out", tmp_path / "m")
    assert code == 1 and "nothing to learn" in err and "connection refused" in err


def test_questions_that_all_failed_their_check_are_the_reason_given(loaded):
    source = GivenPairs([])
    source.rejected["evidence not in the text"] += 3
    config = CONFIG.replace(objectives=("qa",))
    with pytest.raises(LiftError, match="evidence not in the text"):
        liftcore.absorb(*loaded, TEXT, config=config, qa=source, progress=False)


def test_a_run_goes_on_with_the_same_questions_and_title_only(loaded, tmp_path):
    from interrupts import stop_after

    from liftcore import lift

    kept, real = tmp_path / "m", lift.train
    given = dict(config=CONFIG.replace(epochs=4), resume=kept, progress=False)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(lift, "train", lambda *a, **o: real(*a, **{**o, "on_step": stop_after(2)}))
        with pytest.raises(KeyboardInterrupt):
            liftcore.absorb(*loaded, TEXT, title="Bees", qa=PAIRS, **given)
    with pytest.raises(LiftError, match="another questions"):
        liftcore.absorb(*loaded, TEXT, title="Bees", qa=PAIRS[:1], **given)
    with pytest.raises(LiftError, match="another title"):
        liftcore.absorb(*loaded, TEXT, title="Wasps", qa=PAIRS, **given)
    assert liftcore.absorb(*loaded, TEXT, title="Bees", qa=PAIRS, **given).training.steps > 2


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--objective", "segments,poetry"], "unknown objective"),
        (["--mix", "1,2"], "mix needs"),
        (["--mix", "-1", "--objective", "segments"], "above 0"),
        (["--qa-kinds", "quiz,poem"], "unknown kind"),
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

    from liftcore.questions.server import ServerPairs

    monkeypatch.setenv("LIFTCORE_CACHE", str(tmp_path / "cache"))

    def behave(n, request, count):
        return (500, "no", {}) if "June" in sentence_of(request) else good(sentence_of(request))

    monkeypatch.setitem(ServerPairs.__init__.__kwdefaults__, "backoff", 0.01)
    base = [corpus / "bees.txt", "--model", tiny_folder, *FAST, "--json"]
    base += ["--objective", "segments,qa", "--adapter-init", "random"]
    with Stub(behave) as stub:
        server = ["--qa-server", stub.url, "--qa-model", "m"]
        code, said, err = run(capsys, "absorb", *base, *server, "--out", tmp_path / "m")
        assert code == 0, err
    printed = json.loads(said.splitlines()[-1])
    (made,) = printed["questions"]
    assert (made["pairs"], made["windows"], made["failed"]) == (1, 2, 1)
    assert "1 questions from 1 of 2 windows" in said and "HTTP 500" in said
    assert printed["objectives"] == ["segments", "qa"] and printed["making_seconds"] > 0
    assert printed["hidden_seconds"] + printed["waited_seconds"] <= printed["making_seconds"] + 1
    code, _, err = run(capsys, "absorb", *base, "--qa-server", "http://127.0.0.1:1/v1")
    assert code == 2 and "--qa-model" in err


def test_a_chat_model_is_taught_to_answer_and_others_to_recite(
    tiny_folder, corpus, tmp_path, capsys
):
    def settings_of(name, *words):
        out = tmp_path / name
        code, _, err = run(
            capsys, "absorb", corpus / "bees.txt", "--model", model, *FAST, *words, "--out", out
        )
        assert code == 0, err
        return json.loads((out / "liftcore.json").read_text())["config"]

    model = tiny_folder
    chat = settings_of("chat")
    assert (chat["objectives"], chat["mix"]) == (["segments", "qa", "replay"], [1.0, 4.0, 2.0])
    assert settings_of("named", "--preset", "memorize")["objectives"] == ["segments"]
    assert settings_of("alone", "--objective", "segments")["adapter_init"] == "document"
    model = shutil.copytree(tiny_folder, tmp_path / "plain")
    (model / "chat_template.jinja").unlink()
    own_rows.keep(model)
    assert settings_of("plain-memory")["objectives"] == ["segments"]


def test_a_document_without_questions_is_learned_without(loaded):
    config = LiftConfig.preset("understand", segment_length=16, epochs=1, rank=4)
    with pytest.warns(UserWarning, match="no question"):
        memory = liftcore.absorb(*loaded, "a heron " * 20, config=config, progress=False)
    assert memory.training.questions[0]["pairs"] == 0
    with pytest.raises(LiftError, match="no question"):
        alone = config.replace(objectives=("qa",), mix=None)
        liftcore.absorb(*loaded, "a heron " * 20, config=alone, progress=False)


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
    from interrupts import stop_after

    from liftcore import lift, prepare

    monkeypatch.setattr(prepare, "SelfStudy", Study)
    config, Study.made = CONFIG.replace(epochs=3), 0
    real, kept = lift.train, tmp_path / "m"

    def interrupted(*args, **options):
        return real(*args, **{**options, "on_step": stop_after(2)})

    monkeypatch.setattr(lift, "train", interrupted)
    with pytest.raises(KeyboardInterrupt):
        liftcore.absorb(*loaded, TEXT, config=config, resume=kept, progress=False)
    assert Study.made == 1 and (kept / "samples" / "questions.json").exists()
    monkeypatch.setattr(lift, "train", real)
    monkeypatch.setattr(Study, "generate_all", None)
    memory = liftcore.absorb(*loaded, TEXT, config=config, resume=kept, progress=False)
    assert memory.training.questions == [
        {"pairs": 1, "failures": {}, "rejected": {"duplicate": 1}, "seconds": 2.5}
    ]
    assert memory.training.making == 2.5 and memory.training.hidden == 0
    memory.save(kept)
    assert not (kept / "samples").exists()
