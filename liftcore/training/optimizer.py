"""AdamW on fp32 master weights for an adapter that computes in the model's dtype."""

from __future__ import annotations

import torch
from torch import Tensor

from liftcore.config import LiftConfig
from liftcore.kernels import adamw
from liftcore.layers.lora import Adapter, Slot


class MasterAdamW:
    """Clip by the global norm, AdamW in fp32, write the result back in the model's dtype.

    The adapter is one flat buffer, so each of these is one operation of torch.
    """

    def __init__(self, adapter: Adapter | Slot, config: LiftConfig) -> None:
        self.adapter, self.max_norm = adapter, config.max_grad_norm
        values = adapter.values
        own = values.dtype == torch.float32
        self.master = values if own else values.float()
        # In fp32 the gradient buffer serves as it is.
        self.master_grad = adapter.grads if own else torch.empty_like(self.master)
        self.parameter = torch.nn.Parameter(self.master, requires_grad=True)
        self.parameter.grad = self.master_grad
        self.adamw = torch.optim.AdamW(
            [self.parameter],
            lr=torch.tensor(config.learning_rate, dtype=torch.float32, device=values.device),
            betas=(config.beta1, config.beta2),
            eps=config.eps,
            weight_decay=config.weight_decay,
            fused=True,
        )
        # From the start, so that a first step that runs out of memory leaves no half of a state.
        self._set_moments(
            step=torch.zeros((), dtype=torch.float32),
            exp_avg=torch.zeros_like(self.master),
            exp_avg_sq=torch.zeros_like(self.master),
        )

    def _set_moments(self, **moments: Tensor) -> None:
        device = self.master.device
        self.adamw.state[self.parameter] = {k: v.to(device) for k, v in moments.items()}

    @torch.no_grad()
    def clip(self) -> Tensor:
        """Has the next step clip the gradient by its global norm; returns the norm, a scalar on
        the device."""
        grads = self.adapter.grads
        if self.master_grad is not grads:
            self.master_grad.copy_(grads)
        norm = torch.linalg.vector_norm(self.master_grad)
        # The update divides by it as it reads the gradient, which saves a pass.
        scale = ((norm + 1e-6) / self.max_norm).clamp(min=1.0)
        self.adamw.grad_scale = scale  # ty: ignore[missing-attribute] torch declares it nowhere
        return norm

    @torch.no_grad()
    def step(self, rate: float) -> None:
        """One update at the given rate; zeroes the gradient."""
        self.adamw.param_groups[0]["lr"].fill_(rate)
        self.adamw.step()
        if self.master is not self.adapter.values:
            self.adapter.values.copy_(self.master)
        self.adapter.grads.zero_()

    def state(self) -> dict[str, Tensor]:
        """Everything that the next step depends on, by name."""
        moments = self.adamw.state[self.parameter]
        return {"master": self.master, **{k: moments[k] for k in ("exp_avg", "exp_avg_sq", "step")}}

    @torch.no_grad()
    def load_state(self, state: dict[str, Tensor]) -> None:
        """Takes back what state() gave; raises ValueError when the sizes differ."""
        check(state, self.master)
        self.master.copy_(state["master"])
        self.adapter.values.copy_(self.master)
        self._set_moments(**{k: state[k].clone() for k in ("step", "exp_avg", "exp_avg_sq")})


class DeviceAdamW:
    """The same update in one op that needs nothing of the host: it can stand in a CUDA graph.

    rate: fp32 [1] on the device, what it holds when an update runs.
    """

    def __init__(self, adapter: Adapter | Slot, config: LiftConfig, rate: Tensor) -> None:
        self.adapter = adapter
        values = adapter.values
        self.fields = adamw.state(values, adapter.grads, rate)
        self.settings = adamw.Settings(
            config.max_grad_norm, config.beta1, config.beta2, config.eps, config.weight_decay
        )

    def update(self) -> Tensor:
        """Clip, step, zeroed gradient; the norm before the clip, fp32 [1]. A norm that is no
        number leaves everything but the gradient as it was."""
        return adamw.lora_adamw(self.fields, self.settings)

    def state(self) -> dict[str, Tensor]:
        """As MasterAdamW's."""
        f = self.fields
        moments = {"exp_avg": f.exp_avg, "exp_avg_sq": f.exp_avg_sq}
        return {"master": f.master, **moments, "step": f.step[0].float()}

    @torch.no_grad()
    def load_state(self, state: dict[str, Tensor]) -> None:
        """As MasterAdamW's."""
        f = self.fields
        check(state, f.master)
        f.master.copy_(state["master"])
        self.adapter.values.copy_(f.master)
        f.exp_avg.copy_(state["exp_avg"])
        f.exp_avg_sq.copy_(state["exp_avg_sq"])
        f.step.fill_(int(state["step"]))


def check(state: dict[str, Tensor], master: Tensor) -> None:
    """Raises ValueError for a state that an optimizer of the size of `master` cannot have."""
    flat = [state[k] for k in ("master", "exp_avg", "exp_avg_sq")]
    if any(tensor.shape != master.shape for tensor in flat):
        raise ValueError("the saved state belongs to an adapter of another size")
    if not all(bool(tensor.isfinite().all()) for tensor in flat) or bool((flat[2] < 0).any()):
        raise ValueError("the saved state holds numbers that no step gives")
