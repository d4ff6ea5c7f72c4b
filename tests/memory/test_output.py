"""What a save replaces: nothing of the user's, and what is secondary never costs the adapter."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import warnings
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from saving import everything, fails, loaded, same

from liftcore import memory as memories
from liftcore.errors import LiftError
from liftcore.memory import check_output

pytestmark = pytest.mark.usefixtures("elsewhere")

USERS = ["samples/a.txt", "document.txt", "merged/model.safetensors", "recall.png", "sft.json"]
USERS += ["adapter_model.safetensors", "training_state.safetensors", "samples/questions.json"]


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize("name", USERS)
def test_the_users_own_files_stay(memory, tmp_path, name, force):
    """Saved beside them or refused: never replaced, never removed."""
    folder = tmp_path / "m"
    (folder / name).parent.mkdir(parents=True)
    (folder / name).write_text("mine")
    if name == "training_state.safetensors":
        save_file({"mine": torch.ones(3)}, folder / name)
    before = everything(folder)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for options in ({}, {"merge": True}, {"with_document": False}):
            try:
                check_output(folder, force=force)
                memory.save(folder, force=force, **options)
            except LiftError as error:
                assert Path(name).parts[0] in str(error) or not force
            assert everything(folder).items() >= before.items()


LIKE_OURS = [
    ".liftcore-commit/mine.txt",
    ".liftcore-new-draft/mine.txt",
    ".training_state.safetensors.bak",
    ".training_state.safetensors.d/mine.txt",
    "samples/.git/mine.txt",
    "samples/.mine",
    "liftcore.json",
]


@pytest.mark.parametrize("name", LIKE_OURS)
def test_a_name_alone_makes_no_file_ours(memory, tmp_path, name):
    """Names that begin like those of leftovers, and a description that is somebody else's."""
    folder = tmp_path / "m"
    (folder / name).parent.mkdir(parents=True)
    (folder / name).write_text('{"mine": 1}')
    if name.startswith("samples"):
        (folder / "samples" / ".liftcore").touch()
        (folder / "samples" / "questions.json").mkdir()
    with suppress(LiftError):
        check_output(folder, force=True)
        memory.save(folder, force=True)
    assert (folder / name).read_text() == '{"mine": 1}'


@pytest.mark.parametrize("way", ["../../victim", "absolute", "link/victim", "link/put-back"])
def test_an_unfinished_save_of_somebody_else_moves_nothing_outside(memory, tmp_path, way):
    """Loading a memory finishes a save that was killed, and the memory may come from anybody."""
    folder = memory.save(tmp_path / "d" / "m")
    (tmp_path / "victim").write_text("mine")
    commit = folder / ".liftcore-commit"
    name = {"absolute": str(tmp_path / "victim")}.get(way, way)
    new = name
    if way == "../../victim":
        (commit / "new").mkdir(parents=True)
        (folder / "victim").write_text("evil")
    elif way.startswith("link"):
        (folder / "link").symlink_to(tmp_path)
        inner = commit / ("new" if way == "link/victim" else "old") / "link"
        inner.mkdir(parents=True)
        (inner / "victim").write_text("evil")
        new = way if way == "link/victim" else "merged"
        if new == "merged":
            (folder / "merged").mkdir()
            (commit / "new").mkdir()
            (commit / "new" / "merged").write_text("a folder is in its way")
    else:
        (commit / "new").mkdir(parents=True)
    plan = {"new": [new], "stale": [name] if way == "absolute" else []}
    (commit / "plan.json").write_text(json.dumps(plan))
    with pytest.raises(LiftError, match="cannot be finished"):
        loaded(folder, memory)
    assert (tmp_path / "victim").read_text() == "mine"


@pytest.mark.parametrize(
    "plan", ["[]", "{}", '{"new": 1, "stale": []}', '{"new": [1], "stale": []}']
)
def test_a_damaged_plan_is_one_line(memory, tmp_path, plan):
    folder = memory.save(tmp_path / "m")
    (folder / ".liftcore-commit").mkdir()
    (folder / ".liftcore-commit" / "plan.json").write_text(plan)
    with pytest.raises(LiftError, match="cannot be finished"):
        loaded(folder, memory)


def test_a_users_file_beside_a_memory_stays_when_it_is_replaced(memory, other, tmp_path):
    folder = memory.save(tmp_path / "m", merge=True, with_document=False)
    for name in ("document.txt", "merged/model.gguf", "notes.txt"):
        (folder / name).write_text("mine")
    assert loaded(folder, memory).text is None, "a document that it does not name is not its own"
    other.save(folder, force=True, with_document=False)
    for name in ("document.txt", "merged/model.gguf", "notes.txt"):
        assert (folder / name).read_text() == "mine"
    assert {p.name for p in (folder / "merged").iterdir()} == {"model.gguf"}
    with pytest.raises(LiftError, match=r"holds document\.txt"):
        check_output(folder, force=True)


def test_a_description_names_no_file_outside(memory, tmp_path):
    """It may come from anybody."""
    folder = memory.save(tmp_path / "m")
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "a").write_text("mine")
    (folder / "notes.txt").write_text("mine")
    (folder / "merged").symlink_to(tmp_path / "precious")
    info = json.loads((folder / "liftcore.json").read_text())
    info["files"] += ["../precious/a", str(tmp_path / "precious" / "a"), "merged/../../precious/a"]
    info["files"] += ["merged/a", "notes.txt", 3, None]
    (folder / "liftcore.json").write_text(json.dumps(info))
    memory.save(folder, force=True, with_document=False)
    assert (tmp_path / "precious" / "a").read_text() == (folder / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize(
    "name", ["recall.png", "document.txt", "adapter_config.json", "liftcore.json"]
)
def test_a_folder_in_the_way_is_no_half_memory(memory, other, tmp_path, name):
    folder = memory.save(tmp_path / "m")
    (folder / name).unlink()
    (folder / name).mkdir()
    before = everything(folder)
    with pytest.raises(LiftError, match="did not write"):
        other.save(folder, force=True)
    assert everything(folder) == before and (folder / name).is_dir()
    with pytest.raises(LiftError, match="did not write"):
        check_output(folder, force=True)


def rescued(error, memory):
    """The memory that an error says was saved elsewhere."""
    folder = Path(str(error.value).split("saved to ")[1].split(" instead")[0])
    return loaded(folder, memory)


def test_what_cannot_be_saved_is_saved_elsewhere(memory, tmp_path):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere" / "x")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "a").write_text("mine")
    for folder in (
        tmp_path / "file",
        tmp_path / "file" / "m",
        tmp_path / "link",
        tmp_path / ("x" * 300),
        Path("/proc/m"),
        tmp_path / "full",
    ):
        with pytest.raises(LiftError) as error:
            memory.save(folder)
        assert "\n" not in str(error.value)
        assert same(rescued(error, memory), memory)


def test_what_will_fail_is_known_before_training(tmp_path):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere" / "x")
    for name in ("file", "file/m", "link", "x" * 300):
        with pytest.raises(LiftError):
            check_output(tmp_path / name, force=True)
    with pytest.raises(LiftError):
        check_output(Path("/proc/m"), force=True)
    check_output(tmp_path / "a" / "b", force=False)
    assert not (tmp_path / "a").exists(), "a look leaves nothing"


def test_a_trial_on_a_full_disk_leaves_nothing(tmp_path, monkeypatch):
    def full(self, content):
        self.touch()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(LiftError, match="No space left"):
        check_output(tmp_path, force=False)
    assert not list(tmp_path.iterdir())


def test_a_full_disk_is_known_before_training(memory, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(LiftError, match="MiB left"):
        memories.check_room(tmp_path / "a" / "b", memory.model, memory.config.replace(rank=4))


@pytest.mark.skipif(not os.path.isdir("/dev/shm"), reason="no second file system")
def test_the_output_may_be_a_link_to_another_file_system(memory, other, tmp_path):
    with tempfile.TemporaryDirectory(dir="/dev/shm") as away:
        (tmp_path / "m").symlink_to(away)
        if os.stat(away).st_dev == os.stat(tmp_path).st_dev:
            pytest.skip("the same file system")
        memory.save(tmp_path / "m")
        assert same(loaded(tmp_path / "m", memory), memory)
        other.save(tmp_path / "m", force=True, merge=True)
        assert same(loaded(tmp_path / "m", memory), other) and (tmp_path / "m").is_symlink()
        assert (Path(away) / "merged" / "model.safetensors").is_file()
        shutil.rmtree(Path(away) / "merged")
        (Path(away) / "merged").symlink_to(tmp_path)
        with pytest.raises(LiftError, match="merged"):
            check_output(tmp_path / "m", force=True, merge=True)


@pytest.mark.parametrize(
    "title", ["A$$B", r"$\frac{", "日本語 😀", "a\nb\tc", "\x00\x1b[31m", "x" * 999]
)
def test_any_title_has_a_quiet_picture(memory, tmp_path, monkeypatch, title, recwarn, caplog):
    monkeypatch.setattr(memory, "title", title)
    folder = memory.save(tmp_path / "m")
    assert (folder / "recall.png").read_bytes()[:4] == b"\x89PNG"
    assert not recwarn.list and not caplog.records


def test_an_unknown_backend_of_matplotlib_does_not_matter(tmp_path):
    """In a process of its own: the variable is read when matplotlib is imported."""
    script = f"""
from liftcore.report import Report
Report(0.5, 128, [0, 64], [1.0, 0.0], 32, 32).png({str(tmp_path / "a.png")!r}, "Bees")
"""
    env = {**os.environ, "MPLBACKEND": "nope"}
    done = subprocess.run([sys.executable, "-c", script], env=env, capture_output=True, text=True)
    assert done.returncode == 0 and not done.stderr, done.stderr
    assert (tmp_path / "a.png").exists()


@pytest.mark.parametrize("what", ["picture", "merged"])
def test_a_secondary_file_that_fails_is_a_warning(memory, other, tmp_path, monkeypatch, what):
    folder = other.save(tmp_path / "m", merge=True)
    if what == "picture":
        monkeypatch.setattr(type(memory.report), "png", fails)
    else:
        monkeypatch.setattr(memories, "merged", fails)
    with pytest.warns(UserWarning, match="it broke"):
        memory.save(folder, force=True, merge=True)
    assert same(loaded(folder, memory), memory)
    assert not (folder / "merged" / "model.safetensors").exists() or what != "merged"
    assert not (folder / "recall.png").exists() or what != "picture"


def test_a_merged_model_leaves_the_adapter_that_was_installed(memory, other):
    other.adapter.install()
    memories.merged(memory.adapter)
    assert memory.model._liftcore_adapter is other.adapter


def test_an_older_memory_without_names_is_replaced(memory, other, tmp_path):
    folder = memory.save(tmp_path / "m")
    info = json.loads((folder / "liftcore.json").read_text())
    del info["files"]
    (folder / "liftcore.json").write_text(json.dumps(info))
    assert same(loaded(folder, memory), memory)
    other.save(folder, force=True, with_document=False)
    assert not (folder / "document.txt").exists() and loaded(folder, memory).title == "Goats"
    (folder / "liftcore.json").write_text("{")
    memory.save(folder, force=True)
    assert same(loaded(folder, memory), memory), "a damaged memory can be replaced"


def test_a_starting_adapter_is_saved_in_the_same_way(memory, tmp_path, elsewhere):
    from liftcore.adapter import read
    from liftcore.sft import Start

    start = Start(memory.model, memory.adapter, memory.config, memory.training, 1, 0)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "adapter_config.json").write_text("{}")
    (tmp_path / "file").write_text("mine")
    for folder in (tmp_path / "mine", tmp_path / "file"):
        before = everything(tmp_path)
        with pytest.raises(LiftError, match="saved to") as error:
            start.save(folder)
        assert everything(tmp_path) == before
        saved = Path(str(error.value).split("saved to ")[1].split(" instead")[0])
        assert torch.equal(read(memory.model, saved).values, memory.adapter.values)
    folder = start.save(tmp_path / "start")
    memory.save(folder, force=True)
    assert not (folder / "sft.json").exists() and same(loaded(folder, memory), memory)
    start.save(folder)
    names = {"adapter_config.json", "adapter_model.safetensors", "sft.json"}
    assert everything(folder).keys() == names
