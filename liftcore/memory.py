"""A memory: a model, the adapter that holds a document, and what is known about both."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import json
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from liftcore import adapter as adapters
from liftcore import answer, checkpoint, model
from liftcore.checkpoint import FILE_NAME as STATE_FILE
from liftcore.config import LiftConfig
from liftcore.document import read_text
from liftcore.errors import LiftError, UsageError
from liftcore.lora import Adapter
from liftcore.report import Report
from liftcore.training.loop import Result

INFO = "liftcore.json"
DOCUMENT = "document.txt"
PICTURE = "recall.png"
MERGED = "merged"


@dataclass
class Memory:
    """What absorb() gives: ask it, look at its report, save it."""

    model: nn.Module
    tokenizer: object
    adapter: Adapter
    title: str
    text: str | None  # None when it was saved without the document
    sha256: str
    length: int  # tokens of the document
    config: LiftConfig
    report: Report
    training: Result

    def ask(self, question: str, *, context: str = "none", max_new_tokens: int = 64) -> str:
        """The model's answer, greedily decoded.

        context "none": from the weights alone; "truncated": the prompt also holds the document,
        cut to the model's window (LIFT+ICL). Raises UsageError for anything else.
        """
        _check_length(max_new_tokens)
        if context not in answer.CONTEXTS:
            raise UsageError(f"unknown context {context!r}: choose none or truncated")
        tokens = None
        if context == "truncated":
            if self.text is None:
                raise LiftError("this memory was saved without its document; use context none")
            tokens = self.tokenizer(self.text, add_special_tokens=False, verbose=False)["input_ids"]
        self.adapter.install()
        return answer.ask(
            self.model,
            self.tokenizer,
            question,
            title=self.title,
            document=tokens,
            max_new_tokens=max_new_tokens,
        ).strip()

    def complete(self, text: str, *, max_new_tokens: int = 32) -> str:
        """How the document goes on after `text`, from the weights alone, greedily decoded."""
        _check_length(max_new_tokens)
        self.adapter.install()
        return answer.complete(self.model, self.tokenizer, text, max_new_tokens)

    def save(
        self,
        folder: str | Path,
        *,
        force: bool = False,
        merge: bool = False,
        with_document: bool = True,
    ) -> Path:
        """Writes the adapter in PEFT's form, liftcore.json, the document and the recall picture.

        With merge also the model with the adapter added to its weights, in folder/merged.
        Everything is written aside first and then moved in, so that what was there before stays
        when the disk is full. Raises LiftError when the folder is not empty, unless force.
        """
        folder = Path(folder)
        check_output(folder, force=force)
        aside = None
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            aside = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
            self._write(aside, merge=merge, with_document=with_document)
            folder.mkdir(exist_ok=True)
            for stale in {DOCUMENT, PICTURE} - {e.name for e in aside.iterdir()}:
                (folder / stale).unlink(missing_ok=True)
            shutil.rmtree(folder / MERGED, ignore_errors=True)
            for entry in sorted(aside.iterdir(), key=lambda e: e.name == INFO):
                os.replace(entry, folder / entry.name)
        except LiftError:
            raise
        except Exception as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise LiftError(f"cannot save to {folder}: {reason}") from error
        finally:
            if aside is not None:
                shutil.rmtree(aside, ignore_errors=True)
        for state in (folder / STATE_FILE, *checkpoint.leftovers(folder)):
            state.unlink(missing_ok=True)
        shutil.rmtree(folder / checkpoint.SAMPLES, ignore_errors=True)
        return folder

    def _write(self, folder: Path, *, merge: bool, with_document: bool) -> None:
        from liftcore import __version__

        sha256 = adapters.write(self.adapter, folder)
        info = {
            "liftcore": __version__,
            "base_model": adapters.base_name(self.model),
            "document": {"title": self.title, "sha256": self.sha256, "tokens": self.length},
            "config": dataclasses.asdict(self.config),
            "training": dataclasses.asdict(self.training),
            "report": dataclasses.asdict(self.report),
            "adapter_sha256": sha256,
            "vllm_max_lora_rank": adapters.vllm_rank(self.adapter.rank),
        }
        (folder / INFO).write_text(json.dumps(info, indent=2) + "\n")
        if with_document and self.text is not None:
            (folder / DOCUMENT).write_bytes(self.text.encode())
        if _has_matplotlib():
            self.report.png(folder / PICTURE, self.title)
        if merge:
            merged(self.adapter).save_pretrained(folder / MERGED)
            self.tokenizer.save_pretrained(folder / MERGED)


def _check_length(max_new_tokens: int) -> None:
    if max_new_tokens < 1:
        raise UsageError(f"max_new_tokens must be at least 1: {max_new_tokens}")


def merged(adapter: Adapter) -> nn.Module:
    """A copy of the adapter's model with W + scaling · B A in place of W."""
    adapter.remove()
    try:
        plain = copy.deepcopy(adapter.model)
    finally:
        adapter.install()
    with torch.no_grad():
        for path, layer in adapter.layers.items():
            weight = plain.get_submodule(path).weight
            delta = layer.lora_b.float() @ layer.lora_a.float() * adapter.scaling
            weight.copy_(weight.float() + delta)
    return plain


def check_output(folder: Path, *, force: bool) -> None:
    """Raises LiftError when `folder` cannot take a memory: it is a file, or not empty."""
    if folder.exists() and not folder.is_dir():
        raise LiftError(f"{folder} is a file, not a folder")
    states = {folder / STATE_FILE, folder / checkpoint.SAMPLES, *checkpoint.leftovers(folder)}
    if folder.is_dir() and not force and set(folder.iterdir()) - states:
        raise LiftError(f"{folder} is not empty; --force (force=True) writes into it")


def load_memory(
    folder: str | Path,
    model_and_tokenizer: tuple | None = None,
    *,
    device=None,
    dtype=None,
    force: bool = False,
) -> Memory:
    """A saved memory, on the base model that it was trained on.

    The base is loaded by its recorded name unless `model_and_tokenizer` gives one. Raises
    LiftError when the folder is damaged or the model is another one; force skips the check of
    the name (never that of the shapes).
    """
    folder = Path(folder)
    info = adapters.read_json(folder / INFO)
    try:
        config, report = LiftConfig(**info["config"]), Report(**info["report"])
        training, about, base = Result(**info["training"]), info["document"], info["base_model"]
        title, sha256, length = about["title"], about["sha256"], about["tokens"]
        adapter_sha256 = info["adapter_sha256"]
    except (KeyError, TypeError) as error:
        raise LiftError(f"{folder / INFO} is damaged or of another version: {error}") from error
    base_model, tokenizer = model_and_tokenizer or model.load(base, device=device, dtype=dtype)
    if adapters.base_name(base_model) != base and not force:
        raise LiftError(
            f"the memory in {folder} was trained on {base}, not on "
            f"{adapters.base_name(base_model)}; --force (force=True) tries all the same"
        )
    adapter = adapters.read(base_model, folder, adapter_sha256)
    if (adapter.rank, adapter.alpha) != (config.rank, config.lora_alpha):
        raise LiftError(f"{folder / adapters.CONFIG} was changed: its r or lora_alpha differs")
    text = None
    if (folder / DOCUMENT).is_file():
        text = read_text(folder / DOCUMENT)
        if hashlib.sha256(text.encode()).hexdigest() != sha256:
            raise LiftError(
                f"{folder / DOCUMENT} was changed since it was saved (its hash differs)"
            )
    adapter.install()
    return Memory(
        base_model, tokenizer, adapter, title, text, sha256, length, config, report, training
    )


def _has_matplotlib() -> bool:
    import importlib.util

    return importlib.util.find_spec("matplotlib") is not None
