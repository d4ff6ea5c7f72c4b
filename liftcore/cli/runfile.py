"""The settings and options of a run as YAML: --config reads them, --save-config writes them."""

from __future__ import annotations

import argparse
import dataclasses
import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from liftcore.cli import options
from liftcore.config import LiftConfig
from liftcore.errors import LiftError, UsageError, first_line
from liftcore.terminal import one_line

# What belongs to one run and not to its recipe.
NOT_KEPT = {
    *("help", "config", "save_config", "json", "debug", "run", "file", "corpus", "documents"),
    *("out", "resume", "force", "log"),
}
# Of difflib's measure: a slip or two, and no other word.
_NEAR = 0.75


def add(parser: options.Arguments, *, save: bool = True) -> None:
    """--config, and --save-config where a verb trains."""
    parser.add_argument(
        "--config",
        metavar="YAML",
        help="take settings and options from this file; what the command line says counts more",
    )
    if save:
        parser.add_argument(
            "--save-config", metavar="YAML", help="write those that the run takes, for --config"
        )


def expanded(argv: Sequence[str], verbs: Mapping[str, argparse.ArgumentParser]) -> list[str]:
    """The words of a command line, and before them those that its --config stands for, so that
    the later ones count. Raises LiftError for a file that cannot be read, UsageError for one that
    holds what the verb does not know."""
    parser = verbs.get(argv[0]) if argv else None
    if parser is None or not _takes_files(parser):
        return [*argv]
    only = argparse.ArgumentParser(add_help=False, exit_on_error=False)
    only.add_argument("--config")
    try:
        file = only.parse_known_args([*argv])[0].config
    except argparse.ArgumentError:  # of which the verb's parser tells
        file = None
    if file is None:
        return [*argv]
    known, words, unknown = _known(parser), [], []
    # A file may be for several verbs.
    elsewhere = {name for each in verbs.values() if _takes_files(each) for name in _known(each)}
    values = {str(key): value for key, value in _read(Path(file)).items()}
    for key in values:
        name = key.replace("-", "_")
        if name not in known and name not in elsewhere:
            near = difflib.get_close_matches(name, known, 1, _NEAR)
            hint = f" (did you mean {near[0]}?)" if near else ""
            unknown.append(f"{one_line(key)!r}{hint}")
    if unknown:
        keys = "key" if len(unknown) == 1 else "keys"
        raise UsageError(f"{file}: unknown {keys} {', '.join(unknown)}")
    for key, value in values.items():
        if (name := key.replace("-", "_")) in known:
            words += _words(known[name], value, f"{file}: {key}")
    return [argv[0], *words, *argv[1:]]


def _takes_files(parser: argparse.ArgumentParser) -> bool:
    return "--config" in parser._option_string_actions


def _known(parser: argparse.ArgumentParser) -> dict[str, argparse.Action]:
    """The options of a verb by the names that a file may call them: the setting's or the flag's."""
    known = {}
    for action in parser._actions:
        if action.dest in ("help", "config", "save_config") or not action.option_strings:
            continue
        names = (action.dest, action.option_strings[0].lstrip("-").replace("-", "_"))
        known |= dict.fromkeys(names, action)
    return known


def _read(file: Path) -> dict[Any, Any]:
    import yaml

    try:
        values = yaml.safe_load(file.read_text("utf-8-sig"))
    except OSError as error:
        raise LiftError(f"cannot read {file}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise LiftError(f"{file} is not UTF-8 text") from error
    except yaml.MarkedYAMLError as error:
        line = "" if error.problem_mark is None else f", line {error.problem_mark.line + 1}"
        raise UsageError(f"{file}{line}: not YAML: {error.problem or error.context}") from error
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise UsageError(f"{file}: not YAML: {first_line(error)}") from error
    if not isinstance(values, dict | None):
        raise UsageError(f"{file}: not a list of keys with values")
    return values or {}


def _words(action: argparse.Action, value: Any, where: str) -> list[str]:
    """The words of the command line that say the same; none for null."""
    if value is None:
        return []
    flag = action.option_strings[0]
    if action.nargs == 0:
        if not isinstance(value, bool):
            raise UsageError(f"{where} must be true or false: {value!r}")
        off = [each for each in action.option_strings if each.startswith("--no-")]
        return [flag] if value else off
    several = isinstance(value, list)
    parts = value if several else [value]
    if not all(isinstance(part, str | int | float) and part is not True for part in parts) or (
        isinstance(value, bool)
    ):
        raise UsageError(f"{where} is not what --{action.dest.replace('_', '-')} takes: {value!r}")
    text = ",".join(map(str, parts))
    read: Any = action.type or (lambda text: text)
    try:
        made = read(text)
    except (argparse.ArgumentTypeError, TypeError, ValueError) as error:
        raise UsageError(f"{where}: {one_line(str(error))}") from error
    if several and not isinstance(made, tuple):
        raise UsageError(f"{where} takes one value: {value!r}")
    if action.choices is not None and made not in action.choices:
        raise UsageError(f"{where}: {text!r} is none of {', '.join(map(str, action.choices))}")
    return [f"{flag}={text}"]


def save(file: str | None, args: argparse.Namespace, config: LiftConfig, preset: str) -> None:
    """Writes the settings of a run and those of its options that make the memory what it is;
    nothing without a file."""
    if file is None:
        return
    import yaml

    from liftcore.files import write_atomically

    fields = {field.name for field in dataclasses.fields(config)}
    values: dict[str, Any] = {"model": args.model, "preset": preset}
    for name, value in vars(args).items():
        if name not in fields | NOT_KEPT | values.keys() and value not in (None, False):
            values[name] = value
    # All layers have a number, so that no preset puts some in their place.
    for name, value in {**vars(config), "layers": config.layers or 1.0}.items():
        if value is not None:
            values[name] = list(value) if isinstance(value, tuple) else value
    text = yaml.safe_dump(values, sort_keys=False, allow_unicode=True)
    write_atomically(Path(file), lambda to: to.write_text(text, "utf-8"))
