"""liftcore's head loss under a causal LM of transformers: model(ids, labels=…).loss, no logits."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.loss.loss_utils import ForCausalLMLoss
from transformers.modeling_utils import PreTrainedModel

from liftcore import model as models
from liftcore.drop_in.loss_output import Logits, LossOutput, form
from liftcore.errors import LiftError
from liftcore.kernels.autocast import autocasting
from liftcore.kernels.head_loss import linear_cross_entropy
from liftcore.layers.linear import observed
from liftcore.layers.replaced import Bound, check_device, held, innermost
from liftcore.model import Head, causal_lm, evaluating

STATE, MARK = "_liftcore_loss", "_liftcore_forward"


class State:
    """What the patched forward of one causal LM needs; remove() takes its hook away."""

    def __init__(self, model: nn.Module, head: Head, eval_logits: bool):
        self.head = head
        self.eval_logits = eval_logits
        self.waiting = False
        self.hidden: Tensor | None = None
        body = models.body(model)
        self.handle = body.register_forward_hook(self._catch)
        self.known = set(body._forward_hooks)  # those that ran before ours, and ours

    def _catch(self, body: nn.Module, args: tuple, output: Any) -> None:
        if self.waiting:
            self.waiting, self.hidden = False, output[0]

    def sees(self, body: nn.Module) -> bool:
        """Whether what the hook catches is what the head will get."""
        later = not self.known.issuperset(body._forward_hooks)
        return not (later or body._backward_hooks or body._backward_pre_hooks)

    def run(self, forward: Callable, *args: Any, **kwargs: Any) -> tuple[Any, Tensor]:
        """(the forward's output, what its body gave)."""
        self.waiting = True
        try:
            out = forward(*args, **kwargs)
            assert self.hidden is not None
            return out, self.hidden
        finally:
            self.waiting, self.hidden = False, None


def find(model: nn.Module) -> PreTrainedModel | None:
    """The causal LM inside of a model and its wrappers."""
    for module in model.modules():
        if isinstance(module, PreTrainedModel) and module.get_output_embeddings() is not None:
            return module
    return None


def install(model: PreTrainedModel, eval_logits: bool) -> str | None:
    """Puts the loss into a causal LM; why not, where it must be left alone."""
    wrapped = vars(model).get("forward")
    if wrapped is not None and not _is_ours(innermost(held(model))):
        return "the model's forward is patched already"
    if "logits_to_keep" not in inspect.signature(type(model).forward).parameters:
        return f"the forward of {type(model).__name__} has no logits_to_keep"
    why = _unfit_head(model.get_output_embeddings())
    if why is not None:
        return why
    if model.loss_function is not ForCausalLMLoss:
        return "the model has a loss function of its own"
    # A wrapper that somebody put around our forward computes in a dtype of its own.
    vars(model).pop("forward", None)
    try:
        with evaluating(model):
            head = models.known_head(model)
    except LiftError as error:
        return str(error)
    except Exception as error:
        return f"the model does not run on token ids alone: {error}"
    finally:
        if wrapped is not None:
            model.forward = wrapped
    setattr(model, STATE, State(model, head, eval_logits))
    if wrapped is None:
        model.forward = Forward(model)
    with evaluating(model):
        why = _check(model)
    if why is not None:
        remove(model)
    return why


def remove(model: nn.Module) -> None:
    """Undoes install()."""
    state = vars(model).pop(STATE, None)
    if state is None:
        return
    state.handle.remove()
    # Wrapped by others it stays: without a state it is the model's own.
    if not hasattr(held(model), "__wrapped__") and _is_ours(held(model)):
        del model.forward


def _unfit_head(head: nn.Module | None) -> str | None:
    if type(head) is not nn.Linear or type(head.weight.data) is not Tensor:
        return f"the LM head is {type(head).__name__}"
    if not head.weight.is_floating_point():
        return "the LM head is quantised"
    return "the LM head is hooked" if "forward" in vars(head) or observed(head) else None


class Forward(Bound):
    def __init__(self, model: nn.Module):
        kind: Any = type(model)
        super().__init__(_patched(kind), model)
        self.__signature__ = inspect.signature(kind.forward.__get__(model))

    def __reduce__(self) -> tuple:
        return Forward, (self.__self__,)


def _is_ours(function: Callable | None) -> bool:
    # Whatever class the model had then: FSDP2 gives it another.
    return getattr(function, MARK, False)


@functools.cache
def _patched(kind: Any) -> Callable:
    """The forward for models of this class, with the signature that Trainer and others read."""

    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        state, embedding = vars(self).get(STATE), self.get_input_embeddings()
        # Where the embedding is patched, its device is somebody else's business.
        if state is not None and "forward" not in vars(embedding):
            check_device(args[0] if args else kwargs.get("input_ids"), embedding.weight)
        if state is None or len(args) > 1 or not _takes(self, state, kwargs):
            return type(self).forward(self, *args, **kwargs)
        return _forward(self, state, *args, **kwargs)

    setattr(forward, MARK, True)
    # Not __wrapped__: Accelerate would unwrap it, and take the loss off again.
    vars(forward)["__signature__"] = inspect.signature(kind.forward)
    return forward


def _takes(model: PreTrainedModel, state: State, kwargs: dict) -> bool:
    """Whether a call asks for the loss alone, in the way that the op computes it."""
    config, keep = model.config, kwargs.get("logits_to_keep", 0)
    return (
        kwargs.get("labels") is not None
        and (model.training or not state.eval_logits)
        and isinstance(keep, int)
        and not keep
        and not kwargs.get("output_router_logits", getattr(config, "output_router_logits", False))
        and kwargs.get("return_dict", getattr(config, "return_dict", True)) is not False
        and model.loss_function is ForCausalLMLoss
        and _unfit_head(model.get_output_embeddings()) is None
        and state.sees(models.body(model))
    )


def _forward(
    model: PreTrainedModel, state: State, *args: Any, labels: Tensor, **kwargs: Any
) -> LossOutput:
    output: Any = model.get_output_embeddings()
    weight, bias = output.weight, output.bias
    head = Head(weight, state.head.softcap, state.head.logit_scale, bias)
    # No row for the model's own head: its logits are then empty.
    kwargs["logits_to_keep"] = torch.empty(0, dtype=torch.long, device=weight.device)
    own = functools.partial(type(model).forward, model)
    out, hidden = state.run(own, *args, **kwargs)
    ignore = kwargs.get("ignore_index", -100)
    target = kwargs.get("shift_labels")
    if target is None:
        target = F.pad(labels, (0, 1), value=ignore)[..., 1:]
    dtype = torch.get_autocast_dtype(hidden.device.type) if autocasting(hidden) else weight.dtype
    count = kwargs.get("num_items_in_batch")
    loss = linear_cross_entropy(
        *head.operands(hidden.flatten(0, -2), dtype),
        target.flatten().to(hidden.device),
        ignore_index=ignore,
        reduction="mean" if count is None else "sum",
        softcap=head.softcap,
        logit_scale=head.logit_scale,
    )
    if count is not None:
        # Nothing scored: 0 / 0 is a loss of 0.
        count = torch.as_tensor(count, device=loss.device)
        loss = loss / torch.where(count == 0, 1, count)
    result = LossOutput(loss=loss)
    x = hidden.to(dtype)
    if model.training:
        result["head_input"], result["head"] = x, head
    elif torch.is_grad_enabled() or torch.compiler.is_compiling():
        result["logits"] = form(x, head)
    else:
        result["logits"] = Logits(x, head)
    for key, value in out.items():
        if key != "logits":
            result[key] = value
    return result


@torch.no_grad()
def _check(model: PreTrainedModel) -> str | None:
    """Why the patched loss must not be used: it differs from the model's own.

    In fp32, on the model's own logits and targets for which the likely candidates, a loss that
    shifts the labels and one that does not, are far apart; then the patched loss itself, whose
    logits 16 bits round.
    """
    weight = causal_lm(model).get_output_embeddings().weight
    ids = torch.arange(2, 18, device=weight.device).view(2, 8) % weight.shape[0]
    mask = torch.ones_like(ids)
    mask[:, 0] = 0
    call = dict(input_ids=ids, attention_mask=mask, use_cache=False)
    own: Any = functools.partial(type(model).forward, model)
    logits = own(**call).logits.float()  # [2, 8, V]
    labels = ids.clone()
    # Likely behind row t − 1, and not in row t.
    labels[:, 1:] = (logits[:, :-1].log_softmax(-1) - logits[:, 1:].log_softmax(-1)).argmax(-1)
    labels[0, 2:4] = -100
    shifted = F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
    aligned = F.cross_entropy(logits.flatten(0, 1), labels.flatten())
    right = own(labels=labels, **call).loss.float()
    kind = type(model).__name__
    if not (shifted - aligned).abs() > 1e-4 * shifted.abs():
        return f"{kind} says too little to tell how it computes its loss"
    near = min(1e-3 * shifted.abs(), 0.05 * (shifted - aligned).abs())
    if not (right - shifted).abs() <= near + 1e-6 * shifted.abs():
        return f"{kind} computes its loss in another way ({right:.4g}, not {shifted:.4g})"
    ours = _forward(model, getattr(model, STATE), labels=labels, **call)["loss"].float()
    bound = 1e-4 if weight.dtype in (torch.float32, torch.float64) else 0.02
    if not (ours - right).abs() <= bound * right.abs().clamp_min(bound):
        return f"{kind} computes its loss in another way ({right:.4g}, not {ours:.4g})"
    return None
