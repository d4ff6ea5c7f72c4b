"""The runtimes that verify() can ask: PEFT, a merged model, llama.cpp, mlx-lm, and any server."""

from __future__ import annotations

import contextlib
import importlib.util
import tempfile
from collections.abc import Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import torch

from liftcore import embedded
from liftcore import model as models
from liftcore.adapter import base_name
from liftcore.errors import LiftError, UsageError
from liftcore.export.gguf import write_gguf
from liftcore.export.llama_cpp import served
from liftcore.export.mlx import write_mlx
from liftcore.export.saved import Saved, read_saved
from liftcore.export.verify import Complete, Prompt, in_process
from liftcore.memory import Memory
from liftcore.output import MERGED
from liftcore.questions.client import TextServer

NAMES = ("peft", "merged", "gguf", "mlx")
TIMEOUT = 300.0  # seconds for one answer
AT_ONCE = 4  # requests
NEEDED = {
    "peft": ("peft", "liftcore[trainer]"),
    "xllamacpp": ("llama.cpp", "liftcore[llama-cpp]"),
    "mlx_lm": ("mlx-lm", "liftcore[mlx]"),
}


@contextmanager
def opened(
    runtime: str,
    memory: Memory,
    folder: Path,
    *,
    at: Path | None = None,
    base: Path | None = None,
    name: str | None = None,
) -> Generator[Complete]:
    """A runtime that has the memory of `folder` loaded.

    runtime   one of NAMES, or the address of an OpenAI-compatible server
    at        what was exported: a merged model, a GGUF LoRA, an mlx-lm adapter; else it is
              exported now, and the merged model is folder/merged
    base      the base model's GGUF file, for gguf; that of the embedded model is known
    name      what the server calls the memory; else the folder's name

    Raises UsageError for another runtime, LiftError when it cannot be had or does not load.
    """
    with contextlib.ExitStack() as stack:
        if "://" in runtime:
            yield server(runtime, name or folder.resolve().name)
        elif runtime == "peft":
            yield _peft(memory, at or folder)
        elif runtime == "merged":
            yield _merged(memory, at or folder / MERGED)
        elif runtime in ("gguf", "mlx"):
            new = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="liftcore-")))
            saved = read_saved(folder)
            if runtime == "mlx":
                yield _mlx(saved, at, new)
            else:
                yield stack.enter_context(_llama_cpp(saved, at, base, new))
        else:
            raise UsageError(f"unknown runtime {runtime!r}: {', '.join(NAMES)} or http://…/v1")


def server(url: str, name: str) -> Complete:
    """An OpenAI-compatible server, at its completions, and the name of the model there."""

    def complete(prompts: Sequence[Prompt], new: int) -> list[str]:
        asked = TextServer(url, name, max_tokens=new)
        # The first one alone: it shows which form of a prompt the server takes.
        first = asked.complete(prompts[0].ids, prompts[0].text, TIMEOUT)
        with ThreadPoolExecutor(AT_ONCE) as pool:
            rest = pool.map(lambda p: asked.complete(p.ids, p.text, TIMEOUT), prompts[1:])
            return [first, *rest]

    return complete


def _peft(memory: Memory, folder: Path) -> Complete:
    _check("peft")
    from peft import PeftModel

    base, _ = _again(memory, base_name(memory.model))
    try:
        model = PeftModel.from_pretrained(base, str(folder))
    except Exception as error:
        raise LiftError(f"PEFT cannot load {folder}: {_first_line(error)}") from error
    return in_process(model.get_base_model(), memory.tokenizer)


def _merged(memory: Memory, folder: Path) -> Complete:
    if not folder.is_dir():
        raise LiftError(
            f"there is no merged model in {folder}: liftcore export --merged writes one"
        )
    return in_process(_again(memory, str(folder))[0], memory.tokenizer)


def _again(memory: Memory, name: str):
    """A model beside the memory's own, on its device and in its dtype."""
    where = next(memory.model.parameters())
    return models.load(name, device=where.device, dtype=where.dtype, tokenizer=memory.tokenizer)


@contextmanager
def _llama_cpp(
    saved: Saved, lora: Path | None, base: Path | None, new: Path
) -> Generator[Complete]:
    _check("xllamacpp")
    if base is None and saved.info.about.base_model == embedded.NAME:
        base = embedded.gguf_file()
    if base is None or not base.is_file():
        raise UsageError("gguf needs the base model as GGUF, too: --base FILE")
    if lora is None:
        lora = new / "adapter.gguf"
        write_gguf(saved, lora)
    report = saved.info.report
    context = 2 * (report.prompt_tokens + report.new_tokens + 8)
    with served(base, lora, context=context, threads=torch.get_num_threads()) as address:
        yield server(f"{address}/v1", "memory")


def _mlx(saved: Saved, folder: Path | None, new: Path) -> Complete:
    _check("mlx_lm")
    if folder is None:
        folder = new
        write_mlx(saved, folder)
    import mlx.core as mx
    from mlx_lm import load
    from mlx_lm.generate import generate_step

    base = saved.info.about.base_model
    source = str(embedded.model_folder()) if base == embedded.NAME else base
    try:
        model, tokenizer = load(source, adapter_path=str(folder))[:2]
    except Exception as error:
        raise LiftError(f"mlx-lm cannot load {folder} on {base}: {_first_line(error)}") from error

    def complete(prompts: Sequence[Prompt], new: int) -> list[str]:
        texts = []
        for prompt in prompts:
            row = []
            for token, _ in generate_step(mx.array(prompt.ids), model, max_tokens=new):
                if int(token) in tokenizer.eos_token_ids:
                    break
                row.append(int(token))
            texts.append(tokenizer.decode(row))
        return texts

    return complete


def _check(package: str) -> None:
    what, extra = NEEDED[package]
    if importlib.util.find_spec(package) is None:
        raise LiftError(f"asking {what} needs the package {package}: pip install '{extra}'")


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
