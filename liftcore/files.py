"""Files of a folder that change together: all of them or none, whatever ends the process.

The new files are written into a folder inside, `.liftcore-new-…`. Its renaming to
`.liftcore-commit` decides for them: from then on each is moved to its place, and what was there
before to `.liftcore-commit/old`. A kill before that leaves the old files; after it repair() moves
the rest. A move that fails is no kill: then all go back.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterable
from itertools import chain
from pathlib import Path, PurePosixPath

from safetensors import SafetensorError

from liftcore import locks
from liftcore.device_memory import gib
from liftcore.errors import LiftError

NEW = ".liftcore-new-"
COMMIT = ".liftcore-commit"
PLAN = "plan.json"
# All that a folder of one of the two names ever holds; the mark is output.MARK.
PARTS = {PLAN, "new", "old", ".liftcore"}
# No name that is made up here or for a state file is longer.
LONGEST = ".liftcore-trial-" + "x" * 64


def replace(folder: Path, fill: Callable[[Path], Iterable[str]]) -> None:
    """Lets fill(an empty folder) write files, and puts them into `folder` all at once.

    fill() returns the names of the files that are to go; all names may hold "/". Other files of
    `folder` are not touched. What fill() raises is passed on, OSError raised where a file cannot
    be written or moved: the old files then stay, and nothing else does.
    """
    made = made_folders(folder)
    try:
        with locks.saving(folder):
            _tidy(folder)
            _stage(folder, fill)
            _finish(folder)
    except BaseException:
        remove_empty(made)
        raise


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Calls write(temporary path), then renames: a reader sees the old file or the new one.

    Raises LiftError when the disk is full or the folder cannot be written; the old file stays.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(temporary)
        with open(temporary, "r+b") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except (OSError, SafetensorError) as error:
        raise LiftError(
            f"cannot write {path}: {reason(error)}; what was there before is kept"
        ) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def new_folder(folder: Path, fill: Callable[[Path], object]) -> None:
    """Makes a folder that appears with all that fill(its place until then) writes, or not at all.
    One that somebody else makes meanwhile stays. Raises OSError where it cannot be made."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    stage = Path(tempfile.mkdtemp(prefix=NEW, dir=folder.parent))
    try:
        fill(stage)
        stage.chmod(0o755)
        os.replace(stage, folder)
    except OSError:
        # Another process may have been quicker; its folder is as good.
        if not folder.is_dir():
            raise
    finally:
        shutil.rmtree(stage, ignore_errors=True)


def repair(folder: Path) -> None:
    """Finishes a replace() that was killed. Raises LiftError where it cannot."""
    if not (folder / COMMIT).is_dir() or not _is_ours(folder / COMMIT):
        return
    try:
        with locks.saving(folder, wait=True):
            _finish(folder)
    except (OSError, ValueError) as error:
        # Put back is as good as finished: the files of before are whole.
        if (folder / COMMIT / PLAN).exists():
            raise LiftError(
                f"a save into {folder} was cut short and cannot be finished "
                f"({reason(error)}): open it once where it can be written"
            ) from error


def tidy(folder: Path) -> None:
    """repair(), and removes what killed saves left behind; LiftError while another one runs."""
    if folder.is_dir():
        repair(folder)
        with locks.saving(folder):
            _tidy(folder)


def try_writing(folder: Path) -> None:
    """Writes a file into the folder and takes it away again, with all folders that it made."""
    made = made_folders(folder)
    try:
        trial = folder / f"{LONGEST}{os.getpid()}"
        try:
            trial.write_bytes(b"x")
        finally:
            trial.unlink(missing_ok=True)  # on a full disk it stands there, and is empty
    finally:
        remove_empty(made)


def check_room(folder: Path, needed: int) -> None:
    """Raises LiftError when the disk of `folder` has less than `needed` bytes left."""
    folder = folder.absolute()
    there = next(each for each in (folder, *folder.parents) if each.exists())
    with contextlib.suppress(OSError):
        disk = shutil.disk_usage(there)
        if disk.total and disk.free < needed:
            raise LiftError(
                f"the disk of {folder} has {_size(disk.free)} left, and {_size(needed)} are "
                "needed: make room, or save elsewhere"
            )


def _size(number: int) -> str:
    return gib(number) if number >= 2**27 else f"{number / 2**20:.2f} MiB"


def made_folders(folder: Path) -> list[Path]:
    """Makes the folder and those above it; returns the new ones, the innermost first."""
    missing = []
    for each in (folder, *folder.parents):
        if os.path.lexists(each):
            break
        missing.append(each)
    folder.mkdir(parents=True, exist_ok=True)
    return missing


def remove_empty(folders: Iterable[Path]) -> None:
    """Removes those of the folders that are empty, in this order."""
    for each in folders:
        with contextlib.suppress(OSError):
            each.rmdir()


def names_in(folder: Path) -> list[str]:
    """Every file in and below the folder, as names with "/"."""
    entries = sorted(folder.rglob("*"))
    return [e.relative_to(folder).as_posix() for e in entries if e.is_symlink() or not e.is_dir()]


def reason(error: BaseException) -> str:
    """Why, in one line."""
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return " ".join(str(text).split())


def _stage(folder: Path, fill: Callable[[Path], Iterable[str]]) -> None:
    """Writes the new files and what is to become of them, and decides for them."""
    stage = Path(tempfile.mkdtemp(prefix=NEW, dir=folder))
    try:
        new = stage / "new"
        new.mkdir()
        stage.chmod(new.stat().st_mode)  # whoever may read the folder may see what is decided
        stale = sorted(fill(new))
        plan = {"new": names_in(new), "stale": stale}
        (stage / PLAN).write_text(json.dumps(plan))
        mode = (stage / PLAN).stat().st_mode
        for file in (*(new / name for name in plan["new"]), stage / PLAN):
            # safetensors writes for the owner alone; a server may run as somebody else.
            file.chmod(mode)
            _sync(file)
        os.rename(stage, folder / COMMIT)
    except BaseException:
        shutil.rmtree(stage, ignore_errors=True)
        raise
    _sync(folder)


def _finish(folder: Path) -> None:
    """Moves what is decided to its place; may be called again after a kill at any point."""
    commit = folder / COMMIT
    if not os.path.lexists(commit):
        return
    if not _is_ours(commit):
        raise LiftError(f"{folder} holds {COMMIT}, which liftcore did not write: move it away")
    if (commit / PLAN).exists():
        plan = _plan(folder)
        try:
            for name in plan["stale"]:
                _move(folder / name, commit / "old" / name)
            for name in plan["new"]:
                if (commit / "new" / name).exists():
                    _move(folder / name, commit / "old" / name)
                    _move(commit / "new" / name, folder / name)
        except Exception:
            _put_back(folder, plan)
            raise
        remove_empty(_parents(folder, plan["stale"]))
        _sync(folder)
        (commit / PLAN).unlink()
    shutil.rmtree(commit, ignore_errors=True)


def _is_ours(made: Path) -> bool:
    """Whether a folder of our name is what a save left behind, and nobody else's."""
    return (
        made.is_dir() and not made.is_symlink() and {each.name for each in made.iterdir()} <= PARTS
    )


def _plan(folder: Path) -> dict[str, list[str]]:
    """What is decided. The folder may come from anybody: raises ValueError for a plan that moves
    anything outside of it."""
    commit = folder / COMMIT
    plan = json.loads((commit / PLAN).read_text())
    lists = [plan.get(key) for key in ("new", "stale")] if isinstance(plan, dict) else [None]
    if not all(isinstance(each, list) for each in lists):
        raise ValueError(f"{PLAN} is damaged")
    bases = folder, commit / "new", commit / "old"
    for name in chain(*lists, names_in(bases[1]), names_in(bases[2])):
        path = PurePosixPath(name) if isinstance(name, str) else PurePosixPath("..")
        inner = [base / each for base in bases for each in path.parents]
        if path.is_absolute() or ".." in path.parts or not path.parts:
            raise ValueError(f"{PLAN} names {name!r}")
        if any(each.is_symlink() for each in inner if each != folder):
            raise ValueError(f"{name} lies behind a link")
    return plan


def _put_back(folder: Path, plan: dict[str, list[str]]) -> None:
    commit = folder / COMMIT
    for name in plan["new"]:
        if not (commit / "new" / name).exists():
            _move(folder / name, commit / "new" / name)
    for name in names_in(commit / "old"):
        _move(commit / "old" / name, folder / name)
    remove_empty(_parents(folder, plan["new"]))
    (commit / PLAN).unlink()
    shutil.rmtree(commit, ignore_errors=True)


def _parents(folder: Path, names: Iterable[str]) -> list[Path]:
    """The folders in `folder` that hold the names, the innermost first."""
    inner = {parent for name in names for parent in Path(name).parents if parent.name}
    return [folder / each for each in sorted(inner, key=lambda p: -len(p.parts))]


def _move(source: Path, target: Path) -> None:
    """Moves a file, if there is one; a folder is nobody's file."""
    if not os.path.lexists(source):
        return
    if source.is_dir() and not source.is_symlink():
        raise IsADirectoryError(f"{source} is a folder")
    target.parent.mkdir(parents=True, exist_ok=True)
    os.replace(source, target)


def _tidy(folder: Path) -> None:
    _finish(folder)
    for left in folder.glob(f"{NEW}*"):
        if _is_ours(left):
            shutil.rmtree(left, ignore_errors=True)
    for left in folder.glob(f"{LONGEST}*"):
        left.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    """To the disk, so that not even a power cut leaves half; some file systems refuse."""
    with contextlib.suppress(OSError):
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
