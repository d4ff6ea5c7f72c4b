"""After a kill at any point of a save the old memory is there or the new one, whole."""

import os
import shutil
from contextlib import contextmanager, suppress

import pytest
import torch
from bees import TEXT
from saving import everything, loaded, same

from liftcore import files
from liftcore import memory as memories
from liftcore.errors import LiftError
from liftcore.memory import check_output

pytestmark = pytest.mark.usefixtures("elsewhere")


class Killed(BaseException):
    """Nothing of this process runs any more."""


GONE = OSError(30, "Read-only file system")
LASTING = (Killed, GONE)
CALLS = ["replace", "rename", "unlink", "remove", "rmdir", "mkdir", "chmod"]


@contextmanager
def ended_at(number, error):
    """Within it the number-th change of the file system raises `error`, and for a kill and a dead
    disk all behind it too; gives what has been called."""
    calls = []

    def wrapped(name, real):
        def call(*args, **options):
            calls.append(name)
            if len(calls) == number or (error in LASTING and len(calls) > number):
                raise error
            return real(*args, **options)

        return call

    with pytest.MonkeyPatch.context() as patch:
        for name in CALLS:
            patch.setattr(os, name, wrapped(name, getattr(os, name)))
        yield calls


ENDS = [Killed, GONE, OSError(5, "Input/output error"), KeyboardInterrupt]


@pytest.mark.parametrize("error", ENDS)
def test_old_or_new_whatever_ends_a_save(memory, other, tmp_path, monkeypatch, error):
    """At each change of the file system in turn: a kill, an error of the disk, Ctrl-C."""
    monkeypatch.setattr(memories, "_has_matplotlib", lambda: False)
    template = memory.save(tmp_path / "template")
    (template / "notes.txt").write_text("mine")
    done, number, outcomes = False, 0, set()
    while not done:
        number += 1
        folder = tmp_path / f"m{number}"
        shutil.copytree(template, folder)
        (folder / "training_state.safetensors").write_bytes(b"half")
        stopped = suppress(Killed, KeyboardInterrupt, LiftError)
        with stopped, ended_at(number, error) as calls:
            # Without its document, so that a file has to go.
            other.save(folder, force=True, with_document=False)
        done = len(calls) < number
        kept = loaded(folder, memory)
        is_new = torch.equal(kept.adapter.values, other.adapter.values)
        outcomes.add(is_new)
        assert kept.title == ("Goats" if is_new else "Bees"), number
        assert kept.text == (None if is_new else TEXT), number
        assert is_new or torch.equal(kept.adapter.values, memory.adapter.values), number
        assert (folder / "notes.txt").read_text() == "mine"
        memory.save(folder, force=True)
        left = {p.name for p in folder.iterdir()}
        assert left == {p.name for p in template.iterdir()}, f"{number}: leftovers stay"
        assert same(loaded(folder, memory), memory)
        shutil.rmtree(folder)
    assert number > 10 and outcomes == {False, True}


@pytest.mark.parametrize("error", ENDS)
def test_files_change_together(tmp_path, rng, error):
    """Any files, below folders too, in place of any others."""
    pool = ["a", "b", "c", "m/a", "m/b", "m/n/a", "o/a"]
    old, new, users = ({n for n in pool if rng.random() < 0.5} for _ in range(3))
    new.add("a")
    users -= old | new
    before, after = ({n: word for n in names} for names, word in ((old, "old"), (new, "new")))
    number, done, outcomes = 0, False, []
    while not done:
        number += 1
        folder = tmp_path / f"f{number}"
        for name, text in {**before, **dict.fromkeys(users, "mine")}.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(text)

        def fill(to):
            for name in new:
                (to / name).parent.mkdir(parents=True, exist_ok=True)
                (to / name).write_text("new")
            return old - new

        with suppress(Killed, KeyboardInterrupt, OSError), ended_at(number, error) as calls:
            files.replace(folder, fill)
        done = len(calls) < number
        if folder.exists():
            files.tidy(folder)
        there = {name: text.decode() for name, text in everything(folder).items()}
        mine = {name: there.pop(name) for name in users}
        assert set(mine.values()) <= {"mine"} and there in (before, after), (old, new, number)
        outcomes.append(there == after)
    assert outcomes[-1] and False in outcomes


def test_a_killed_first_save_is_no_obstacle(memory, tmp_path, monkeypatch):
    monkeypatch.setattr(memories, "_has_matplotlib", lambda: False)  # half an import stays half
    for number in range(1, 12):
        folder = tmp_path / f"m{number}"
        with suppress(Killed), ended_at(number, Killed):
            memory.save(folder, with_document=False)
        try:
            check_output(folder, force=False)
        except LiftError:
            loaded(folder, memory)  # not empty, since it is all there
        else:
            assert not folder.exists() or not list(folder.iterdir()), "the leftovers are gone"
        assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []


def test_only_one_process_saves_into_a_folder(memory, tmp_path):
    from fcntl import LOCK_EX, flock

    folder = memory.save(tmp_path / "m")
    handle = os.open(folder, os.O_RDONLY)
    try:
        flock(handle, LOCK_EX)
        with pytest.raises(LiftError, match="another process"):
            memory.save(folder, force=True)
        assert same(loaded(folder, memory), memory), "reading needs no lock"
    finally:
        os.close(handle)
    memory.save(folder, force=True)


def test_a_kill_while_merging_keeps_the_adapter(memory, tmp_path, monkeypatch):
    def dies(*args):
        raise Killed

    monkeypatch.setattr(memories, "merged", dies)
    with pytest.raises(Killed):
        memory.save(tmp_path / "m", merge=True)
    assert same(loaded(tmp_path / "m", memory), memory)
