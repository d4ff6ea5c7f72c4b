"""Before the first step: a model that cannot be trained is refused, and what liftcore puts under it
is compared with the model itself, in the dtype and mode that will run."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, ExitStack, contextmanager

import torch
from torch import Tensor, nn

from liftcore.device_memory import out_of_memory
from liftcore.errors import LiftError, first_line
from liftcore.layers.attention import fast_attention
from liftcore.layers.base import dtype_of
from liftcore.layers.lora import Adapter
from liftcore.layers.norms import fast_norms
from liftcore.layers.replaced import off_by
from liftcore.model import body, causal_lm, evaluating, head

TOKENS = 24
# What two orders of the same roundings may differ by: of the hidden states, of the gradient; by
# bytes of a number. In front of FP8 a rounding may become another code: that counts as 2 bytes.
NEAR = {2: (0.1, 0.3), 4: (1e-3, 1e-2), 8: (1e-6, 1e-4)}
Aid = tuple[str, Callable[[], AbstractContextManager]]


@contextmanager
def fastest(model: nn.Module, adapter: Adapter, length: int) -> Generator[list[str]]:
    """Within it the model runs the groups, norms and attention that agree with its own.

    length: of fast_attention. The adapter is installed, and nothing else trains. Yields a
    list of lines that say what was left out and why. Raises LiftError with one line when the model
    by itself cannot be trained.
    """
    left: list[str] = []
    size = max(2, min(length, TOKENS))
    with adapter.ungrouped():
        right = _outcome(model, adapter, size)
        ahead = _looks_ahead(model, size)
    if ahead:
        raise LiftError(
            f"{type(model).__name__} is not causal: it sees the tokens that it predicts"
        )
    if not all(torch.isfinite(x).all() for x in right):
        raise LiftError(f"{type(model).__name__} cannot be trained: its gradient is no number")
    if not right[1].any():
        raise LiftError(f"{type(model).__name__} cannot be trained: no gradient reaches LoRA")
    aids: list[Aid] = [
        ("norms", lambda: fast_norms(model)),
        ("attention", lambda: fast_attention(model, length)),
    ]
    with ExitStack() as stack:
        # All at once, as a rule; one after the other only to find the one that differs.
        if why := _entered(stack, aids, model, adapter, right, left):
            if _differs(model, adapter, right):
                stack.enter_context(adapter.ungrouped())
                left.append(f"linear layers run one by one: {why}")
            for aid in aids:
                if why := _entered(stack, [aid], model, adapter, right, left):
                    left.append(f"its own {aid[0]} stayed: {why}")
        yield left


def _entered(
    stack: ExitStack,
    aids: list[Aid],
    model: nn.Module,
    adapter: Adapter,
    right: tuple[Tensor, Tensor],
    left: list[str],
) -> str:
    """Enters the aids for the rest of `stack`; unless the model then differs: "", or how."""
    with ExitStack() as trial:
        said = [trial.enter_context(enter()) for _, enter in aids]
        why = _differs(model, adapter, right)
        if not why:
            stack.push(trial.pop_all())
            # fast_attention says why it did not take a model.
            left += [text for text in said if isinstance(text, str) and "stays" in text]
        return why


def _differs(model: nn.Module, adapter: Adapter, right: tuple[Tensor, Tensor]) -> str:
    """Why the model as it stands does not give what it gave by itself; "" when it does."""
    try:
        ours = _outcome(model, adapter, right[0].shape[1])
    except LiftError as error:
        return str(error)
    size = 2 if dtype_of(model) == "fp8" else right[0].element_size()
    for name, a, b, bound in zip(("result", "gradient"), ours, right, NEAR[size], strict=True):
        if not (error := off_by(a, b)) <= bound:
            return f"another {name} (off by {error:.2g})"
    return ""


def _outcome(model: nn.Module, adapter: Adapter, size: int) -> tuple[Tensor, Tensor]:
    """(the decoder's output, the adapter's gradient for a random upstream one).

    Raises LiftError when the model cannot be run forward and backward.
    """

    def untrainable(error: Exception) -> LiftError:
        return LiftError(f"{type(model).__name__} cannot be trained: {first_line(error)[:160]}")

    lm_head = head(model)
    random = torch.Generator().manual_seed(0)
    ids = torch.randint(lm_head.weight.shape[0], (1, size), generator=random)
    state = adapter.grads.clone()
    adapter.grads.zero_()
    try:
        with torch.enable_grad(), torch.random.fork_rng(enabled=model.training):
            torch.manual_seed(0)
            hidden = body(model)(
                input_ids=ids.to(lm_head.weight.device), use_cache=False
            ).last_hidden_state
            up = torch.randn(hidden.shape, generator=random).to(hidden)
            hidden.backward(up)
        return hidden.detach(), adapter.grads.clone()
    except RuntimeError as error:
        if out_of_memory(error):
            raise
        raise untrainable(error) from error
    except Exception as error:
        raise untrainable(error) from error
    finally:
        adapter.grads.copy_(state)


@torch.no_grad()
def _looks_ahead(model: nn.Module, size: int) -> bool:
    """Whether the last token of `size` changes what the decoder says before it."""
    weight = causal_lm(model).get_input_embeddings().weight
    ids = torch.arange(size, device=weight.device)[None] % weight.shape[0]
    other = ids.clone()
    other[:, -1] = weight.shape[0] // 2
    with evaluating(model):
        one, two = (
            body(model)(input_ids=x, use_cache=False).last_hidden_state[:, :-1].float()
            for x in (ids, other)
        )
    # Sums of other sizes may round in another way; nothing else may differ.
    bound = 0.02 if weight.element_size() == 2 else 1e-3
    return not (one - two).norm() <= bound * one.norm()
