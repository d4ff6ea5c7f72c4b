"""Options that several verbs of the command line share."""

from __future__ import annotations

import argparse

from liftcore.config import LR_SCHEDULES, OVERLAP_LOSSES, SCHEDULES, LiftConfig

PRESETS = {"default": LiftConfig, "large": LiftConfig.large, "paper": LiftConfig.paper}


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
        "--dtype", choices=("bf16", "fp16", "fp32"), help="(bf16 where the device computes with it)"
    )


def settings(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("settings")
    group.add_argument("--preset", choices=sorted(PRESETS), default="default")
    group.add_argument("--objective", choices=("segments",), default="segments")
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
