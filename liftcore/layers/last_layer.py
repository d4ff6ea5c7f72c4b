"""The last decoder layer for the scored rows only.

Nothing after the last layer mixes positions, so a row that is not scored needs only its key and
value there. Queries, output projection and MLP run for [B, Q] chosen rows; values and gradients
are those of the full computation.

The layer's own code runs twice, so that norms, multipliers and rotations of any family are its
own: once on all rows, stopped at the attention, for K and V; once on the chosen rows, which attend
to them. A projection whose result is not needed in a pass is left out of it.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from liftcore.layers.attention import attend_rows, attending, unknown
from liftcore.layers.replaced import replaced
from liftcore.layers.sharded import whole
from liftcore.model import body, causal_lm

NAME = "liftcore_last_layer"
# Above this share of scored rows nothing is saved. SmolLM2-135M on a CPU, 2 segments of 256: the
# layer's forward and backward take 0.55 of the full time at 0.375, 0.85 at 0.75, 0.98 at 0.875.
WORTH = 0.85


class LastLayer:
    """The last layer of a model, for scored rows only.

    Known by structure, and compared once with the layer's own forward on random rows of
    `length` tokens. `works` is False, and `why` says why, when the layer does not fit: then the
    caller computes everything in full. Longer segments than a sliding window, an explicit mask
    and a cache are computed in full by `rows` itself.
    """

    def __init__(self, model: nn.Module, length: int = 128):
        self.model, self.why = model, ""
        try:
            # Its attention, projections and forward are called by the names that Llama has.
            layers: Any = body(model).get_submodule("layers")
            self.layer: Any = layers[-1]
            self._try(length)
        except _Unfit as unfit:
            self.why = str(unfit)
        except Exception as error:  # a layer of unknown form may fail in any way
            self.why = f"its last layer is not understood ({type(error).__name__}: {error})"

    @property
    def works(self) -> bool:
        return not self.why

    @contextmanager
    def rows(self, index: Tensor) -> Generator[None]:
        """Within it body(model)(input_ids=[B, S], use_cache=False).last_hidden_state is
        [B, Q, K]: the positions `index`, int64 [B, Q], each at most once a row.

        The layer is never checkpointed within it: it would be the first to be computed again.
        Raises ValueError when the layer does not fit.
        """
        if self.why:
            raise ValueError(f"the last layer cannot be computed for some rows: {self.why}")

        def forward(hidden_states: Tensor, **kwargs: Any) -> Tensor:
            try:
                return self._chosen(hidden_states, index, kwargs)
            except _Unfit:
                full = type(self.layer).forward(self.layer, hidden_states, **kwargs)
                return _take(full, index, hidden_states.shape[1])

        # Also where transformers checkpoints the call and not the forward.
        with replaced(self.layer, forward=forward, gradient_checkpointing=False):
            yield

    def _chosen(self, hidden: Tensor, index: Tensor, kwargs: dict) -> Tensor:
        """The layer's output [B, Q, K] for the rows index [B, Q] of hidden [B, S, K]."""
        if kwargs.get("attention_mask") is not None:
            raise _Unfit("its attention gets a mask: eager, or a window shorter than a segment")
        if kwargs.get("past_key_values") is not None:
            raise _Unfit("it is called with a cache")
        attention = self.layer.self_attn
        key, value = self._keys(attention, hidden, kwargs)

        def attend(query: Tensor, _key: Tensor, _value: Tensor, scaling: float) -> Tensor:
            return attend_rows(query, key, value, index, scaling)

        size = hidden.shape[1]
        some = {name: _take(x, index, size) for name, x in kwargs.items()}
        with self._running(attention, attend, attention.k_proj, attention.v_proj):
            return type(self.layer).forward(self.layer, _take(hidden, index, size), **some)

    def _keys(self, attention: Any, hidden: Tensor, kwargs: dict) -> tuple[Tensor, Tensor]:
        """Keys and values [B, G, S, D] of all rows."""

        def stop(query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
            raise _Reached(key, value)

        try:
            with self._running(attention, stop, attention.q_proj):
                type(self.layer).forward(self.layer, hidden, **kwargs)
        except _Reached as reached:
            return reached.args
        raise _Unfit("its attention is not called through transformers' interface")

    @contextmanager
    def _running(self, attention: Any, attend: Callable, *left_out: Any) -> Generator[None]:
        """The layer attends through `attend`; the projections left out give zeros at no cost."""
        from transformers import AttentionInterface

        AttentionInterface.register(NAME, _attention)
        with ExitStack() as stack:
            enter = stack.enter_context
            enter(replaced(self.layer, gradient_checkpointing=False))
            enter(replaced(attention, _liftcore_attend=attend))
            for projection in left_out:
                enter(replaced(projection, forward=_zeros(projection.out_features)))
            enter(attending(attention.config, NAME))
            yield

    @torch.no_grad()
    def _try(self, length: int) -> None:
        """Compares both the layer and the body with their own forward; raises _Unfit."""
        decoder, seen = body(self.model), {}
        random = torch.Generator().manual_seed(0)
        vocabulary = len(causal_lm(self.model).get_input_embeddings().weight)
        ids = torch.randint(vocabulary, (2, length), generator=random)
        ids = ids.to(next(self.layer.parameters()).device)
        # Every second row, first rows included: there a key too many or too few shows most.
        index = torch.arange(length // 2, device=ids.device) * 2
        index = torch.stack([index, index + 1])
        hook = self.layer.register_forward_pre_hook(
            lambda module, args, kwargs: seen.update(kwargs), with_kwargs=True
        )
        with hook:
            right = decoder(input_ids=ids, use_cache=False).last_hidden_state
        # Small, so that the layer's own part is not lost in the rounding of the residual.
        hidden = torch.randn(2, length, right.shape[-1], generator=random) * 0.1
        hidden = hidden.to(right.device, right.dtype)
        with whole(self.layer, self.model):
            ours = self._chosen(hidden, index, seen)
        own = self.layer(hidden, **seen)
        if not isinstance(own, Tensor):
            raise _Unfit("its last layer returns more than the hidden states")
        hidden, own = _take(hidden, index, length), _take(own, index, length)
        _equal(ours, own, own - hidden)
        right = _take(right, index, length)
        with self.rows(index):
            _equal(decoder(input_ids=ids, use_cache=False).last_hidden_state, right, right)


class _Unfit(Exception):
    """Why the layer cannot be computed for some rows only."""


class _Reached(Exception):
    """The attention was reached; the arguments are its keys and values."""


def _attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """The attention function that transformers calls: query [B, H, Q, D] -> [B, Q, H, D]."""
    if name := unknown(module, kwargs):
        raise _Unfit(f"its attention gets {name}")
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    return module._liftcore_attend(query, key, value, scaling).transpose(1, 2), None


def _equal(ours: Tensor, right: Tensor, scale: Tensor) -> None:
    """Raises _Unfit unless ours agrees with right, measured by the norm of scale.

    All rows together closely; a single row of 16-bit numbers may be off by more, but a wrong key
    or rotation moves the first rows by a good part of themselves.
    """
    eps = torch.finfo(right.dtype).eps
    ours, right, scale = ours.float(), right.float(), scale.float()
    rows = (ours - right).norm(dim=-1) - eps * right.norm(dim=-1)  # residuals are rounded too
    together = rows.clamp_min(0).norm() / scale.norm()
    worst = (rows / scale.norm(dim=-1)).max()
    if not (together <= max(8 * eps, 5e-3) and worst <= max(32 * eps, 5e-3)):
        raise _Unfit(f"its last layer computes something else (a row is off by {worst:.2g})")


def _take(x: Any, index: Tensor, size: int) -> Any:
    """The rows index [B, Q] of every tensor [B or 1, S, ...] in x; anything else as it is."""
    if isinstance(x, tuple):
        return tuple(_take(part, index, size) for part in x)
    b = index.shape[0]
    if not isinstance(x, Tensor) or x.ndim < 2 or x.shape[1] != size or x.shape[0] not in (1, b):
        return x
    flat = index if x.shape[0] == 1 else index + size * torch.arange(b, device=x.device)[:, None]
    return x.flatten(0, 1).index_select(0, flat.flatten()).unflatten(0, index.shape)


def _zeros(width: int) -> Callable[[Tensor], Tensor]:
    def forward(x: Tensor) -> Tensor:
        return x.new_zeros(()).expand(*x.shape[:-1], width)

    return forward
