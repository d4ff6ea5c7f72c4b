"""A memory on the Hub: what would be uploaded, the card, and the way back."""

import json
import types

import huggingface_hub
import pytest

import liftcore
from liftcore import embedded
from liftcore.cli.main import main
from liftcore.errors import LiftError, UsageError
from liftcore.export import hub
from liftcore.export.saved import read_saved


class Sent(list):
    def __init__(self):
        self.there, self.left = {}, []


@pytest.fixture
def hub_memory(saved_memory, monkeypatch, tmp_path):
    """A memory on the Hub that is called someone/bees, kept as the cache of the Hub does it: links
    to files elsewhere. Gives what was asked for."""
    snapshot = tmp_path / "snapshot"
    snapshot.mkdir()
    asked = []

    def download(name, *, allow_patterns):
        asked.append((name, allow_patterns))
        for file in saved_memory.iterdir():
            if not (snapshot / file.name).is_symlink():
                (snapshot / file.name).symlink_to(file)
        return str(snapshot)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    monkeypatch.chdir(tmp_path)
    return asked


@pytest.fixture
def uploads(monkeypatch):
    """What is sent to the Hub: [(repository, private, {name: content})]; repositories that are
    there already keep their setting: `uploads.there`."""
    sent = Sent()

    class Api:
        def create_repo(self, repo, *, private, exist_ok):
            sent.append([repo, private])
            sent.there.setdefault(repo, private)

        def repo_info(self, repo):
            return types.SimpleNamespace(private=sent.there[repo])

        def upload_folder(self, *, repo_id, folder_path, commit_message, delete_patterns):
            from pathlib import Path

            sent.left.append(delete_patterns)
            files = {f.name: f.read_bytes() for f in Path(folder_path).iterdir()}
            sent[-1].append(files)
            return f"https://hub.invalid/{repo_id}"

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    return sent


def test_the_text_stays_at_home_unless_it_is_asked_for(memory_folder, uploads, capsys):
    args = ["export", str(memory_folder), "--hub", "me/bees", "--base-model", "org/tiny"]
    assert main(args) == 0
    assert "https://hub.invalid/me/bees" in capsys.readouterr().out
    ((repo, private, files),) = uploads
    assert (repo, private) == ("me/bees", True)
    assert {"adapter_config.json", "adapter_model.safetensors", "README.md"} < files.keys()
    assert "document.txt" not in files
    assert json.loads(files["adapter_config.json"])["base_model_name_or_path"] == "org/tiny"
    info = json.loads(files["liftcore.json"])
    assert info["base_model"] == "org/tiny" and "document.txt" not in info["files"]
    assert str(memory_folder.parent).encode() not in b"".join(files.values())
    # Nothing of an earlier memory's document stays beside it.
    assert {"document.txt", "trained_questions.jsonl"} <= {*uploads.left[0]}
    uploads.there.clear()
    assert main([*args, "--document", "--public"]) == 0
    assert uploads[1][1] is False
    assert uploads[1][2]["document.txt"] == (memory_folder / "document.txt").read_bytes()


@pytest.mark.parametrize("more", [[], ["--document"]])
def test_a_public_repository_gets_nothing_that_is_private(memory_folder, uploads, capsys, more):
    args = ["export", str(memory_folder), "--hub", "me/bees", "--base-model", "org/tiny", *more]
    uploads.there["me/bees"] = False
    assert main(args) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "everybody can read me/bees" in line and "--public" in line and "hf auth" not in line
    assert uploads == [["me/bees", True]], "nothing was uploaded"
    assert main([*args, "--public"]) == 0
    assert len(uploads[1]) == 3 and capsys.readouterr().err == ""
    uploads.there["me/bees"] = True
    assert main([*args, "--public"]) == 0
    assert "me/bees stays private" in capsys.readouterr().err


def test_a_dry_run_writes_nothing(saved_memory, uploads, tmp_path, capsys):
    pytest.importorskip("gguf")
    names = {"gguf": "a.gguf", "mlx": "mlx", "merged": "merged"}
    files = {name: tmp_path / file for name, file in names.items()}
    words = [word for name, file in files.items() for word in (f"--{name}", str(file))]
    before = sorted(tmp_path.rglob("*"))
    args = ["export", str(saved_memory), *words, "--dry-run"]
    assert main([*args, "--hub", "me/bees", "--base-model", "org/tiny"]) == 0
    said = capsys.readouterr().out
    assert sorted(tmp_path.rglob("*")) == before and uploads == []
    assert all(f"would write {file}" in said for file in files.values())
    # What would be refused is.
    files["gguf"].write_text("mine")
    assert main(args) == 1
    assert "a.gguf is there already" in capsys.readouterr().err


def test_a_dry_run_sends_nothing(memory_folder, uploads, capsys):
    args = ["export", str(memory_folder), "--hub", "me/bees", "--base-model", "org/tiny"]
    assert main([*args, "--dry-run", "--json"]) == 0
    said = capsys.readouterr().out
    assert uploads == [] and "library_name: peft" in said
    assert "adapter_model.safetensors" in json.loads(said.splitlines()[-1])["files"]


def test_the_card(memory_folder, tmp_path):
    info = json.loads((memory_folder / "liftcore.json").read_text())
    info["base_model"] = embedded.NAME
    info["document"]["title"] = "Bees *and* [goats](http://x)"
    (memory_folder / "liftcore.json").write_text(json.dumps(info))
    (memory_folder / "recall.png").write_bytes(b"PNG")
    saved = read_saved(memory_folder)
    new = tmp_path / "new"
    new.mkdir()
    names = hub.stage(saved, hub.upload_of(saved, "me/bees"), new)
    assert sorted(names) == sorted(f.name for f in new.iterdir())
    card = huggingface_hub.ModelCard.load(new / "README.md")
    assert card.data.library_name == "peft"
    assert card.data.base_model == "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert {"liftcore", "lora"} <= set(card.data.tags)
    assert "![recall along the document](recall.png)" in card.text
    assert f"{saved.info.report.recall:.1%}" in card.text and "| rank | 4 |" in card.text
    assert "[goats](http" not in card.text and "\\[goats\\]" in card.text
    # The embedded model is loaded by its own name again.
    assert json.loads((new / "liftcore.json").read_text())["base_model"] == embedded.NAME


def test_names_that_the_hub_does_not_have(memory_folder):
    saved = read_saved(memory_folder)
    with pytest.raises(UsageError, match="USER/NAME"):
        hub.upload_of(saved, "bees")
    with pytest.raises(UsageError, match="--base-model"):
        hub.upload_of(saved, "me/bees")
    (memory_folder / "document.txt").unlink()
    with pytest.raises(LiftError, match=r"document\.txt"):
        hub.upload_of(saved, "me/bees", base="org/tiny", document=True)


def test_a_refusal_is_one_line(memory_folder, monkeypatch, capsys):
    def refuse(*args, **options):
        raise RuntimeError("403 Forbidden\nyou may not")

    monkeypatch.setattr(huggingface_hub.HfApi, "create_repo", refuse)
    args = ["export", str(memory_folder), "--hub", "me/bees", "--base-model", "org/tiny"]
    assert main(args) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "me/bees" in line and "403 Forbidden you may not" in line


def test_a_memory_is_loaded_by_its_name(hub_memory):
    memory = liftcore.load_memory("someone/bees", device="cpu")
    assert memory.text is not None and memory.complete("Marta", max_new_tokens=2)
    assert hub_memory[0][0] == "someone/bees"
    assert not any(p.endswith((".py", ".bin", ".pt")) or p == "*" for p in hub_memory[0][1])


def test_every_verb_takes_its_name(hub_memory, monkeypatch, tmp_path, capsys):
    """All that have a memory for an argument."""
    from liftcore.cli.main import _parser
    from liftcore.export import runtimes

    known = []

    def no_runtime(runtime, memory, folder, **options):
        known.append((folder.name, options["name"]))
        raise LiftError("far enough")

    monkeypatch.setattr(runtimes, "opened", no_runtime)
    words = {
        "ask": ["Who?", "--max-new-tokens", "1", "--device", "cpu"],
        "report": ["--html", str(tmp_path / "page.html"), "--questions", "0", "--device", "cpu"],
        "export": ["--mlx", str(tmp_path / "mlx")],
        "verify": ["--device", "cpu"],
    }
    (verbs,) = (each.choices for each in _parser()._actions if isinstance(each.choices, dict))
    takes = {name for name, verb in verbs.items()
             if any(action.dest == "memory" for action in verb._actions)}  # fmt: skip
    assert takes == words.keys()
    for name, more in words.items():
        code = main([name, "someone/bees", *more])
        assert code == (name == "verify"), capsys.readouterr().err
    assert known == [("snapshot", "bees")] and (tmp_path / "page.html").stat().st_size > 1000
    assert {name for name, _ in hub_memory} == {"someone/bees"}


def test_a_name_that_the_hub_does_not_know(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(LiftError, match="someone/bees is neither a folder") as caught:
        liftcore.load_memory("someone/bees")
    assert "\n" not in str(caught.value)
    (tmp_path / "out").mkdir()
    with pytest.raises(LiftError, match=r"liftcore\.json is missing"):
        liftcore.load_memory("out/bees")
