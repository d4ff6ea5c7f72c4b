"""Options that several verbs of the command line share."""

from __future__ import annotations

import argparse
import dataclasses

from liftcore.config import (
    LR_SCHEDULES,
    OBJECTIVES,
    OVERLAP_LOSSES,
    PRESETS,
    QA_CONTEXTS,
    QA_KINDS,
    SCHEDULES,
    LiftConfig,
)

EMBEDDED = "smollm2-135m"
# What --dtype takes -> its name in torch, which is slow to import.
DTYPES = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}


def verb(verbs, name: str, run, text: str) -> argparse.ArgumentParser:
    parser = verbs.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
    parser.set_defaults(run=run)
    parser.add_argument("--json", action="store_true", help="one JSON line last on stdout")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser


def model_options(parser: argparse.ArgumentParser, default: str | None) -> None:
    parser.add_argument(
        "--model",
        default=default,
        metavar="M",
        help="smollm2-135m, a Hugging Face name or a local folder "
        f"({default or 'the one that was trained'})",
    )
    parser.add_argument("--device", help="cpu, cuda, cuda:1, … (CUDA when there is one)")
    parser.add_argument(
        "--dtype", choices=tuple(DTYPES), help="(bf16 where the device computes with it)"
    )


def settings(parser: argparse.ArgumentParser, preset: str = "(memorize)") -> None:
    """The options of LiftConfig; `preset` says which one is taken when none is named."""
    group = parser.add_argument_group("settings")
    group.add_argument("--preset", choices=PRESETS, help=preset)
    group.add_argument(
        "--objective",
        dest="objectives",
        type=_names,
        metavar="A,B",
        help=f"what to train on, one or more of {', '.join(OBJECTIVES)} (the preset's)",
    )
    group.add_argument(
        "--mix",
        type=_numbers,
        metavar="X,Y",
        help="weight of each objective (the preset's)",
    )
    group.add_argument(
        "--segment-epochs", type=int, metavar="N", help="first epochs, on segments alone (0)"
    )
    group.add_argument(
        "--qa-context",
        choices=QA_CONTEXTS,
        help="what stands beside a training question: nothing, or the document cut to the window",
    )
    group.add_argument(
        "--qa-kinds",
        type=_names,
        metavar="A,B",
        help=f"what the model asks itself, of {', '.join(QA_KINDS)} (quiz)",
    )
    group.add_argument(
        "--recite-context", type=int, metavar="TOKENS", help="shown when reciting (4096)"
    )
    group.add_argument("--segment-length", type=int, metavar="S")
    group.add_argument("--stride", type=int, help="for --schedule overlap (3/8 S)")
    group.add_argument("--schedule", choices=SCHEDULES)
    group.add_argument("--overlap-loss", choices=OVERLAP_LOSSES)
    group.add_argument("--epochs", type=int)
    group.add_argument("--batch-size", type=int, help="segments a step")
    group.add_argument("--tokens-per-step", type=int, help="in place of --batch-size")
    group.add_argument("--learning-rate", type=float)
    group.add_argument("--lr-schedule", choices=LR_SCHEDULES)
    group.add_argument("--warmup", type=float, help="share of all steps")
    group.add_argument("--rank", type=int)
    group.add_argument("--alpha", type=float)
    group.add_argument("--seed", type=int)


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(","))


def _numbers(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(number) for number in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"not numbers with commas between: {text!r}") from None


def config(args, preset: str = "memorize", **defaults) -> LiftConfig:
    """The settings of a command line: its preset, or else `preset`, with `defaults` and then with
    what was given."""
    names = {f.name for f in dataclasses.fields(LiftConfig)}
    given = {k: v for k, v in vars(args).items() if k in names and v is not None}
    return LiftConfig.preset(args.preset or preset, **{**defaults, **given})


def dtype(name: str | None):
    """The torch dtype of --dtype; None for none."""
    if name is None:
        return None
    import torch

    return getattr(torch, DTYPES[name])
