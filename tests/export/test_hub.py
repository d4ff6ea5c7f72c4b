"""A memory on the Hub: what would be uploaded, the card, and the way back."""

import json

import huggingface_hub
import pytest

import liftcore
from liftcore import embedded
from liftcore.cli.main import main
from liftcore.errors import LiftError, UsageError
from liftcore.export import hub
from liftcore.export.saved import read_saved


@pytest.fixture
def uploads(monkeypatch):
    """What is sent to the Hub: [(repository, private, {name: content})]."""
    sent = []

    class Api:
        def create_repo(self, repo, *, private, exist_ok):
            sent.append([repo, private])

        def upload_folder(self, *, repo_id, folder_path, commit_message):
            from pathlib import Path

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
    assert main([*args, "--document", "--public"]) == 0
    assert uploads[1][1] is False
    assert uploads[1][2]["document.txt"] == (memory_folder / "document.txt").read_bytes()


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


def test_a_memory_is_loaded_by_its_name(saved_memory, monkeypatch, tmp_path):
    """As the cache of the Hub keeps it: links to files elsewhere."""
    snapshot = tmp_path / "snapshot"
    snapshot.mkdir()
    asked = []

    def download(name, *, allow_patterns):
        asked.append((name, allow_patterns))
        for file in saved_memory.iterdir():
            (snapshot / file.name).symlink_to(file)
        return str(snapshot)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    monkeypatch.chdir(tmp_path)
    memory = liftcore.load_memory("someone/bees", device="cpu")
    assert memory.text is not None and memory.complete("Marta", max_new_tokens=2)
    assert asked[0][0] == "someone/bees"
    assert not any(p.endswith((".py", ".bin", ".pt")) or p == "*" for p in asked[0][1])


def test_a_name_that_the_hub_does_not_know(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(LiftError, match="someone/bees is neither a folder") as caught:
        liftcore.load_memory("someone/bees")
    assert "\n" not in str(caught.value)
    (tmp_path / "out").mkdir()
    with pytest.raises(LiftError, match=r"liftcore\.json is missing"):
        liftcore.load_memory("out/bees")
