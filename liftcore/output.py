"""The folder that a run ends in: what in it is liftcore's own, whether a result will fit into it,
and how the result gets there, or somewhere at least."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import tempfile
import warnings
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

from safetensors import SafetensorError, safe_open

from liftcore import files
from liftcore.errors import LiftError

INFO = "liftcore.json"
START = "sft.json"
DOCUMENT = "document.txt"
QUESTIONS = "trained_questions.jsonl"
PICTURE = "recall.png"
MERGED = "merged"
ADAPTER = ("adapter_config.json", "adapter_model.safetensors")
# The state of an unfinished run.
STATE = "training_state.safetensors"
HALF = re.compile(r"\..+\.\d+(-\d+)?")  # files.write_atomically()'s, that a kill left behind
# Beside it, for the run to go on: a folder with the questions that the model made itself, and a
# teacher's targets (questions/studied.py, objectives/teacher.py).
SAMPLES = "samples"
# Stands in it, so that nobody else's folder of that name is taken for it.
MARK = ".liftcore"

# Writes a result into an empty folder; returns the name of its description and what stands there.
Fill = Callable[[Path], tuple[str, dict]]


def check(folder: Path, *, force: bool, names: tuple[str, ...] = (), merge: bool = False) -> None:
    """Raises LiftError when a result of these files cannot be saved to `folder`, as far as can be
    known: it is no folder, not empty (unless force), cannot be written, or holds a file of such a
    name that liftcore did not write. Finishes and removes what killed saves have left.
    """
    try:
        _make_ready(folder, force)
        _remove_halves(folder)
        refuse_foreign(folder, [*names, STATE])
        if merge:
            _refuse_foreign_merged(folder)
        files.try_writing(folder)
    except OSError as error:
        raise LiftError(f"cannot save to {folder}: {files.reason(error)}") from error


def save(folder: Path, fill: Fill, *, force: bool) -> None:
    """Puts what fill() writes into `folder`, all of it or nothing, in place of an older result.

    The description gets one entry more: "files", the names of all that was written. Raises
    LiftError when it cannot be saved; the result then is in another folder, which the message
    names.
    """
    try:
        _make_ready(folder, force)
        files.replace(folder, lambda new: _filled(folder, new, fill))
    except Exception as error:
        raise LiftError(
            f"cannot save to {folder}: {files.reason(error)}; {_saved_elsewhere(fill)}"
        ) from error
    remove_samples(folder)
    _remove_halves(folder)


def add(folder: Path, info: str, fill: Callable[[Path], None]) -> None:
    """Puts more files to a result whose description is `info`, all of them or none."""

    def filled(new: Path) -> list[str]:
        fill(new)
        more = files.names_in(new)
        refuse_foreign(folder, more)
        content = json.loads((folder / info).read_text())
        content["files"] = sorted({*content["files"], *more})
        write_json(new / info, content)
        return []

    files.replace(folder, filled)


@contextmanager
def or_warning(what: str, file: Path | None = None) -> Generator[None]:
    """What fails within it is a warning: the rest of a result is not lost with it. Half of `file`
    is removed."""
    try:
        yield
    except Exception as error:
        if file is not None:
            file.unlink(missing_ok=True)
        warnings.warn(f"{what} was not written: {files.reason(error)}", stacklevel=3)


def write_json(file: Path, content: dict) -> None:
    """A JSON object as text; what JSON does not know, as a number or a string."""
    file.write_text(json.dumps(content, indent=2, default=_plain) + "\n")


def _plain(value: Any) -> Any:
    return value.item() if hasattr(value, "item") else str(value)


def _filled(folder: Path, new: Path, fill: Fill) -> list[str]:
    """Fills `new`; returns the files in `folder` that the result replaces or has no need of."""
    info, content = fill(new)
    names = sorted({*files.names_in(new), info})
    write_json(new / info, {**content, "files": names})
    refuse_foreign(folder, names)
    stale = ours(folder) - set(names)
    if (folder / STATE).exists() and is_state(folder / STATE):
        stale.add(STATE)
    return sorted(stale)


def is_state(path: Path) -> bool:
    """Whether a file of that name is liftcore's: a state, or one that cannot be read."""
    try:
        with safe_open(path, "pt") as file:
            return {"run", "position"} <= (file.metadata() or {}).keys()
    except (SafetensorError, OSError):
        return path.is_file()


def make_samples(folder: Path) -> Path:
    """The folder for what a run in `folder` makes. Raises LiftError when somebody else's has its
    name, or when it cannot be made."""
    samples = folder / SAMPLES
    if has_samples(folder):
        return samples
    if os.path.lexists(samples):
        raise LiftError(f"{samples} is not liftcore's: move it away, or resume in another folder")
    try:
        files.new_folder(samples, lambda new: (new / MARK).touch())
    except OSError as error:
        raise LiftError(f"cannot make the folder {samples}: {files.reason(error)}") from error
    return samples


def has_samples(folder: Path) -> bool:
    """Whether make_samples() made a folder in `folder`."""
    samples = folder / SAMPLES
    return not samples.is_symlink() and (samples / MARK).is_file()


def remove_samples(folder: Path) -> None:
    """Removes what a run made; files of other kinds stay."""
    if not has_samples(folder):
        return
    for file in (folder / SAMPLES).iterdir():
        named = file.name in ("questions.json", MARK) or file.suffix == ".safetensors"
        if (named or HALF.fullmatch(file.name)) and not file.is_dir():
            file.unlink()
    with contextlib.suppress(OSError):
        (folder / SAMPLES).rmdir()


def _remove_halves(folder: Path) -> None:
    """Removes halves of a state file that a kill left behind."""
    for half in _halves(folder):
        half.unlink(missing_ok=True)


def _halves(folder: Path) -> list[Path]:
    named = folder.glob(f".{STATE}.*")
    return [half for half in named if HALF.fullmatch(half.name) and half.is_file()]


def ours(folder: Path) -> set[str]:
    """The files in `folder` that a description there names, or that stood beside one before
    descriptions named them."""
    names: set[str] = set()
    for info in (INFO, START):
        if not (folder / info).is_file() or (folder / info).is_symlink():
            continue
        content: object = {}
        damaged = info == INFO  # a memory's, since nobody else has a file of that name
        with contextlib.suppress(OSError, ValueError, RecursionError):
            content, damaged = json.loads((folder / info).read_bytes()), False
        if not isinstance(content, dict) or not ("adapter_sha256" in content or damaged):
            continue  # somebody else's
        listed = content.get("files")
        names.add(info)
        if isinstance(listed, list):
            names |= {name for name in listed if _is_a_name_of_ours(name)}
        else:
            names |= {*ADAPTER, PICTURE}
            if _is_its_document(folder / DOCUMENT, content):
                names.add(DOCUMENT)
    return {name for name in names if _is_in(folder, name)}


def refuse_foreign(folder: Path, names: list[str]) -> None:
    """Raises LiftError when one of the names is taken by what liftcore did not write."""
    own = ours(folder)
    if (folder / STATE).is_file() and is_state(folder / STATE):
        own.add(STATE)
    for name in names:
        if os.path.lexists(folder / name) and name not in own:
            raise _foreign(folder, name)
        for parent in PurePosixPath(name).parents:
            inside = folder / parent
            if parent.name and os.path.lexists(inside) and not _is_plain_folder(inside, folder):
                raise _foreign(folder, str(parent))


def _refuse_foreign_merged(folder: Path) -> None:
    merged = folder / MERGED
    if not os.path.lexists(merged):
        return
    if not _is_plain_folder(merged, folder):
        raise _foreign(folder, MERGED)
    refuse_foreign(folder, [f"{MERGED}/{name}" for name in files.names_in(merged)])


def _foreign(folder: Path, name: str) -> LiftError:
    return LiftError(
        f"{folder} holds {name}, which liftcore did not write: move it away, or save elsewhere"
    )


def _is_plain_folder(path: Path, parent: Path) -> bool:
    """No link, and on the same file system."""
    return path.is_dir() and not path.is_symlink() and path.stat().st_dev == parent.stat().st_dev


def _is_a_name_of_ours(name: object) -> bool:
    """A description may come from anybody: it names no file outside, and none of other kinds."""
    if not isinstance(name, str):
        return False
    parts = PurePosixPath(name).parts
    known = (INFO, START, DOCUMENT, QUESTIONS, PICTURE, *ADAPTER)
    return name in known or (len(parts) > 1 and parts[0] == MERGED and ".." not in parts)


def _is_in(folder: Path, name: str) -> bool:
    """Whether it is a file in the folder, no link on the way."""
    inner = [p for p in PurePosixPath(name).parents if p.name]
    file = folder / name
    return (
        all(_is_plain_folder(folder / each, folder) for each in inner)
        and os.path.lexists(file)
        and (file.is_symlink() or not file.is_dir())
    )


def _is_its_document(file: Path, content: dict) -> bool:
    with contextlib.suppress(OSError, KeyError, TypeError):
        return hashlib.sha256(file.read_bytes()).hexdigest() == content["document"]["sha256"]
    return False


def _make_ready(folder: Path, force: bool) -> None:
    """Tidies the folder. Raises LiftError for a file, and unless `force` for a folder with more
    than what an unfinished run keeps there."""
    if os.path.lexists(folder) and not folder.is_dir():
        raise LiftError(f"{folder} is a file, not a folder")
    files.tidy(folder)
    run = {folder / STATE, *_halves(folder)}
    if has_samples(folder):
        run.add(folder / SAMPLES)
    if not force and folder.is_dir() and set(folder.iterdir()) - run:
        raise LiftError(f"{folder} is not empty; --force (force=True) writes into it")


def _saved_elsewhere(fill: Fill) -> str:
    """Saves to where there may be room for it, and says where that was."""
    for place in (tempfile.gettempdir, os.getcwd, Path.home):
        folder = None
        try:
            folder = Path(tempfile.mkdtemp(prefix="liftcore-saved-", dir=place()))
            files.replace(folder, lambda new, folder=folder: _filled(folder, new, fill))
        except Exception as error:
            why = files.reason(error)
            if folder is not None:
                shutil.rmtree(folder, ignore_errors=True)
        else:
            return f"it was saved to {folder} instead"
    return f"nor could it be saved elsewhere ({why})"
