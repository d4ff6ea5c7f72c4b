"""The command that makes a saved memory once more."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

from liftcore.cli import options
from liftcore.config import LiftConfig
from liftcore.errors import UsageError
from liftcore.presets import PRESETS
from liftcore.terminal import plain

if TYPE_CHECKING:
    from liftcore.info import Info
    from liftcore.questions.pairs import Pair


def command(info: Info, folder: Path, questions: list[Pair]) -> str:
    """`liftcore absorb …` with the memory's document, model and settings; questions that were
    given are those that the memory keeps."""
    from liftcore.document import title_of
    from liftcore.output import DOCUMENT, QUESTIONS

    file = folder / DOCUMENT
    # The memory knows no more of its source than the name.
    if info.source is not None and not file.is_file():
        file = Path(info.source.name)
    words = ["liftcore", "absorb", options.file_word(file)]
    if info.about.title != title_of(file):
        words += [f"--title={plain(info.about.title)}"]
    if info.about.base_model != options.EMBEDDED:
        words += ["--model", info.about.base_model]
    if info.training.start:
        words += ["--init", "ADAPTER"]
    if any(pair.window < 0 for pair in questions) or any(
        "windows" in made for made in info.training.questions
    ):
        words += ["--qa", options.file_word(folder / QUESTIONS)]
    words += flags(info.config)
    return shlex.join(words)


def flags(config: LiftConfig) -> list[str]:
    """The settings as words of the command line: the preset that is nearest, and what differs."""
    ways = []
    for name in PRESETS:
        try:
            base = LiftConfig.preset(name, objectives=config.objectives)
        except UsageError:  # it wants other objectives
            continue
        given = vars(base) | ({} if base.epochs == config.epochs else {"min_steps": 0})
        changed = {k: v for k, v in vars(config).items() if v != given[k]}
        if config.objectives != LiftConfig.preset(name).objectives:
            changed["objectives"] = config.objectives
        # No flag takes back what a preset gives.
        if all(value is not None for value in changed.values()):
            ways.append((len(changed), name, changed))
    _, name, changed = min(ways, key=lambda way: way[0])
    words = ["--preset", name]
    for key, value in changed.items():
        words += _flag(key, value)
    return words


def _flag(name: str, value: Any) -> list[str]:
    flag = options.flag(name)
    if isinstance(value, bool):
        return [flag if value else flag.replace("--", "--no-", 1)]
    text = ",".join(map(str, value)) if isinstance(value, tuple | list) else str(value)
    # argparse takes a word that begins with - for a flag.
    return [f"{flag}={text}"] if text.startswith("-") else [flag, text]
