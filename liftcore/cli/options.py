"""Options that several verbs of the command line share, and what is made of them."""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from liftcore.config import CHOICES, LiftConfig
from liftcore.errors import UsageError
from liftcore.presets import PRESETS, preset_for
from liftcore.terminal import note, one_line, plain

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from liftcore.reading import Reading
    from liftcore.training.log import Result
    from liftcore.training.parallel import Ranks

EMBEDDED = "smollm2-135m"
# What --dtype takes -> its name in torch, which is slow to import.
DTYPES = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}
STDIN = Path("/dev/stdin")
# The preset of a training verb when none is named, see preset().
BY_MODEL = "(understand for a chat model, else memorize; memorize with --objective)"

# The subcommands of a parser, which argparse does not name in public.
Verbs = Any
# A parser, or a group of its options.
Arguments = argparse._ActionsContainer


def typed(path: str | Path) -> str:
    """A path, or a URL, as a word of a command line, to be copied from the terminal."""
    return shlex.quote(file_word(path))


def file_word(path: str | Path) -> str:
    """The same, not yet quoted."""
    word = plain(str(path))
    return f"./{word}" if word.startswith("-") else word


def verb(
    verbs: Verbs, name: str, run: Callable[[argparse.Namespace], dict], text: str
) -> argparse.ArgumentParser:
    parser = verbs.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
    parser.set_defaults(run=run)
    parser.add_argument("--json", action="store_true", help="one JSON line last on stdout")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser


def model_options(parser: Arguments, default: str | None) -> None:
    parser.add_argument(
        "--model",
        default=default,
        metavar="M",
        help="smollm2-135m, a Hugging Face name or a local folder "
        f"({default or 'the one that was trained'})",
    )
    parser.add_argument("--device", help="cpu, cuda, cuda:1, … (CUDA when there is one)")
    dtype_option(parser)


def dtype_option(parser: Arguments) -> None:
    parser.add_argument(
        "--dtype", choices=tuple(DTYPES), help="(bf16 where the device computes with it)"
    )


def force_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--force", action="store_true", help="write into a folder that is not empty"
    )


def tracking_options(parser: Arguments) -> None:
    parser.add_argument(
        "--log", metavar="JSONL", help="add each step and the figures of the run to this file"
    )
    parser.add_argument(
        "--report-to",
        choices=("trackio", "tensorboard", "wandb"),
        help="report the same by this library, which must be installed",
    )


def settings(parser: argparse.ArgumentParser, preset: str = "(memorize)") -> None:
    """A flag for each field of LiftConfig; `preset` says which one is taken when none is named."""
    group = parser.add_argument_group("settings", "not given, a setting is the preset's")
    group.add_argument("--preset", choices=tuple(PRESETS), help=preset)
    texts = _texts(inspect.getdoc(LiftConfig) or "")
    kinds = (
        ("float | tuple", _layers, "SHARE|FIRST,LAST"),
        ("tuple[str", _names, "A,B"),
        ("tuple[float", _numbers, "X,Y"),
        ("int", int, "N"),
        ("float", float, "X"),
        ("str", str, None),
    )
    for field in dataclasses.fields(LiftConfig):
        text, choices = texts.get(field.name), CHOICES.get(field.name)
        if field.type == "bool":
            either = argparse.BooleanOptionalAction
            group.add_argument(flag(field.name), action=either, default=None, help=text)
            continue
        read, metavar = next(k[1:] for k in kinds if str(field.type).startswith(k[0]))
        if choices and metavar:
            text, choices = f"{text}; of {', '.join(choices)}", None
        group.add_argument(
            flag(field.name),
            dest=field.name,
            type=read,
            choices=choices,
            metavar=metavar,
            help=text,
        )


def flag(name: str) -> str:
    """The flag of a field of LiftConfig."""
    # One objective is named alone more often than several are.
    return "--objective" if name == "objectives" else f"--{name.replace('_', '-')}"


def _texts(docstring: str) -> dict[str, str]:
    """What a docstring says of each field: lines that begin with its name, and more behind it."""
    entries = re.findall(r"^(\w+) {2,}(\S.*(?:\n {2,}\S.*)*)", docstring, flags=re.M)
    return {name: " ".join(text.split()) for name, text in entries}


def _names(text: str) -> tuple[str, ...]:
    """Names with commas between them; none of an empty text."""
    return tuple(name.strip() for name in text.split(",")) if text.strip() else ()


def _layers(text: str) -> float | tuple[int, ...]:
    try:
        return tuple(map(int, text.split(","))) if "," in text else float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"neither a share nor two numbers: {text!r}") from None


def _numbers(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(number) for number in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"not numbers with commas between: {text!r}") from None


def config(args: argparse.Namespace, preset: str = "memorize", **defaults: Any) -> LiftConfig:
    """The settings of a command line: its preset, or else `preset`, with `defaults` and then with
    what was given."""
    names = {f.name for f in dataclasses.fields(LiftConfig)}
    given = {k: v for k, v in vars(args).items() if k in names and v is not None}
    return LiftConfig.preset(args.preset or preset, **{**defaults, **given})


def preset(args: argparse.Namespace, tokenizer: Any) -> str:
    """The preset of a training verb that names none."""
    return "memorize" if args.objectives is not None else preset_for(tokenizer)


def load(args: argparse.Namespace, tokenizer: Any = None) -> tuple[PreTrainedModel, Any]:
    """The model and tokenizer of a command line, with --shard-base its part of this process."""
    from liftcore.model import checked_device, default_dtype, load

    if not getattr(args, "shard_base", False):
        return load(args.model, device=args.device, dtype=dtype(args.dtype), tokenizer=tokenizer)
    from liftcore.layers import sharded

    device = checked_device(args.device)
    # It comes by way of the host, a layer at a time, since no GPU holds all of it.
    model, tokenizer = load(
        *(args.model,),
        device="cpu",
        dtype=dtype(args.dtype) or default_dtype(device),
        tokenizer=tokenizer,
    )
    sharded.shard(model, device)
    return model, tokenizer


def server(args: argparse.Namespace) -> tuple[str, str, int] | None:
    """URL, model and requests at once of the server that makes questions; None without one."""
    if bool(args.qa_server) != bool(args.qa_model):
        raise UsageError("--qa-server URL and --qa-model NAME go together")
    return (args.qa_server, args.qa_model, args.qa_concurrency) if args.qa_server else None


def check_sharding(args: argparse.Namespace, ranks: Ranks, config: LiftConfig) -> None:
    """Raises UsageError where --shard-base cannot be."""
    from liftcore.layers import sharded

    if ranks.size == 1:
        raise UsageError(
            "--shard-base needs several processes: torchrun --nproc-per-node N -m liftcore ..."
        )
    if args.merge:
        raise UsageError("--shard-base has no whole model to merge into: leave --merge out")
    sharded.check_settings(config)


def dtype(name: str | None) -> torch.dtype | None:
    """The torch dtype of --dtype; None for none."""
    if name is None:
        return None
    import torch

    return getattr(torch, DTYPES[name])


def file_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "file",
        metavar="FILE",
        help="text, PDF, DOCX, PPTX, HTML, EPUB, a notebook or CSV; - is standard input",
    )


def memory_argument(parser: Arguments, text: str = "a folder that absorb wrote") -> None:
    text += "; or its URL (s3://, file://, …), or USER/NAME on the Hub"
    parser.add_argument("memory", metavar="DIR", help=text)


def memory_folder(args: argparse.Namespace) -> Path:
    """The folder of the memory that a command line names, brought from its URL or the Hub where it
    is there. Raises LiftError when it cannot be had."""
    from liftcore.corpus.store import Store, is_url
    from liftcore.memory import local_folder

    if is_url(args.memory):
        return Store(args.memory).bring()
    return local_folder(args.memory)


def text_file(name: str) -> Path:
    """The file of a command line, where - stands for standard input."""
    return STDIN if name == "-" else Path(name)


def reading(file: Path) -> Reading:
    """What a file holds; a note on standard error says what was done to make text of it."""
    from liftcore.reading import read_file

    name = "standard input" if file == STDIN else str(file)
    made = read_file(file, name)
    if made.source.kind != "text" or made.source.notes:
        said = ", ".join([made.source.kind, *made.source.notes])
        note(f"liftcore: {one_line(name)}: {said}")
    return made


def trained(training: Result) -> str:
    """How a training went, for people."""
    rate = training.token_passes / training.seconds
    return (
        f"{training.seconds:.1f} s ({training.token_passes:,} token-passes, {rate:,.0f} tokens/s, "
        f"last loss {training.loss:.3f})\n{training.how}"
    )
