"""liftcore export and verify: a memory goes into other runtimes; has it arrived?"""

from __future__ import annotations

import argparse
import dataclasses
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from liftcore.cli import options
from liftcore.errors import UsageError
from liftcore.terminal import show

if TYPE_CHECKING:
    from liftcore.export.hub import Upload
    from liftcore.export.saved import Saved


def add(verbs: options.Verbs) -> None:
    parser = options.verb(verbs, "export", run, "write a memory in the form of another runtime")
    options.memory_argument(parser)
    parser.add_argument("--gguf", metavar="FILE", help="a GGUF LoRA for llama.cpp")
    parser.add_argument("--mlx", metavar="FOLDER", help="an adapter of mlx-lm")
    parser.add_argument(
        "--merged", metavar="FOLDER", help="the model with the memory in its weights"
    )
    parser.add_argument("--hub", metavar="USER/NAME", help="a repository of the Hugging Face Hub")
    parser.add_argument(
        "--dry-run", action="store_true", help="show it, and write and upload nothing"
    )
    hub = parser.add_argument_group("the hub")
    hub.add_argument("--public", action="store_true", help="for everybody to read (private)")
    hub.add_argument(
        "--document",
        action=argparse.BooleanOptionalAction,
        default=False,
        help="upload the text, too (not)",
    )
    hub.add_argument("--base-model", metavar="USER/NAME", help="what the base is called there")
    options.force_option(parser)
    parser = options.verb(
        verbs, "verify", run_verify, "ask a memory the same here and in another runtime"
    )
    options.memory_argument(parser)
    parser.add_argument(
        "--runtime",
        default="peft",
        metavar="R",
        help="peft, merged, gguf (llama.cpp), mlx, or the address of an OpenAI-compatible "
        "server (%(default)s)",
    )
    parser.add_argument("--at", metavar="PATH", help="what was exported (it is exported anew)")
    parser.add_argument("--base", metavar="FILE", help="the base model's GGUF file, for gguf")
    parser.add_argument("--name", help="what the server calls the memory (DIR's name)")
    parser.add_argument("--device", help="cpu, cuda, cuda:1, … (CUDA when there is one)")
    options.dtype_option(parser)


def run(args: argparse.Namespace) -> dict:
    from liftcore.export import hub
    from liftcore.export.gguf import write_gguf
    from liftcore.export.mlx import write_mlx
    from liftcore.export.saved import read_saved

    if not (args.gguf or args.mlx or args.merged or args.hub):
        raise UsageError("export needs one of --gguf FILE, --mlx, --merged FOLDER, --hub USER/NAME")
    folder, written = options.memory_folder(args), {}
    saved = read_saved(folder)
    # What is refused is refused before anything is written or uploaded.
    upload = args.hub and hub.upload_of(
        saved, args.hub, base=args.base_model, document=args.document, public=args.public
    )
    if args.dry_run:
        return {"memory": args.memory, **_dry_run(args, saved, upload)}
    if args.gguf:
        write_gguf(saved, Path(args.gguf), force=args.force)
        written["gguf"] = args.gguf
        show(f"{args.gguf}: llama-server -m BASE.gguf --lora {options.typed(Path(args.gguf))}")
    if args.mlx:
        write_mlx(saved, Path(args.mlx), force=args.force)
        written["mlx"] = args.mlx
        show(f"{args.mlx}: mlx_lm.generate --adapter-path {options.typed(Path(args.mlx))}")
    if args.merged:
        _write_merged(folder, Path(args.merged), force=args.force)
        written["merged"] = args.merged
        show(f"{args.merged}: transformers serve {options.typed(Path(args.merged))}")
    if upload:
        written["hub"] = hub.push(saved, upload)
        show(written["hub"])
    return {"memory": args.memory, **written}


def _dry_run(args: argparse.Namespace, saved: Saved, upload: Upload | None) -> dict:
    """Shows what would be written and uploaded, or raises why it would not be; writes aside."""
    from liftcore.export import hub
    from liftcore.export import saved as at
    from liftcore.export.gguf import write_gguf
    from liftcore.export.mlx import write_mlx

    with tempfile.TemporaryDirectory(prefix="liftcore-dry-") as new:
        if args.gguf:
            at.check_new_file(Path(args.gguf), force=args.force)
            write_gguf(saved, Path(new) / "gguf")
        if args.mlx:
            at.check_new_files(Path(args.mlx), force=args.force)
            write_mlx(saved, Path(new) / "mlx")
        if args.merged:
            at.check_new_files(Path(args.merged), force=args.force)
        for name in filter(None, (args.gguf, args.mlx, args.merged)):
            show(f"would write {name}")
        if not upload:
            return {}
        (folder := Path(new) / "hub").mkdir()
        names = hub.stage(saved, upload, folder)
        for name in names:
            show(f"{(folder / name).stat().st_size:>12,}  {name}")
        show((folder / hub.CARD).read_text("utf-8"))
        return {"files": names}


def _write_merged(folder: Path, out: Path, *, force: bool) -> None:
    from liftcore.export.saved import new_files
    from liftcore.memory import load_memory

    memory = load_memory(folder)
    new_files(out, memory.write_merged, force=force)


def run_verify(args: argparse.Namespace) -> dict:
    from liftcore.export.runtimes import opened
    from liftcore.export.verify import verify
    from liftcore.memory import load_memory
    from liftcore.pretrained import quiet_transformers

    folder = options.memory_folder(args)
    memory = load_memory(folder, device=args.device, dtype=options.dtype(args.dtype))
    at, base = (Path(path) if path else None for path in (args.at, args.base))
    name = args.name or Path(args.memory).resolve().name
    runtime = opened(args.runtime, memory, folder, at=at, base=base, name=name)
    with quiet_transformers(), runtime as complete:
        arrival = verify(memory, complete)
    verdict = "bold green" if arrival.arrived else "bold red"
    show(arrival.text(args.runtime), {r"^.*\Z": verdict})
    return {"runtime": args.runtime, "arrived": arrival.arrived, **dataclasses.asdict(arrival)}
